"""Anything labelled as a validation dataset."""

from app.datasets.collection import Collection
from app.datasets.images import (
    Pair,
    content_hash,
    find_masks,
    find_pairs,
    images_by_stem,
    read_image,
    read_labels,
    read_labels_for,
    read_mask,
)
from app.datasets.pseudo_labels import LocalPredictor, PseudoLabels, find_rule, write_pseudo_labels
from app.datasets.shards import (
    LabelledSet,
    ShardNumber,
    find_shards,
    open_shards,
    read_record,
    write_shard,
)
from app.datasets.stored_logits import CachedLogits
from app.datasets.uploads import (
    FIELDS,
    GROUP_INDEX,
    Limits,
    check,
    has_images,
    image_groups,
    open_upload,
    unpack,
    void_label,
)
from app.datasets.void_labels import find_void_label

__all__ = [
    "FIELDS",
    "GROUP_INDEX",
    "CachedLogits",
    "Collection",
    "LabelledSet",
    "Limits",
    "LocalPredictor",
    "Pair",
    "PseudoLabels",
    "ShardNumber",
    "check",
    "content_hash",
    "find_masks",
    "find_pairs",
    "find_rule",
    "find_shards",
    "find_void_label",
    "has_images",
    "image_groups",
    "images_by_stem",
    "open_shards",
    "open_upload",
    "read_image",
    "read_labels",
    "read_labels_for",
    "read_mask",
    "read_record",
    "unpack",
    "void_label",
    "write_pseudo_labels",
    "write_shard",
]
