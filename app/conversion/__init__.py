"""Model files in: import and quantisation."""

from app.conversion.classes import classes_with_colors
from app.conversion.export_model import export_model
from app.conversion.export_process import Exporter
from app.conversion.framework_import import import_framework
from app.conversion.import_model import (
    ImportedModel,
    Reference,
    fill_size,
    import_model,
    new_model,
    read_card,
    write_card,
)
from app.conversion.plain_networks import Options
from app.conversion.quantization_report import QuantizationReport, measure
from app.conversion.quantize import Ranges, quantize_model
from app.conversion.sources import FRAMEWORKS, open_source

__all__ = [
    "FRAMEWORKS",
    "Exporter",
    "ImportedModel",
    "Options",
    "QuantizationReport",
    "Ranges",
    "Reference",
    "classes_with_colors",
    "export_model",
    "fill_size",
    "import_framework",
    "import_model",
    "measure",
    "new_model",
    "open_source",
    "quantize_model",
    "read_card",
    "write_card",
]
