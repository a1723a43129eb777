"""A remote backbone on a server of KServe equals the network in this process."""

import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pytest

from tests.clients.processes import ROOT, Process, kserve_server, running, service
from tests.clients.test_inference_clients import IMAGES, segment, triton_http

if find_spec("kserve") is None:
    pytest.skip("kserve is not installed", allow_module_level=True)

LOCAL = "camvid-street"


@pytest.fixture
def upstream() -> Iterator[Process]:
    """Run a server that returns the logits of a bundled network."""
    with running(kserve_server(ROOT / "models" / LOCAL / "model.onnx", "street")) as started:
        yield started


def write_models(folder: Path, url: str) -> Path:
    """Copy the bundled model, and write a remote one with the same tables."""
    shutil.copytree(ROOT / "models" / LOCAL, folder / LOCAL)
    card = (folder / LOCAL / "card.toml").read_text("utf-8")
    card = card.replace(f'name = "{LOCAL}"', 'name = "remote"')
    kind = f'kind = "oip"\nurl = "{url}"\nmodel = "street"'
    (folder / "remote").mkdir()
    (folder / "remote/card.toml").write_text(re.sub(r"^file = .*$", kind, card, flags=re.MULTILINE))
    return folder


def uncalibrated(client, model: str, image: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask and the uncalibrated confidence of an image."""
    given = triton_http.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([image], np.object_))
    result = client.infer(model, [given], model_version="uncalibrated")
    return result.as_numpy("mask"), result.as_numpy("confidence")


def test_answers_equal_those_of_the_file_and_survive_a_kill(tmp_path, upstream):
    models = write_models(tmp_path / "models", upstream.url)
    with running(service(tmp_path, models, default_model=LOCAL)) as started:
        with triton_http.InferenceServerClient(f"127.0.0.1:{started.port}") as client:
            for _, image in IMAGES[:5]:
                local, remote = (uncalibrated(client, name, image) for name in (LOCAL, "remote"))
                np.testing.assert_array_equal(remote[0], local[0])
                np.testing.assert_allclose(remote[1], local[1], rtol=0, atol=1e-6)
        image = IMAGES[0][1]
        upstream.kill()
        with pytest.raises(HTTPError) as caught:
            segment(started.port, "remote", image)
        assert caught.value.code == 503
        assert int(caught.value.headers["Retry-After"]) >= 1
        assert segment(started.port, LOCAL, image)[0] != "none"
        upstream.start()
        segment(started.port, "remote", image)
