"""What every import from a framework must hold."""

from app.conversion.framework_import import FrameworkImport
from app.inference.model_card import ModelFolder


def check_import(made: FrameworkImport) -> ModelFolder:
    """Require the agreement of torch, ONNX Runtime and the framework; return the model's folder."""
    assert made.difference <= 1e-3
    assert made.imported.agreement is not None
    assert made.imported.agreement.label_agreement >= 0.999
    return made.imported.folder
