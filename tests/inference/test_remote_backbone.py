"""Remote backbones: logits of an inference server in a process of its own."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from app.deadline import Deadline
from app.errors import ArgumentError, ModelError, UnavailableError, UpstreamError
from app.inference.model_card import read_model_folder
from app.inference.predictor import open_predictor
from tests.factories.inference_server import InferenceServer, open_inference_server
from tests.factories.models import write_card, write_onnx_model
from tests.factories.service import (
    READY_S,
    assert_problem,
    assert_serves,
    open_client,
    post,
    publish_temperature,
    thirds,
)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_onnx_model(tmp_path_factory.mktemp("network"), "tiny") / "model.onnx"


@pytest.fixture
def upstream(network) -> Iterator[InferenceServer]:
    with open_inference_server(network, "net") as server:
        yield server


@pytest.fixture(scope="module")
def running(network) -> Iterator[str]:
    """Return the address of a server that no test stops."""
    with open_inference_server(network, "net") as server:
        yield server.url


def write_remote(models_dir, url, **card):
    folder = models_dir / "remote"
    folder.mkdir(exist_ok=True)
    write_card(folder, **{"file": None, "kind": "oip", "url": url, "model": "net", **card})
    return folder


def test_logits_are_those_of_the_file(models_dir, running):
    local = open_predictor(read_model_folder(models_dir / "tiny"), "cpu", 1)
    remote = open_predictor(read_model_folder(write_remote(models_dir, running)), "cpu", 1)
    prepared = local.prepare_windows(thirds())
    np.testing.assert_allclose(remote.grid(prepared), local.grid(prepared), rtol=0, atol=1e-6)


def test_identity_is_of_the_metadata_and_the_tables_but_not_of_the_address(
    models_dir, network, running
):
    first = read_model_folder(write_remote(models_dir, running))
    moved = read_model_folder(write_remote(models_dir, running.replace("127.0.0.1", "localhost")))
    darker = read_model_folder(write_remote(models_dir, running, mean=[0.1, 0.1, 0.1]))
    with open_inference_server(network, "net", "--platform", "other_onnx") as other:
        replaced = read_model_folder(write_remote(models_dir, other.url))
    assert moved.sha256 == first.sha256
    assert darker.weights_sha256 == first.weights_sha256
    assert len({first.sha256, darker.sha256, replaced.sha256}) == 3


def test_service_answers_503_while_the_server_is_down_and_goes_on_when_it_is_back(
    models_dir, make_settings, artifacts_dir, upstream
):
    folder = write_remote(models_dir, upstream.url)
    version = publish_temperature(artifacts_dir, folder, temperature=2)
    with open_client(make_settings(default_model="remote")) as client:
        assert_serves(client)
        upstream.kill()
        assert_problem(post(client, thirds()), 503, "remote: expected an answer of the inference")
        assert post(client, thirds(), model="tiny").status_code == 200
        upstream.start()
        assert_serves(client)
        assert post(client, thirds()).headers["x-calibrator"] == version
        upstream.kill()
        upstream.start("--platform", "other_onnx")
        assert_problem(post(client, thirds()), 503, "got another one", "restart")


def test_server_that_is_down_at_the_start_is_tried_again(models_dir, make_settings, network):
    with open_inference_server(network, "net") as upstream:
        write_remote(models_dir, upstream.url)
        upstream.kill()
        with open_client(make_settings()) as client:
            refused = client.get("/models").json()["refused"]
            assert "expected an answer of the inference server" in refused["remote"]
            assert upstream.url not in refused["remote"]
            upstream.start()
            deadline = time.monotonic() + READY_S
            while post(client, thirds(), model="remote").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert client.get("/models").json()["refused"] == {}


def test_deadline_ends_a_run(models_dir, network):
    with open_inference_server(network, "net", "--delay", "0.5") as upstream:
        predictor = open_predictor(
            read_model_folder(write_remote(models_dir, upstream.url)), "cpu", 1
        )
        deadline = Deadline()
        timer = threading.Timer(0.1, deadline.expire, ["expected a response, got none"])
        timer.start()
        with pytest.raises(UnavailableError, match="expected a response, got none"):
            predictor.logits(predictor.first_window(thirds()), deadline=deadline)
        timer.join()


def test_rejected_size_is_the_callers_error(models_dir, network):
    with open_inference_server(network, "net", "--max-height", "256") as upstream:
        folder = read_model_folder(write_remote(models_dir, upstream.url))
        predictor = open_predictor(folder, "cpu", 1)
        with pytest.raises(ArgumentError, match="got 4x258 as its input: a height of at most 256"):
            predictor.logits(torch.zeros(1, 3, 258, 4))


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"url": None}, "url: expected a value, got none"),
        ({"model": None}, "model: expected a value, got none"),
        ({"file": "model.onnx"}, 'file: expected no such key with kind = "oip"'),
        ({"kind": "file", "file": "model.onnx"}, 'url: expected no such key with kind = "file"'),
        ({"url": "file:///etc/passwd"}, "url: "),
        ({"url": "http://host?x=1"}, "url: "),
        ({"model": "gone"}, "got 404"),
        ({"version": "2"}, "got 404"),
    ],
)
def test_card_without_a_served_model_is_refused(models_dir, running, card, message):
    folder = write_remote(models_dir, **{"url": running, **card})
    with pytest.raises(ModelError) as caught:
        read_model_folder(folder)
    assert message in str(caught.value)


def test_model_that_changes_between_card_and_connection_is_refused(models_dir, running):
    folder = read_model_folder(write_remote(models_dir, running))
    with pytest.raises(ModelError, match="got another one"):
        open_predictor(replace(folder, weights_sha256="0" * 64), "cpu", 1)


def test_unreachable_server_is_an_error_of_its_own(models_dir, upstream):
    folder = write_remote(models_dir, upstream.url)
    upstream.kill()
    with pytest.raises(UpstreamError):
        read_model_folder(folder)
