"""Import a network of another framework: export it, and compare its labels with its own."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.conversion.framework_model import FrameworkModel, export_network, smooth_image
from app.conversion.import_model import ImportedModel, fill_size, new_model, open_imported
from app.conversion.reference import compare, require_agreement
from app.inference.model_card import read_model_folder
from app.inference.preprocess import Size
from app.settings import Settings

FILE = "model.onnx"
REFERENCE_SIZE = (192, 256)  # of the image of an import whose network takes any size


@dataclass(frozen=True)
class FrameworkImport:
    """An imported model and the largest difference of its file's outputs from torch's."""

    imported: ImportedModel
    difference: float


def import_framework(
    model: FrameworkModel, name: str, card: Mapping[str, object], settings: Settings
) -> FrameworkImport:
    """Export a network into the models directory, if its labels are those of its framework.

    `card` has texts, and tables whose values replace those of the framework. Raises ModelError
    where the export fails or the labels do not agree, and the errors of `new_model`.
    """
    with new_model(settings.models_dir, name) as folder:
        path = folder / FILE
        difference = export_network(model, path)
        policy = fill_size({**model.input, **table(card, "input")}, path, settings)
        output = merged(model.output, table(card, "output"))
        if len(model.outputs) > 1:
            output["name"] = model.outputs[0]
        values = {**card, "file": FILE, "input": policy, "output": output}
        predictor = open_imported(folder, values, settings)
        image = smooth_image(reference_size(policy))
        agreement = compare(predictor, image, model.reference(image).clone())
        require_agreement(agreement)
    folder_now = read_model_folder(settings.models_dir / name)
    warnings = (*model.notes, *predictor.warnings)
    return FrameworkImport(ImportedModel(folder_now, warnings, agreement), difference)


def merged(output: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
    """Return an output table with the given values; given classes replace the framework's."""
    replaced = {"classes", "taxonomy"} if {"classes", "taxonomy"} & given.keys() else set()
    return {key: value for key, value in output.items() if key not in replaced} | dict(given)


def table(card: Mapping[str, object], name: str) -> dict[str, object]:
    """Return a table of a card, empty where it has none."""
    value = card.get(name)
    return dict(value) if isinstance(value, Mapping) else {}


def reference_size(policy: Mapping[str, object]) -> Size:
    """Return the size of the image to compare: one window, or an image that is resized."""
    crop, size = policy.get("crop"), policy.get("size")
    if isinstance(crop, tuple):
        return crop
    if isinstance(size, tuple):
        return size[0] * 3 // 4, size[1]
    if isinstance(size, Mapping):
        return size["short_side"], size["short_side"]
    return REFERENCE_SIZE
