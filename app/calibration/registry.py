"""Find the calibration methods: every concrete calibrator in `app.calibration.methods`.

A new method is one new file there. What differs between methods, such as whether `auto` tries
them, is a class attribute or a class method of `Calibrator`.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType

from app.calibration import methods
from app.calibration.base import Calibrator
from app.calibration.methods.selective import over
from app.errors import ArgumentError

UNCALIBRATED = "identity"  # the method whose probabilities are the plain softmax


@cache
def discover() -> Mapping[str, type[Calibrator]]:
    """Return the calibrator classes by method name, and import all modules of the methods.

    The candidates of `auto` come first, in their order, then the others by name, and last the
    combined forms `selective+<other>`. The result is kept; `discover.cache_clear()` drops it.
    Raises ValueError for a name that two classes have or that no version id may hold.
    """
    found = sorted(_defined(), key=_position)
    names = [calibrator.method for calibrator in found]
    for name in names:
        if not re.fullmatch("[a-z0-9_]+", name):
            raise ValueError(f"expected a method name of a-z, 0-9 and _, got {name!r}")
    if len({*names}) < len(names):
        raise ValueError(f"expected one class for each method name, got {', '.join(names)}")
    combined = [over(calibrator) for calibrator in found if calibrator.combines_with_selective]
    return MappingProxyType({calibrator.method: calibrator for calibrator in (*found, *combined)})


def auto_methods(*, allow_label_changes: bool) -> tuple[str, ...]:
    """List the candidates of `auto` in their order; those that may change labels if allowed."""
    return tuple(
        name
        for name, calibrator in discover().items()
        if calibrator.auto_rank is not None
        and (allow_label_changes or calibrator.invariances.argmax)
    )


def build(
    method: str, num_classes: int, options: Mapping[str, object] = MappingProxyType({})
) -> Calibrator:
    """Build an unfitted calibrator with the options of a fit, by name.

    Raises ArgumentError for an unknown name, for an option of other methods and under 2 classes.
    """
    known = discover()
    if method not in known:
        raise ArgumentError(f"expected one of {', '.join(known)}, got {method}")
    if num_classes < 2:
        raise ArgumentError(f"expected at least 2 classes, got {num_classes}")
    require_options(method, options)
    make: Callable[..., Calibrator] = known[method]
    arguments = known[method].options
    return make(num_classes, **{arguments[name]: value for name, value in options.items()})


def require_options(method: str, options: Iterable[str]) -> None:
    """Raise ArgumentError for an option that the method, or `auto`, does not have."""
    known = discover()
    for option in options:
        having = [name for name, calibrator in known.items() if option in calibrator.options]
        if method not in having:
            raise ArgumentError(
                f"expected {option} with one of the methods {', '.join(having)}, got it with "
                f"{method}"
            )


def _defined() -> Iterator[type[Calibrator]]:
    """List the concrete calibrators with a name of their own, each in the module defining it."""
    for entry in pkgutil.walk_packages(methods.__path__, f"{methods.__name__}."):
        module = importlib.import_module(entry.name)
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, Calibrator)
                and value.__module__ == module.__name__
                and "method" in vars(value)
                and not inspect.isabstract(value)
            ):
                yield value


def _position(calibrator: type[Calibrator]) -> tuple[float, str]:
    rank = calibrator.auto_rank
    return (float("inf") if rank is None else rank), calibrator.method
