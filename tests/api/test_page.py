"""The web page: its files are served, its colour scale is the service's, and a browser runs it."""

import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from app.api.system import STATIC
from app.imaging.colormap import HEAT
from tests.factories.models import write_onnx_model

CHROMIUM = shutil.which("chromium")


@pytest.mark.parametrize("path", sorted(STATIC.glob("**/*.*")), ids=lambda path: path.name)
def test_every_file_of_the_page_is_served_without_a_token(client: TestClient, path: Path):
    response = client.get(f"/static/{path.relative_to(STATIC)}")

    assert response.content == path.read_bytes()


def test_modules_import_and_load_files_of_the_page_only():
    for path in STATIC.glob("*.js"):
        for name in re.findall(r'from "([^"]+)"', path.read_text()):
            assert (STATIC / name).is_file(), f"{path.name}: {name}"
    for path in STATIC.glob("*.*s*"):
        assert "//" not in re.sub(
            r"(?m)(^|\s)//.*|http://www\.w3\.org/2000/svg", "", path.read_text()
        )


def test_colour_scale_of_the_page_is_that_of_the_heatmap():
    scale = Image.open(io.BytesIO((STATIC / "confidence_scale.png").read_bytes()))

    assert (np.asarray(scale.convert("RGB"))[0] == HEAT).all()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_browser_segments_the_sample(make_server, models_dir: Path, tmp_path: Path):
    write_onnx_model(models_dir, "cells", taxonomy="nuclei", classes=None)
    assert CHROMIUM is not None
    # Root has no sandbox; the page is the test's own.
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
        f"--user-data-dir={tmp_path}/chromium", "--virtual-time-budget=20000", "--dump-dom",
        f"{make_server()}/?sample=nuclei",
    ]  # fmt: skip
    page = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout

    assert re.search(r'id="summary"[^>]*>nuclei.png: 520 . 389 pixels, cells', page), page
    assert re.search(r'id="problem"[^>]* hidden', page)
