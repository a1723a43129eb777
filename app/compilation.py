"""Compilation to machine code by numba, kept on disk between starts."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])

# No reassociation: it would undo rounding on purpose. Infinities and NaN must not occur.
FAST = ("contract", "nnan", "ninf", "nsz")


def compiled(function: F) -> F:
    """Compile at the first call, without the interpreter's lock.

    The machine code is kept beside the source, in the user's cache, or in NUMBA_CACHE_DIR; where
    none of them can be written each process compiles anew, which takes some seconds.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": set(FAST), "error_model": "numpy"}
    try:
        kept: F = njit(cache=True, **options)(function)
    except RuntimeError:
        anew: F = njit(**options)(function)
        return anew
    return kept
