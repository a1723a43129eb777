"""Import packages of optional extras; where one is absent, the error names the extra."""

import importlib
from typing import Any

import torch

from app.errors import SetupError

# Operators for which torchvision registers shapes when it is imported.
TORCHVISION_OPERATORS = ("nms", "qnms")


def import_extra(extra: str, *modules: str) -> Any:  # noqa: ANN401 - packages without types
    """Import modules of an extra and return the first one; raises SetupError."""
    try:
        return [importlib.import_module(module) for module in modules][0]
    except ImportError as error:
        raise SetupError(
            f"expected the extra packages of `pip install segcal[{extra}]`, got: {error}"
        ) from error


def import_torchvision(extra: str, *modules: str) -> Any:  # noqa: ANN401
    """Import modules that may import torchvision; raises SetupError.

    The package on PyPI is compiled for CUDA, and with a CPU build of torch its library does not
    load. Segmentation networks use none of its operators, so their declaration is enough.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        pass  # absent: transformers does without, and other modules name it in their error
    except RuntimeError:
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for operator in TORCHVISION_OPERATORS:
            operators.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        importlib.import_module("torchvision")
    return import_extra(extra, *modules)
