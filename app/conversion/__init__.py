"""Model files in: import and quantisation."""

from app.conversion.import_model import (
    ImportedModel,
    Reference,
    classes_with_colors,
    fill_size,
    import_model,
    new_model,
    read_card,
    write_card,
)
from app.conversion.quantization_report import QuantizationReport, measure
from app.conversion.quantize import Ranges, quantize_model

__all__ = [
    "ImportedModel",
    "QuantizationReport",
    "Ranges",
    "Reference",
    "classes_with_colors",
    "fill_size",
    "import_model",
    "measure",
    "new_model",
    "quantize_model",
    "read_card",
    "write_card",
]
