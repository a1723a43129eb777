"""TIFFs of several bands and of 16 bits, for a model whose card states bands and range."""

import io

import numpy as np
import pytest
from PIL import Image

from app.errors import ModelError
from app.inference.model_card import read_model_folder
from tests.conftest import MakeClient
from tests.factories.models import write_card
from tests.factories.service import (
    SATURATED,
    THIRDS_MASK,
    assert_problem,
    decoded,
    encoded,
    post,
    solid,
    thirds,
)
from tests.imaging.test_tiff_bands import tiff

TIFF = {"Content-Type": "image/tiff"}


@pytest.fixture
def bands():
    """Return six 12-bit bands, of which 5, 3 and 2 show red, green and blue thirds."""
    values = np.full((8, 12, 6), 2000, np.uint16)
    values[..., [4, 2, 1]] = thirds().astype(np.uint16) // 255 * 4095
    return values


def test_bands_and_range_of_the_card(make_client: MakeClient, models_dir, bands):
    before = read_model_folder(models_dir / "tiny").sha256
    write_card(models_dir / "tiny", range=[0, 4095], bands=[5, 3, 2])
    assert read_model_folder(models_dir / "tiny").sha256 != before
    client = make_client()
    image = tiff(bands, compression=8, predictor=2)
    response = post(client, image, TIFF | {"Accept": "image/png"})
    assert (np.asarray(decoded(response.content)) == THIRDS_MASK).all()
    assert post(client, thirds()).status_code == 200


def test_16_bit_grey_uses_the_range(make_client: MakeClient, models_dir):
    write_card(models_dir / "tiny", range=[0, 1000])
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 12), 1000, np.uint16)).save(buffer, "TIFF")
    client = make_client()
    grey = post(client, buffer.getvalue(), TIFF).json()["mean_confidence"]
    assert grey == post(client, solid((255, 255, 255))).json()["mean_confidence"]
    assert grey < SATURATED


def test_bands_without_the_card_are_refused(client, bands):
    refused = post(client, tiff(bands), TIFF)
    assert_problem(refused, 400, "bands = [R, G, B] in [input] of the model's card, got 6")
    assert post(client, encoded(thirds(), "TIFF"), TIFF).status_code == 200


@pytest.mark.parametrize(
    "wrong", [{"range": [5, 5]}, {"range": [0, 70000]}, {"bands": [0, 1, 2]}, {"bands": [1, 2]}]
)
def test_wrong_values_in_the_card_are_refused(models_dir, wrong):
    write_card(models_dir / "tiny", **wrong)
    with pytest.raises(ModelError, match=r"tiny: input"):
        read_model_folder(models_dir / "tiny")
