"""Taxonomies: counts of classes, names, colours, void labels and label mappings."""

import numpy as np
import pytest

from app.errors import ArgumentError
from app.inference.model_card import ClassInfo
from app.inference.taxonomies import TAXONOMIES

COUNTS = {
    "ade20k": 150, "coco-stuff": 171, "cityscapes": 19, "bdd100k": 19, "acdc": 19, "synthia": 16,
    "camvid": 11, "camvid-32": 32, "davis": 2, "spacenet-7": 2, "brats": 4, "voc": 21,
    "pascal-context": 59, "nuclei": 3, "crop-weed": 3,
}  # fmt: skip
# Colours that the data set's own palette has twice.
SHARED_COLORS = {"ade20k": 1, "coco-stuff": 9, "pascal-context": 1}


def test_every_taxonomy_has_its_number_of_classes():
    assert {name: len(taxonomy.classes) for name, taxonomy in TAXONOMIES.items()} == COUNTS


@pytest.mark.parametrize("name", TAXONOMIES)
def test_names_and_colors_are_valid_and_distinct(name):
    taxonomy = TAXONOMIES[name]
    classes = [ClassInfo(name=key, color=color) for key, color in taxonomy.classes.items()]
    assert all(entry.name == entry.name.strip() for entry in classes)
    assert len({entry.name.lower() for entry in classes}) == COUNTS[name]
    assert len({entry.rgb for entry in classes}) == COUNTS[name] - SHARED_COLORS.get(name, 0)
    assert taxonomy.title


@pytest.mark.parametrize(
    ("name", "class_id", "label", "color"),
    [
        ("ade20k", 0, "wall", "#787878"),
        ("ade20k", 149, "flag", "#5c00ff"),
        ("coco-stuff", 0, "person", "#00c040"),
        ("cityscapes", 13, "car", "#00008e"),
        ("synthia", 9, "sky", "#4682b4"),
        ("voc", 15, "person", "#c08080"),
        ("camvid-32", 17, "road", "#804080"),
    ],
)
def test_class_has_its_name_and_color(name, class_id, label, color):
    assert list(TAXONOMIES[name].classes.items())[class_id] == (label, color)


@pytest.mark.parametrize(
    ("name", "mapping", "values", "expected"),
    [
        ("cityscapes", "labelIds", [7, 26, 33, 0, 29, 255], [0, 13, 18, 255, 255, 255]),
        ("coco-stuff", "stuffthingmaps", [0, 12, 181, 11, 255], [0, 11, 170, 255, 255]),
        ("cityscapes", "labelIds", [-1, 65535, 65536, 7], [255, 255, 255, 0]),
        ("synthia", "ids", [3, 11, 16, 0], [0, 15, 255, 255]),
        ("brats", "labels", [0, 1, 2, 4, 3], [0, 1, 2, 3, 255]),
        ("davis", "masks", [0, 255], [0, 1]),
        ("camvid", "camvid-32", [21, 4, 0, 30], [0, 1, 9, 11]),
    ],
)
def test_label_mapping_gives_class_ids_and_void(name, mapping, values, expected):
    labels = TAXONOMIES[name].map_labels(np.array([values]), mapping)
    np.testing.assert_array_equal(labels, [expected])


def test_label_mappings_reach_every_class_once_or_more():
    for taxonomy in TAXONOMIES.values():
        for mapping in (taxonomy.label_mappings or {}).values():
            assert set(mapping.values()) == set(range(len(taxonomy.classes)))


def test_unknown_label_mapping_is_rejected():
    with pytest.raises(ArgumentError, match=r"expected one of .*labelIds.* as label mapping"):
        TAXONOMIES["cityscapes"].map_labels(np.zeros((1, 1), np.uint8), "rgb")
