"""The function for cvat-cli with the types and the mapping of cvat-sdk; `make clients` runs it."""

import io
import logging
import runpy

import numpy as np
import pytest
from PIL import Image

cvataa = pytest.importorskip("cvat_sdk.auto_annotation")

from cvat_sdk import models  # noqa: E402
from cvat_sdk.auto_annotation import driver  # noqa: E402
from cvat_sdk.masks import decode_mask  # noqa: E402

from tests.clients.images import SIDE, shifted_nuclei  # noqa: E402
from tests.clients.services import ROOT, serve_nuclei  # noqa: E402

CLASSES = ("background", "nucleus", "border")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serve_nuclei(tmp_path_factory.mktemp("cvat")) as url:
        yield url


def create(**parameters):
    """Load the function from its file, as `cvat-cli --function-file` does."""
    return runpy.run_path(str(ROOT / "integrations/cvat.py"))["create"](**parameters)


def annotate(function, image, *, conf_threshold=None, conv_mask_to_poly=False):
    """Call a function and map its shapes to the labels of a task, as cvat-sdk's driver does."""
    mapper = driver._AnnotationMapper(
        logging.getLogger(),
        function.spec.labels,
        [
            models.Label(name=name, id=100 + k, type="any", attributes=[], sublabels=[])
            for k, name in enumerate(CLASSES)
        ],
        allow_unmatched_labels=False,
        conv_mask_to_poly=conv_mask_to_poly,
    )
    context = driver._DetectionFunctionContextImpl(
        frame_name="a.png", conf_threshold=conf_threshold, conv_mask_to_poly=conv_mask_to_poly
    )
    shapes = function.detect(context, image)
    _, mapped = mapper.validate_and_remap(shapes, 3)
    return mapped


def drawn(shapes):
    """Draw masks on a label map; 255 where there is none."""
    mask = np.full((SIDE, SIDE), 255)
    for shape in shapes:
        pixels = decode_mask(shape.points, image_width=SIDE, image_height=SIDE)
        mask[pixels] = shape.label_id - 100
    return mask


def test_masks_of_a_frame_cover_it_and_leave_uncertain_pixels_open(service):
    function = create(url=service, model="nuclei")
    assert [label.name for label in function.spec.labels] == list(CLASSES)
    image = Image.open(io.BytesIO(shifted_nuclei(1)[0][0]))
    shapes = annotate(function, image)
    assert all(shape.type.value == "mask" and shape.frame == 3 for shape in shapes)
    assert all(0 < shape.score <= 1 for shape in shapes)
    whole = drawn(shapes)
    assert (whole != 255).all()
    sure = drawn(annotate(function, image, conf_threshold=0.9))
    assert (sure == 255).any()
    assert (sure[sure != 255] == whole[sure != 255]).all()


def test_polygons_where_cvat_asks_for_them(service):
    function = create(url=service)
    image = Image.open(io.BytesIO(shifted_nuclei(1)[0][0]))
    shapes = annotate(function, image, conv_mask_to_poly=True)
    assert {shape.type.value for shape in shapes} == {"polygon"}
    assert all(len(shape.points) >= 8 for shape in shapes)


def test_unknown_models_are_named(service):
    with pytest.raises(ValueError, match=r"expected one of \['nuclei'\], got 'x'"):
        create(url=service, model="x")
