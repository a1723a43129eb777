"""Arrays that came become the validation set they describe: dense maps, or a table of pixels."""

from collections.abc import Mapping

from app.arrays import ArrayFile
from app.dense_logits import DenseLogits
from app.errors import ArgumentError
from app.logit_checks import check_integers
from app.table_logits import TableLogits


def open_logits(
    arrays: Mapping[str, ArrayFile], num_classes: int, ignore_index: int
) -> DenseLogits | TableLogits:
    """Make a validation set of the arrays that came; raises ArgumentError unless they fit."""
    missing = sorted({"logits", "labels"} - set(arrays))
    if missing:
        raise ArgumentError(f"expected logits and labels, got no {' and no '.join(missing)}")
    logits, labels = arrays["logits"], arrays["labels"]
    if (logits.dtype.kind, logits.dtype.itemsize) not in (("f", 2), ("f", 4)):
        raise ArgumentError(f"expected logits of float16 or float32, got {logits}")
    check_integers(labels)
    drives = arrays.get("drive_index")
    if drives is not None:
        check_integers(drives)
    if len(logits.shape) == 4:
        if "image_index" in arrays:
            raise ArgumentError(
                f"expected image_index with a table [M,K] only, got it with {logits}"
            )
        return DenseLogits(logits, labels, drives, num_classes, ignore_index)
    if len(logits.shape) != 2:
        raise ArgumentError(f"expected logits [N,K,h,w] or [M,K], got {logits}")
    if "image_index" not in arrays:
        raise ArgumentError(
            f"expected image_index [M] with a table, to part it by image, got only {logits}"
        )
    return TableLogits(logits, labels, arrays["image_index"], drives, num_classes, ignore_index)
