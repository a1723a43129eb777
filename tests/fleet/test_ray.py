"""`--ray` gives the files and figures of the plain commands, also when a worker is killed."""

import importlib
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from app.cli import ray_runs
from app.cli import segment_batch as batch
from app.cli.figures import FILE
from app.cli.ray_runs import build_shard_writer
from app.cluster import actors
from app.cluster.actors import cluster, map_on_actors
from app.datasets import shards
from app.datasets.shards import ShardNumber
from app.errors import ArgumentError
from app.storage.artifacts import ArtifactStore
from tests.cli.test_main import Run, run
from tests.factories.inference_server import free_port
from tests.factories.service import publish_temperature, wait_until_ready

pytest.importorskip("ray", reason="make fleet installs ray")
parquet = pytest.importorskip("pyarrow.parquet")

__all__ = ["run"]  # the fixture
IMAGES = 36


@pytest.fixture(autouse=True)
def two_actors(monkeypatch):
    monkeypatch.setenv("SEGCAL_THREADS", "2")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Write random images with noisy label maps."""
    rng = np.random.default_rng(0)
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for index in range(IMAGES):
        image = rng.integers(0, 256, (16, 20 + index % 3, 3), np.uint8)
        truth = image.argmax(2).astype(np.uint8)
        noisy = rng.random(truth.shape) < 0.3
        truth[noisy] = rng.integers(0, 3, noisy.sum())
        Image.fromarray(image).save(images / f"{index:02}.png")
        Image.fromarray(truth).save(labels / f"{index:02}.png")
    return images, labels


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def rows(folder: Path) -> list[str]:
    return sorted((folder / FILE).read_text("utf-8").splitlines())


def killer(marker: Path):
    """Build a function whose process ends at item 21, the first time."""

    def work(item: int) -> int:
        if item == 21 and not marker.exists():
            marker.touch()
            os._exit(9)
        return 2 * item

    return work


def refuser():
    def work(item: int) -> int:
        raise ArgumentError(f"expected no item, got {item}")

    return work


def killed_writer(marker: Path, *arguments: Any) -> Callable[[ShardNumber], Path]:
    """Build the function of a shard; its process ends with shard 5 half written, the first time."""
    write = build_shard_writer(*arguments)

    def work(shard: ShardNumber) -> Path:
        if shard.number == 5 and not marker.exists():
            marker.touch()
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(shards, "replace_file", lambda *_: os._exit(9))
                write(shard)
        return write(shard)

    return work


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Listen on a port, and answer nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


@pytest.mark.parametrize("address", ["127.0.0.1:{free}", "none.invalid:1"])
def test_address_without_a_server_is_named(run: Run, folders, tmp_path, address):
    address = address.format(free=free_port())
    done = run("segment", folders[0], "--out", tmp_path / "out", "--ray", address)

    assert done.code == 2
    assert f"--ray: expected a Ray cluster at {address} that answers within 20 s" in done.err
    assert re.search("got: (Connection refused|Name or service not known)", done.err)


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "auto"])
def test_address_that_does_not_answer_ends_the_command(
    run: Run, folders, tmp_path, monkeypatch, silent_port, address
):
    """`auto` is the address in RAY_ADDRESS."""
    monkeypatch.setattr(actors, "CONNECT_S", 8)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent_port}")
    address = address.format(port=silent_port)
    done = run("segment", folders[0], "--out", tmp_path / "out", "--ray", address)

    assert done.code == 2
    assert f"expected a Ray cluster at {address} that answers within 8 s, got no" in done.err


def test_address_of_ray_client_is_refused(run: Run, folders, tmp_path):
    """A batch over Ray Client would end with an AttributeError of Ray Data."""
    address = "ray://127.0.0.1:10001"
    done = run("segment", folders[0], "--out", tmp_path / "out", "--ray", address)

    assert done.code == 2
    assert "--ray: expected local, auto or host:port of a cluster" in done.err
    assert f"got {address}, an address of Ray Client" in done.err


def test_reason_of_ray_is_passed_on(run: Run, folders, tmp_path):
    done = run("segment", folders[0], "--out", tmp_path / "out", "--ray", "no address")

    assert done.code == 2
    assert "got: Invalid address format: no address" in done.err


def test_every_item_has_a_result_though_a_worker_is_killed(tmp_path):
    marker = tmp_path / "killed"
    with cluster("local", 2):
        results = sorted(map_on_actors(lambda: killer(marker), range(40)))
    assert marker.exists()
    assert results == [(item, 2 * item) for item in range(40)]


def test_error_of_an_item_keeps_its_type():
    with cluster("local", 2), pytest.raises(ArgumentError, match="expected no item, got"):
        list(map_on_actors(refuser, range(3)))


def test_segment_writes_the_files_and_rows_of_the_plain_command(
    run: Run, folders, tmp_path, models_dir, artifacts_dir
):
    publish_temperature(artifacts_dir, models_dir / "tiny", temperature=2)
    images, _ = folders
    (images / "broken.png").write_bytes(b"no image")
    plain = run("segment", images, "--out", tmp_path / "plain", "--heatmap")
    divided = run("segment", images, "--out", tmp_path / "ray", "--heatmap", "--ray", "local")

    assert (plain.code, divided.code) == (1, 1)
    assert "broken.png: expected a JPEG" in divided.err
    assert f"{IMAGES} of {IMAGES + 1} images" in divided.err
    assert len(files(tmp_path / "plain")) == 3 * IMAGES
    assert files(tmp_path / "ray") == files(tmp_path / "plain")
    assert rows(tmp_path / "ray") == rows(tmp_path / "plain")

    table = parquet.read_table(tmp_path / "ray" / batch.PARQUET)
    assert table.num_rows == IMAGES
    assert table.schema.field("threshold").type == "double"
    assert set(table["calibrator"].to_pylist()) == {ArtifactStore(artifacts_dir).active_id("tiny")}


def test_batch_that_died_goes_on_where_it_was(run: Run, folders, tmp_path, monkeypatch):
    images, _ = folders
    out = tmp_path / "out"
    early = [images / f"{index:02}.png" for index in range(20)]
    assert run("segment", *early, "--out", out, "--ray", "local").code == 0
    for path in out.glob("0[0-9].mask.png"):
        path.write_bytes(b"of the first run")

    assert run("segment", images, "--out", out, "--ray", "local").code == 0
    table = parquet.read_table(out / batch.PARQUET)
    assert sorted(table["name"].to_pylist()) == [f"{index:02}" for index in range(IMAGES)]
    assert (out / "03.mask.png").read_bytes() == b"of the first run"

    assert run("segment", images, "--out", out, "--ray", "local").code == 0  # nothing is left
    other = run("segment", images, "--out", out, "--ray", "local", "--tta", "flip")
    assert other.code == 2
    assert "expected a new folder or the options of" in other.err


def test_folder_of_the_plain_command_is_refused(run: Run, folders, tmp_path):
    images, _ = folders
    run("segment", images, "--out", tmp_path / "out")
    done = run("segment", images, "--out", tmp_path / "out", "--ray", "local")
    assert done.code == 2
    assert "expected a new folder or one of --ray, got results without batch.json" in done.err


def test_evaluation_has_the_page_of_the_plain_command(
    run: Run, folders, tmp_path, models_dir, artifacts_dir
):
    """The page holds every metric, interval and curve at its printed digits."""
    publish_temperature(artifacts_dir, models_dir / "tiny", temperature=2)
    images, labels = folders
    data = ("evaluate", "--images", images, "--labels", labels, "--out")
    assert run(*data, tmp_path / "plain.html").code == 0
    divided = run(*data, tmp_path / "ray.html", "--ray", "local")

    assert divided.code == 0, divided.err
    pages = [(tmp_path / f"{name}.html").read_text("utf-8") for name in ("plain", "ray")]
    plain, merged = (re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "", page) for page in pages)
    assert merged == plain


def test_fit_over_eight_shards_equals_that_of_one_process_though_a_worker_is_killed(
    run: Run, folders, tmp_path, artifacts_dir, monkeypatch
):
    """Parameters and drift reference have the same bits, the others the same values."""
    images, labels = folders
    monkeypatch.setattr(ray_runs, "IMAGES_OF_A_PART", math.ceil(IMAGES / 8))
    writer = partial(killed_writer, tmp_path / "killed")
    monkeypatch.setattr(ray_runs, "build_shard_writer", writer)
    data = ("calibrate", "--images", images, "--labels", labels, "--activate", "never")
    store = ArtifactStore(artifacts_dir)
    assert run(*data).code == 0
    (whole,) = store.versions("tiny")
    done = run(*data, "--ray", "local", "--out", tmp_path / "shards")

    assert done.code == 0, done.err
    (merged,) = [one for one in store.versions("tiny") if one.id != whole.id]
    assert (tmp_path / "killed").exists()
    assert len(list((tmp_path / "shards").glob("shard-*-of-8"))) == 8
    for name in ("calibrator.safetensors", "reference.safetensors"):
        assert merged.files[name] == whole.files[name]
    reports = [store.report("tiny", one.id) for one in (whole, merged)]
    for field in ("gate", "thresholds", "decision"):
        assert reports[0][field] == reports[1][field]


def node_of_actor() -> Callable[[int], str]:
    """Build a function that names its node, after a time in which the other actor works too."""

    def work(item: int) -> str:
        time.sleep(0.2)
        return str(pytest.importorskip("ray").get_runtime_context().get_node_id())

    return work


def test_several_nodes_share_a_batch(run: Run, folders, tmp_path):
    """Two nodes of one core each; the plain command's files are those of the batch."""
    images, _ = folders
    assert run("segment", images, "--out", tmp_path / "plain").code == 0
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    nodes = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        with cluster(nodes.address, 1):
            found = {node for _, node in map_on_actors(node_of_actor, range(40))}
        done = run("segment", images, "--out", tmp_path / "ray", "--ray", nodes.address)
    finally:
        nodes.shutdown()
    assert len(found) == 2
    assert done.code == 0, done.err
    assert files(tmp_path / "ray") == files(tmp_path / "plain")


def test_ray_serve_answers_as_the_service(folders, models_dir, artifacts_dir, monkeypatch, client):
    """A replica of Ray Serve gives the bytes of the plain application."""
    serve = pytest.importorskip("ray.serve")

    monkeypatch.setenv("SEGCAL_MODELS_DIR", str(models_dir))
    monkeypatch.setenv("SEGCAL_ARTIFACTS_DIR", str(artifacts_dir))
    image = (folders[0] / "00.png").read_bytes()
    with cluster("local", 2):
        app = importlib.import_module("app.cluster.serve").app

        port = free_port()
        serve.start(http_options={"port": port})
        serve.run(app)
        address = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=address, timeout=60) as replica:
            wait_until_ready(replica)
            query = "/segment?calibrator=none&output=mask"
            headers = {"Content-Type": "image/png"}
            answers = [one.post(query, content=image, headers=headers) for one in (replica, client)]
        serve.shutdown()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content == answers[1].content
