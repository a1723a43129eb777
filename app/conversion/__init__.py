"""Model files in: import and quantisation."""

from app.conversion.export_model import export_model
from app.conversion.export_process import Exporter
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
    "Exporter",
    "ImportedModel",
    "QuantizationReport",
    "Ranges",
    "Reference",
    "classes_with_colors",
    "export_model",
    "fill_size",
    "import_model",
    "measure",
    "new_model",
    "quantize_model",
    "read_card",
    "write_card",
]
