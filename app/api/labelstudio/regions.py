"""Predictions as Label Studio's brush regions, and annotated regions as label maps."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from app.api.labelstudio.labelling_config import BrushControl
from app.api.labelstudio.schemas import BrushRegion, BrushValue
from app.errors import ArgumentError
from app.imaging import decode_brush, encode_brush
from app.inference.model_card import OutputPolicy
from app.serving.segmenter import Segmentation, class_table

TYPE = "brushlabels"


def regions_of(done: Segmentation, control: BrushControl) -> list[BrushRegion]:
    """Return a region for each predicted class that the project labels.

    Abstained pixels are in no region. The score of a region is its mean confidence.
    """
    height, width = done.prediction.mask.shape
    return [
        BrushRegion(
            id=f"segcal-{row['id']}",
            from_name=control.name,
            to_name=control.image,
            original_width=width,
            original_height=height,
            score=float(str(row["mean_confidence"])),
            value=BrushValue(
                rle=encode_brush(done.prediction.mask == row["id"]),
                brushlabels=[control.labels[int(str(row["id"]))]],
            ),
        )
        for row in class_table(done)
        if row["id"] in control.labels
    ]


def void_of(output: OutputPolicy) -> int:
    """Return a label for void pixels that is no class: 255, or 65535 with many classes."""
    return 255 if len(output.classes) + int(output.reduce_zero_label) <= 255 else 65535


def label_map_of(
    result: Sequence[object], control: BrushControl, output: OutputPolicy, size: tuple[int, int]
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Draw an annotation's regions, in their order, on a label map [H,W] that is void elsewhere.

    Raises ArgumentError without a region of a class, and for regions of another size than (H, W).
    """
    void, drawn = void_of(output), False
    labels = np.full(size, void, np.uint8 if void == 255 else np.uint16)
    for region in result:
        if not isinstance(region, Mapping) or region.get("from_name") != control.name:
            continue
        value = region.get("value")
        names = value.get(TYPE) if isinstance(value, Mapping) else None
        found = control.class_of(str(names[0])) if isinstance(names, list) and names else None
        if found is None or not isinstance(value, Mapping):
            continue
        got = region.get("original_height"), region.get("original_width")
        if got != size or region.get("image_rotation"):
            raise ArgumentError(
                f"expected regions of {size} (height, width) without rotation, got {got}"
            )
        mask = decode_brush(value.get("rle") or (), *size)
        labels[mask] = found + int(output.reduce_zero_label)
        drawn = True
    if not drawn:
        raise ArgumentError(f"expected regions with labels of {control.name}, got none")
    return labels
