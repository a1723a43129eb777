"""All kernels are compiled before the first request."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Runs in a separate process, in which no other test has compiled a kernel.
FIRST_REQUESTS = """
import gc, time
from numba.core.registry import CPUDispatcher
from starlette.testclient import TestClient
from app.main import create_app
from app.settings import load_settings

def compiled():
    found = [each for each in gc.get_objects() if isinstance(each, CPUDispatcher)]
    return {each.__name__: len(each.signatures) for each in found}

with TestClient(create_app(load_settings())) as client:
    while client.get("/readyz").status_code != 200:
        time.sleep(0.05)
    before = compiled()
    expected = ("compute_shift", "shift_rows", "postprocess_kernel")
    assert all(before[name] for name in expected), before
    image = open("examples/street.jpg", "rb").read()
    for calibrator in ("active", "none"):
        answer = client.post(
            "/segment",
            params={"calibrator": calibrator, "include": "mask,confidence"},
            files={"image": image},
        )
        assert answer.status_code == 200, answer.text
    new = {name for name, count in compiled().items() if count > before.get(name, 0)}
    assert not new, new
"""


def test_first_requests_compile_nothing():
    settings = {"SEGCAL_ARTIFACTS_DIR": "calibration_artifacts", "SEGCAL_ADMIN_TOKEN": "x" * 20}
    done = subprocess.run(
        [sys.executable, "-c", FIRST_REQUESTS],
        cwd=ROOT, env={**os.environ, **settings}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_docker_image_holds_compiled_kernels(tmp_path):
    """Run the Dockerfile's command, which caches the kernels of a calibrated response."""
    code = "from app.serving.warmup import main; main()"
    assert f'python -c "{code}"' in (ROOT / "Dockerfile").read_text()
    settings = {"NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **settings}, check=True
    )
    kept = {path.name.split("-")[0].rpartition(".")[2] for path in tmp_path.rglob("*.nbc")}
    assert {
        "postprocess_kernel",
        "compute_shift",
        "shift_rows",
    } <= kept
    assert {"_count", "_add_up", "_round", "_average"} <= kept
