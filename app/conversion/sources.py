"""Frameworks from which networks are imported, by the name before the colon of a source."""

from collections.abc import Callable
from pathlib import Path

from app.conversion.framework_model import FrameworkModel
from app.conversion.hugging_face import open_hugging_face
from app.conversion.mmseg_networks import open_mmseg
from app.conversion.plain_networks import Options, open_dino, open_smp, open_torchvision
from app.errors import ArgumentError

Opener = Callable[[str, Path | None, Options], FrameworkModel]


def without_weights(opener: Callable[[str, Options], FrameworkModel]) -> Opener:
    """Return an opener of folders that have their weights; it raises ArgumentError for others."""

    def open_folder(location: str, weights: Path | None, options: Options) -> FrameworkModel:
        if weights is not None:
            raise ArgumentError(f"expected {location} alone, which has weights, got {weights} too")
        return opener(location, options)

    return open_folder


FRAMEWORKS: dict[str, Opener] = {
    "hf": without_weights(lambda path, options: open_hugging_face(path, options.size)),
    "torchvision": open_torchvision,
    "smp": without_weights(open_smp),
    "dino": open_dino,
    "mmseg": open_mmseg,
}


def open_source(
    framework: str, location: str, weights: Path | None, options: Options
) -> FrameworkModel:
    """Load a network of one of FRAMEWORKS.

    Raises SetupError where the framework's extra is not installed, ArgumentError where there is no
    such network, ModelError for one that is not supported.
    """
    if not location:
        raise ArgumentError(f"expected a name or path after {framework}:, got none")
    return FRAMEWORKS[framework](location, weights, options)
