"""The memory of each model is measured; large images are rejected in mode whole."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.errors import TooLargeError
from app.inference.model_card import read_model_folder
from app.inference.predictor import Predictor, open_predictor
from app.serving.memory import MARGIN, MemoryBudget, bytes_per_pixel
from app.settings import available_memory
from tests.conftest import MakeServer
from tests.factories.models import write_onnx_model
from tests.factories.service import RED, assert_problem, assert_serves, encoded, post, solid


def opened(folder: Path, **card: Any) -> Predictor:
    return open_predictor(read_model_folder(write_onnx_model(folder, "net", **card)), "cpu", 1)


def test_memory_by_pixel_is_at_least_the_inputs(tmp_path: Path):
    measured = bytes_per_pixel(opened(tmp_path))
    assert MARGIN * 12 * 0.9 < measured < 1000  # three float32 of each pixel


def test_slide_is_not_limited(tmp_path: Path):
    card = {"mode": "slide", "crop": [64, 64], "window_stride": [32, 32]}
    assert bytes_per_pixel(opened(tmp_path, **card)) == 0


def test_image_of_the_budget_is_accepted_and_one_row_more_is_not(tmp_path: Path):
    predictor = opened(tmp_path)
    budget = MemoryBudget(2000 * 2000 * 10, {"net": 10.0})

    budget.check(predictor, (2000, 2000), "flip")
    with pytest.raises(TooLargeError, match=r'within 40 MB of memory, got 2000x2002.*"slide"'):
        budget.check(predictor, (2001, 2000), "none")
    with pytest.raises(TooLargeError, match="takes some 62 MB"):  # 1.25 squared times 40
        budget.check(predictor, (2000, 2000), "multiscale")


def test_requests_share_the_memory_that_is_not_in_use():
    budgets = [MemoryBudget.measured({}, 10**12, requests).request_bytes for requests in (1, 4)]
    assert budgets == pytest.approx([10**12, 10**12 / 4], rel=0.05)
    assert budgets[0] < 10**12 - 10**7  # this process uses more than 10 MB
    assert MemoryBudget.measured({}, 1, 1).request_bytes == 0


def test_available_memory_is_at_most_the_machines():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < available_memory() <= total


def test_large_image_is_rejected_by_mode_whole_only(make_server: MakeServer, models_dir: Path):
    write_onnx_model(models_dir, "windows", mode="slide", crop=[64, 64], window_stride=[64, 64])
    url = make_server(memory_bytes=1, default_model="tiny")
    with httpx2.Client(base_url=url, timeout=60) as client:
        large = encoded(solid(RED, 1500, 1500))
        assert_problem(post(client, large), 413, "memory", 'mode = "slide"')
        assert post(client, large, model="windows").status_code == 200
        assert_serves(client)
