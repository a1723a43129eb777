"""Import packages of optional extras; where one is absent, the error names the extra."""

import importlib
from typing import Any

import torch

from app.errors import SetupError

# Operators for which torchvision registers shapes when it is imported.
TORCHVISION_OPERATORS = ("nms", "qnms")


def import_extra(extra: str, *modules: str) -> Any:
    """Import modules of an extra and return the first one; raises SetupError."""
    try:
        imported = [importlib.import_module(module) for module in modules]
    except ImportError as error:
        raise SetupError(
            f"expected the extra packages of `pip install segcal[{extra}]`, got: {error}"
        ) from error
    return imported[0]


def import_torchvision(extra: str, *modules: str) -> Any:
    """Import modules that may import torchvision; raises SetupError.

    The package on PyPI is compiled for CUDA, and with a CPU build of torch its library does not
    load. Segmentation networks use none of its operators, so their declaration is enough.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        pass  # absent: transformers does without, and other modules name it in their error
    except RuntimeError:
        operators = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for operator in TORCHVISION_OPERATORS:
            schema = f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor"
            operators.define(schema)  # type: ignore[no-untyped-call]
        importlib.import_module("torchvision")
    return import_extra(extra, *modules)
