"""Frameworks from which networks are imported, by the name before the colon of a source."""

from collections.abc import Callable
from pathlib import Path

from app.conversion.framework_model import FrameworkModel
from app.conversion.hugging_face import open_hugging_face
from app.errors import ArgumentError
from app.inference.preprocess import Size

Opener = Callable[[str, Path | None, Size | None], FrameworkModel]


def open_transformers(location: str, weights: Path | None, size: Size | None) -> FrameworkModel:
    """Load a network of transformers, whose folder has the weights."""
    if weights is not None:
        raise ArgumentError(f"expected no file of weights with hf:, got {weights}")
    return open_hugging_face(location, size)


FRAMEWORKS: dict[str, Opener] = {"hf": open_transformers}


def open_source(
    framework: str, location: str, weights: Path | None, size: Size | None
) -> FrameworkModel:
    """Load a network of one of FRAMEWORKS; `size` is the height and width of its export.

    Raises SetupError where the framework's extra is not installed, ArgumentError where there is no
    such network, ModelError for one that is not supported.
    """
    if not location:
        raise ArgumentError(f"expected a name or path after {framework}:, got none")
    return FRAMEWORKS[framework](location, weights, size)
