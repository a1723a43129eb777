"""The commands of `segcal`: output, files, exit codes and error messages."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from app.cli import main as cli
from app.storage.artifacts import ArtifactStore
from tests.conftest import MakeServer
from tests.factories.models import write_card, write_onnx_model
from tests.factories.service import (
    RED,
    publish_temperature,
    solid,
)
from tests.factories.validation_data import VOID, npz, overconfident


class Result(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch, capsys, models_dir: Path, artifacts_dir: Path) -> Run:
    """Run `segcal` with arguments in this process, on the test's folders."""
    monkeypatch.setenv("SEGCAL_MODELS_DIR", str(models_dir))
    monkeypatch.setenv("SEGCAL_ARTIFACTS_DIR", str(artifacts_dir))
    monkeypatch.setenv("SEGCAL_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["segcal", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            sys.exit(cli.main())  # type: ignore[func-returns-value]
        captured = capsys.readouterr()
        return Result(int(stop.value.code or 0), captured.out, captured.err)

    return call


@pytest.mark.parametrize("command", [["models", "list"], ["calibrators", "list"], ["serve"]])
def test_wrong_setting_is_named_in_the_error(run: Run, monkeypatch, command):
    monkeypatch.setenv("SEGCAL_THREADS", "none")
    result = run(*command)

    assert result.code == 2
    assert result.err.startswith("error: SEGCAL_THREADS: ")
    assert result.err.endswith("got 'none'\n")


def test_models_are_listed_with_the_reason_of_an_invalid_one(run: Run, models_dir):
    (models_dir / "broken").mkdir()
    result = run("models", "list")

    assert result.code == 0
    assert "tiny" in result.out
    assert "Tiny tiny" in result.out
    assert "refused: broken: expected a card.toml" in result.out


def test_calibrators_are_listed_and_the_active_one_is_marked(run: Run, models_dir, artifacts_dir):
    first = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    second = publish_temperature(
        artifacts_dir, models_dir / "tiny", 3, activate=False, sha256="0" * 64
    )
    lines = run("calibrators", "list").out.splitlines()
    rows = {word: line for line in lines for word in line.split() if "-temperature-" in word}

    assert rows.keys() == {first, second}
    assert "*" in rows[first]
    assert "0.2500" in rows[first]
    assert "current" in rows[first]
    assert "*" not in rows[second]
    assert "other" in rows[second]
    assert "calibrators of tiny" in lines[0]
    # The test sets of two models differ, and ECE is comparable within one only.
    assert {rows[name].split()[-3] for name in (first, second)} == {"1", "2"}
    assert lines[-1].strip() == "ECE: image-wise, 10 bins; comparable within one test set"


def test_activate_rolls_back_and_records_the_reason(run: Run, models_dir, artifacts_dir):
    first = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    publish_temperature(artifacts_dir, models_dir / "tiny", 3)
    result = run("calibrators", "activate", first, "--reason", "the new one drifts")

    assert result.code == 0
    assert f"{first} is active for tiny" in result.err
    assert ArtifactStore(artifacts_dir).active_id("tiny") == first
    assert "the new one drifts" in (artifacts_dir / "tiny" / "history.jsonl").read_text()


def test_calibrators_of_a_running_service(
    run: Run, models_dir, artifacts_dir, tmp_path, make_server: MakeServer
):
    first = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    second = publish_temperature(artifacts_dir, models_dir / "tiny", 3)
    publish_temperature(artifacts_dir, models_dir / "tiny", 4, activate=False, sha256="0" * 64)
    service = ["--url", make_server(admin_token="a token for tests")]
    token = ["--token", "a token for tests"]

    assert run("calibrators", "list", *service).out == run("calibrators", "list").out
    assert run("calibrators", "list", *service, "--model", "tiny").code == 0
    assert "got 'street'" in run("calibrators", "list", *service, "--model", "street").err

    activated = run(
        "calibrators", "activate", first, *service, *token, "--reason", "the new one drifts"
    )
    assert activated.code == 0, activated.err
    assert f"{first} is active for tiny" in activated.err
    assert ArtifactStore(artifacts_dir).active_id("tiny") == first
    assert "the new one drifts" in (artifacts_dir / "tiny" / "history.jsonl").read_text()
    rejected = run("calibrators", "activate", second, *service, "--token", "wrong")
    assert "expected a bearer token" in rejected.err
    assert ArtifactStore(artifacts_dir).active_id("tiny") == first

    listed = run("calibrators", "list", *service).out
    in_use = run("calibrators", "delete", first, *service, *token)
    assert run("calibrators", "delete", second, *service, "--token", "wrong").code == 2
    assert in_use.code == 2
    assert "expected a calibrator that is not active" in in_use.err
    assert run("calibrators", "list", *service).out == listed

    archive = tmp_path / "archive.zip"
    assert run("calibrators", "archive", second, "--out", archive, *service).code == 0
    assert f"{second}/manifest.json" in zipfile.ZipFile(archive).namelist()
    assert (
        "expected the id"
        in run("calibrators", "archive", f"{first[:-1]}g", "--out", archive, *service).err
    )


def test_delete_removes_a_version_locally_and_over_http(
    run: Run, models_dir, artifacts_dir, make_server: MakeServer
):
    first, second, active = (
        publish_temperature(artifacts_dir, models_dir / "tiny", temperature)
        for temperature in (2, 3, 4)
    )
    service = ["--url", make_server(admin_token="a token for tests")]
    local = run("calibrators", "delete", first)
    remote = run("calibrators", "delete", second, *service, "--token", "a token for tests")

    assert (local.code, remote.code) == (0, 0), remote.err
    assert f"deleted {first}" in local.err
    assert [each.id for each in ArtifactStore(artifacts_dir).versions("tiny")] == [active]
    assert "expected a calibrator that is not active" in run("calibrators", "delete", active).err


def test_activate_rejects_a_calibrator_of_another_model_file(run: Run, models_dir, artifacts_dir):
    other = publish_temperature(
        artifacts_dir, models_dir / "tiny", 2, activate=False, sha256="0" * 64
    )

    assert "hash" in run("calibrators", "activate", other).err
    assert "expected the id" in run("calibrators", "activate", "../tiny").err
    assert ArtifactStore(artifacts_dir).active_id("tiny") is None


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[Path, Path]:
    """Write eight red images, a quarter of whose pixels have another label, and one row is void.

    The model has a confidence of 0.965 and an accuracy of 0.75: it is over-confident.
    """
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for index in range(8):
        Image.fromarray(solid(RED, 16, 16)).save(images / f"{index}.png")
        truth = np.zeros((16, 16), np.uint8)
        truth[:, 12:] = 1 + index % 2
        truth[0] = 255
        Image.fromarray(truth).save(labels / f"{index}.png")
    return images, labels


def test_calibrate_fits_publishes_and_activates(run: Run, labelled, artifacts_dir):
    images, labels = labelled
    result = run("calibrate", "--images", images, "--labels", labels, "--method", "temperature")
    store = ArtifactStore(artifacts_dir)
    (manifest,) = store.versions("tiny")

    assert result.code == 0, result.err
    assert f"{manifest.id} is active: better: " in result.err
    assert store.active_id("tiny") == manifest.id
    assert manifest.images == 8
    # Right with 3/4, e^(4/T) / (e^(4/T) + 2) = 3/4 at T = 4 / ln 6, less the prior's part.
    assert manifest.summary["temperature"] == pytest.approx(4 / np.log(6), rel=0.02)
    assert manifest.ece_before == pytest.approx(0.964664 - 0.75, abs=1e-4)
    assert manifest.ece_after == pytest.approx(0, abs=5e-3)
    assert "temperature" in result.out


def test_calibrate_may_certify_nothing(run: Run, logits, artifacts_dir):
    result = run("calibrate", "--logits", logits, "--method", "temperature", "--no-certify")
    (manifest,) = ArtifactStore(artifacts_dir).versions("tiny")
    report = ArtifactStore(artifacts_dir).report("tiny", manifest.id)

    assert result.code == 0, result.err
    assert manifest.thresholds == ()
    assert "asked to certify nothing" in str(report["certification"])


def test_calibrate_takes_255_for_void_where_the_card_has_another_label(
    run: Run, labelled, logits, models_dir
):
    write_card(models_dir / "tiny", ignore_index=9)
    images, labels = labelled
    assert run("calibrate", "--images", images, "--labels", labels, "--method", "ets").code == 0
    assert run("calibrate", "--logits", logits, "--method", "ets").code == 0

    mixed = np.full((16, 16), 9, np.uint8)
    Image.fromarray(mixed).save(labels / "7.png")
    rejected = run("calibrate", "--images", images, "--labels", labels)
    assert rejected.code == 2
    assert "expected one label for void pixels, got both 9" in rejected.err


def test_calibrate_with_activate_never_publishes_only(run: Run, labelled, artifacts_dir):
    images, labels = labelled
    arguments = ["--images", images, "--labels", labels, "--method", "temperature"]
    result = run("calibrate", *arguments, "--activate", "never", "--note", "a trial")
    store = ArtifactStore(artifacts_dir)

    assert result.code == 0
    assert "is not activated: activate=never" in result.err
    assert store.active_id("tiny") is None
    assert store.versions("tiny")[0].note == "a trial"


def test_calibrate_rejects_an_image_without_labels(run: Run, labelled):
    images, labels = labelled
    (labels / "3.png").unlink()
    result = run("calibrate", "--images", images, "--labels", labels)

    assert result.code == 2
    assert "without a partner, such as ['3']" in result.err


def test_calibrate_rejects_an_unknown_method(run: Run, labelled, artifacts_dir):
    images, labels = labelled
    result = run("calibrate", "--images", images, "--labels", labels, "--method", "magic")

    assert result.code == 2
    assert "magic" in result.err
    assert ArtifactStore(artifacts_dir).versions("tiny") == []


@pytest.fixture
def logits(tmp_path: Path) -> Path:
    """Write an .npz of logits three times too large, with labels."""
    values, labels = overconfident(16, 16, 16)
    (tmp_path / "val.npz").write_bytes(npz(logits=values, labels=labels))
    return tmp_path / "val.npz"


def test_calibrate_fits_on_logits(run: Run, logits, artifacts_dir):
    result = run("calibrate", "--logits", logits, "--method", "temperature")
    (manifest,) = ArtifactStore(artifacts_dir).versions("tiny")

    assert result.code == 0, result.err
    assert f"{manifest.id} is active: better: " in result.err
    assert manifest.summary["temperature"] == pytest.approx(3, rel=0.1)
    assert logits.is_file()


def test_calibrate_takes_the_options_of_a_method(
    run: Run, logits, artifacts_dir, make_server: MakeServer
):
    url = make_server(admin_token="a token for tests")
    arguments = [
        "calibrate", "--logits", logits, "--method", "selective", "--routing", "hard",
        "--mispredicted-temperature", 2,
    ]  # fmt: skip
    local = run(*arguments)
    remote = run(*arguments, "--url", url, "--token", "a token for tests")
    other = run(*arguments, "--rejected-temperature", 2)
    firm = run(*arguments, "--routing", "firm")

    assert (local.code, remote.code) == (0, 0), remote.err
    for manifest in ArtifactStore(artifacts_dir).versions("tiny"):
        assert manifest.options == {"routing": "hard", "mispredicted_temperature": 2.0}
        assert manifest.summary == pytest.approx({"t_ok": 1, "t_mis": 2})
    assert other.code == firm.code == 2
    assert "expected --rejected-temperature with one of the methods metacal" in other.err
    assert "hard" in firm.err


def test_calibrate_over_http_uses_the_ignore_index_of_the_default_model(
    run: Run, models_dir, tmp_path, artifacts_dir, make_server: MakeServer
):
    write_card(models_dir / "tiny", ignore_index=9)
    write_onnx_model(models_dir, "another")
    values, labels = overconfident(16, 16, 16)
    labels[labels == VOID] = 9
    (tmp_path / "val.npz").write_bytes(npz(logits=values, labels=labels))
    url = make_server(admin_token="a token for tests", default_model="tiny")
    result = run(
        "calibrate", "--logits", tmp_path / "val.npz", "--method", "temperature",
        "--url", url, "--token", "a token for tests",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert len(ArtifactStore(artifacts_dir).versions("tiny")) == 1


def test_calibrate_over_http_needs_a_model_name_without_a_default(
    run: Run, models_dir, logits, make_server: MakeServer
):
    write_onnx_model(models_dir, "another")
    url = make_server(admin_token="a token for tests")
    result = run("calibrate", "--logits", logits, "--url", url, "--token", "a token for tests")
    assert result.code == 2
    assert "--model: expected one of the models ['another', 'tiny'], got no name" in result.err


def test_calibrate_over_http_fits_the_same_as_locally(
    run: Run, logits, artifacts_dir, make_server: MakeServer
):
    url = make_server(admin_token="a token for tests")
    arguments = ["calibrate", "--logits", logits, "--method", "temperature", "--seed", 4]
    local = run(*arguments, "--activate", "never")
    remote = run(*arguments, "--url", url, "--token", "a token for tests")
    store = ArtifactStore(artifacts_dir)
    newest, oldest = store.versions("tiny")

    assert (local.code, remote.code) == (0, 0), remote.err
    assert newest.summary == pytest.approx(oldest.summary)
    assert f"{newest.id} is active: better: " in remote.err
    assert store.active_id("tiny") == newest.id


def test_calibrate_over_http_sends_folders_as_archives(
    run: Run, labelled, artifacts_dir, make_server: MakeServer
):
    images, labels = labelled
    url = make_server(admin_token="a token for tests")
    sources = ["--images", images, "--labels", labels]
    rejected = run("calibrate", *sources, "--url", url, "--token", "wrong")
    unknown = run(
        "calibrate", *sources, "--method", "magic", "--url", url, "--token", "a token for tests"
    )

    assert rejected.code == unknown.code == 2
    assert "got another one" in rejected.err
    assert "expected auto or one of" in unknown.err
    assert "got magic" in unknown.err


def test_calibrate_needs_logits_or_images(run: Run, labelled, logits):
    images, labels = labelled
    for arguments in (
        [],
        ["--images", images],
        ["--labels", labels],
        ["--images", images, "--labels", labels, "--logits", logits],
        ["--logits", logits, "--labels", labels],
    ):
        result = run("calibrate", *arguments)
        assert result.code == 2
        assert "expected --logits" in result.err


def test_calibrate_changes_labels_only_if_allowed(run: Run, logits, artifacts_dir):
    arguments = ["calibrate", "--logits", logits, "--method", "vector_ti"]

    assert "expected --allow-label-changes with the method vector_ti" in run(*arguments).err
    assert run(*arguments, "--allow-label-changes").code == 0
    assert ArtifactStore(artifacts_dir).versions("tiny")[0].method == "vector_ti"


def test_calibrate_reads_images_for_methods_that_need_them(
    run: Run, labelled, logits, artifacts_dir
):
    images, labels = labelled
    source = ["--images", images, "--labels", labels]

    result = run("calibrate", "--logits", logits, "--method", "lts_image")
    assert "expected images with the method lts_image, got logits alone" in result.err
    result = run("calibrate", *source, "--method", "lts_image", "--activate", "always")
    assert result.code == 0, result.err
    active = ArtifactStore(artifacts_dir).versions("tiny")[0]
    assert active.method == "lts_image"
    assert run("segment", *images.iterdir(), "--out", images.parent / "out").code == 0
    result = run("calibrate", "--logits", logits, "--method", "temperature")
    assert f"expected images, which the active calibrator {active.id} reads" in result.err
    result = run("calibrate", "--logits", logits, "--method", "magic")
    assert "expected auto or one of identity" in result.err


def test_two_models_need_a_name(run: Run, models_dir):
    write_onnx_model(models_dir, "wide", num_classes=5)

    assert "--model: expected one of ['tiny', 'wide'], got None" in run("calibrators", "list").err
    assert run("calibrators", "list", "--model", "wide").code == 0


def test_windows_is_rejected_with_a_sentence():
    code = "import os, sys; os.name = sys.platform = 'nt'; import app.cli.main"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: expected Linux or macOS, ")
    assert "got nt" in ended.stderr
    assert "Traceback" not in ended.stderr
