"""`segcal evaluate`: the printed metrics, the page, and error messages."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_main import Run, run
from tests.conftest import MakeServer
from tests.factories.models import write_onnx_model
from tests.factories.service import BLUE, publish_temperature, solid, thirds

__all__ = ["run"]  # the fixture


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Write two images, one with all pixels correct and one with two thirds."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    Image.fromarray(solid(BLUE)).save(images / "blue.png")
    Image.fromarray(np.full((8, 12), 2, np.uint8)).save(labels / "blue.png")
    Image.fromarray(thirds()).save(images / "thirds.png")
    wrong = np.repeat(np.array([[0, 1, 0]], np.uint8), 4, axis=1).repeat(8, axis=0)
    Image.fromarray(wrong).save(labels / "thirds.png")
    return images, labels


def test_table_and_page(run: Run, folders, tmp_path, artifacts_dir, models_dir):
    active = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    page = tmp_path / "report.html"
    result = run(
        "evaluate", "--model", "tiny", "--images", folders[0], "--labels", folders[1], "--out", page
    )

    assert result.code == 0, result.err
    text = page.read_text("utf-8")
    for metric in ("Image-wise ECE", "Boundary ECE", "AURC", "mIoU"):
        assert metric in result.out
        assert metric in text
    accuracy = f"{(96 + 64) / 192:.4f}"
    assert accuracy in result.out
    assert accuracy in text
    assert "uncalibrated" in result.out
    assert "fewer than 10 blocks of 8 images give no confidence interval" in result.out
    assert "does not record the images of its fit" in result.out
    assert active in text
    assert str(page) in result.err
    assert [path.name for path in tmp_path.glob("*.html")] == ["report.html"]


def test_without_calibrator(run: Run, folders, tmp_path, artifacts_dir, models_dir):
    active = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    page = tmp_path / "report.html"
    where = ("--images", folders[0], "--labels", folders[1], "--out", page)
    result = run("evaluate", *where, "--calibrator", "none", "--worst", 0)

    assert result.code == 0, result.err
    assert "change" not in result.out
    assert active not in page.read_text("utf-8")
    assert not re.search("data:image/(jpeg|png)", page.read_text("utf-8"))


def test_model_without_active_calibrator_is_reported(run: Run, folders, tmp_path):
    where = ("--images", folders[0], "--labels", folders[1], "--out", tmp_path / "report.html")
    result = run("evaluate", *where, "--tta", "flip")

    assert result.code == 0, result.err
    assert "tiny has no active calibrator" in result.err
    assert "two, mirrored" in (tmp_path / "report.html").read_text("utf-8")


def save_images(folder: Path, count: int) -> tuple[Path, Path]:
    """Write images with a colour of its own each, with every other one labelled wrongly."""
    images, labels = folder / "images", folder / "labels"
    for path in (images, labels):
        path.mkdir(parents=True)
    for n in range(count):
        image = solid(BLUE) - np.array([0, 0, 8 * n], np.uint8)
        Image.fromarray(image).save(images / f"{n:02}.png")
        save_labels(np.full((8, 12), 2 * (n % 2)), labels / f"{n:02}.png")
    return images, labels


@pytest.mark.parametrize("option", ["--group-index", "--groups"])
def test_intervals_by_group(run: Run, tmp_path, artifacts_dir, models_dir, option):
    publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    images, labels = save_images(tmp_path, 20)
    groups = tmp_path / "groups.npy"
    np.save(groups, np.arange(20) // 2)
    page = tmp_path / "report.html"
    where = ("--images", images, "--labels", labels, "--out", page, option, groups)
    result = run("evaluate", *where)

    assert result.code == 0, result.err
    assert "95% interval by group" in result.out
    assert "95% interval of the change by group" in result.out
    assert "by group" in page.read_text("utf-8")


def test_groups_of_another_number_of_images_are_rejected(run: Run, folders, tmp_path):
    groups = tmp_path / "groups.npy"
    np.save(groups, np.arange(3))
    where = ("--images", folders[0], "--labels", folders[1], "--out", tmp_path / "report.html")
    result = run("evaluate", *where, "--group-index", groups)

    assert result.code == 2
    assert "expected --group-index of integers [2]" in result.err


def test_images_of_the_fit_are_reported(run: Run, tmp_path, make_server: MakeServer):
    images, labels = save_images(tmp_path, 8)
    where = ("--images", images, "--labels", labels)
    fitted = run("calibrate", *where, "--method", "temperature", "--activate", "always")
    assert fitted.code == 0, fitted.err
    out = ("--out", tmp_path / "report.html")
    local = run("evaluate", *where, *out)
    remote = run("evaluate", *where, *out, "--url", make_server())
    others = save_images(tmp_path / "others", 20)
    for folder in others:
        for path in sorted(folder.iterdir())[:8]:
            path.unlink()
    fresh = run("evaluate", "--images", others[0], "--labels", others[1], *out)

    for result in (local, remote):
        assert result.code == 0, result.err
        assert "warning: 8 of 8 images are among those of the calibrator's fit" in result.out
    assert fresh.code == 0, fresh.err
    assert "None of the images is among those of the calibrator's fit" in fresh.out


def test_analyses_are_written_to_the_page_and_as_json(
    run: Run, folders, tmp_path, artifacts_dir, models_dir
):
    publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    write_onnx_model(models_dir, "other")
    (tmp_path / "invalid").mkdir()
    for name in ("blue", "thirds"):
        save_labels(np.ones((8, 12)), tmp_path / "invalid" / f"{name}.png")
    page = tmp_path / "report.html"
    where = ("--model", "tiny", "--images", folders[0], "--labels", folders[1], "--out", page)
    options = ("--compare", "other", "--invalid", tmp_path / "invalid", "--thetas", "0.5,0.9")
    result = run("evaluate", *where, "--analyses", *options)

    assert result.code == 0, result.err
    assert f"wrote {page}" in result.err
    assert f"wrote {tmp_path / 'report.json'}" in result.err
    assert "<h2>Analyses</h2>" in page.read_text("utf-8")
    analyses = json.loads((tmp_path / "report.json").read_text("utf-8"))["analyses"]
    assert [entry["name"] for entry in analyses["capacity"]] == ["tiny", "other"]
    assert analyses["capacity"][1]["calibrator"] is None
    assert analyses["uiou"]["thetas"] == [0.5, 0.9]
    assert "given masks" in analyses["uiou"]["invalid"]
    # At .9 all is rejected and invalid, and so credited, by the calibrator of temperature 2.
    assert analyses["uiou"]["after"]["uiou"][1] == 1
    assert [entry["temperature"] for entry in analyses["temperature"]] == [0.67, 1, 1.5]


def test_analyses_of_a_running_service_leave_out_the_temperatures(
    run: Run, folders, tmp_path, artifacts_dir, models_dir, make_server: MakeServer
):
    publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    where = ("--images", folders[0], "--labels", folders[1], "--analyses")
    local = run("evaluate", *where, "--out", tmp_path / "local.html")
    remote = run("evaluate", *where, "--out", tmp_path / "remote.html", "--url", make_server())

    assert remote.code == local.code == 0, remote.err
    documents = [json.loads((tmp_path / f"{n}.json").read_text()) for n in ("local", "remote")]
    one, other = (document["analyses"] for document in documents)
    assert "temperatures need the logits" in other["temperature"]["left_out"]
    assert "temperatures need the logits" in (tmp_path / "remote.html").read_text("utf-8")
    for scale in (0, 1):
        assert other["scale"][scale]["after"]["miou"] == one["scale"][scale]["after"]["miou"]
    errors = [analyses["crop_size"][0]["after"]["mean"] for analyses in (one, other)]
    assert errors[1] == pytest.approx(errors[0], abs=1e-3)  # the service rounds confidence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare", "tiny"], "expected --analyses with --compare"),
        (["--thetas", "0.5"], "expected --analyses with --thetas"),
        (["--analyses", "--thetas", "0.5;0.9"], "--thetas: expected numbers in 0..1"),
        (["--analyses", "--thetas", "0.5,1.5"], "--thetas: expected numbers in 0..1"),
        (["--analyses", "--thetas", "nan"], "--thetas: expected numbers in 0..1"),
        (["--analyses", "--tta", "flip"], "--tta: expected none with --analyses"),
        (["--analyses", "--out", "report.json"], "--out: expected a page"),
        (["--analyses", "--compare", "huge"], "--model: expected one of ['tiny']"),
        (["--analyses", "--invalid", "none"], "expected a mask for each of 2 images"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_arguments_of_analyses_are_rejected(
    run: Run, folders, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    result = run("evaluate", "--images", folders[0], "--labels", folders[1], *options)

    assert result.code == 2
    assert message in result.err
    assert not list(tmp_path.glob("report.*"))


def save_labels(values: object, path: Path) -> None:
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def unmatched(images: Path, labels: Path) -> None:
    (labels / "blue.png").rename(labels / "green.png")


def missing(images: Path, labels: Path) -> None:
    (labels / "blue.png").unlink()


def empty(images: Path, labels: Path) -> None:
    for path in [*images.iterdir(), *labels.iterdir()]:
        path.unlink()


def too_small(images: Path, labels: Path) -> None:
    save_labels(np.zeros((4, 6)), labels / "blue.png")


def out_of_range(images: Path, labels: Path) -> None:
    save_labels(np.full((8, 12), 3), labels / "blue.png")


def void(images: Path, labels: Path) -> None:
    for path in labels.iterdir():
        save_labels(np.full((8, 12), 255), path)


def no_image(images: Path, labels: Path) -> None:
    (images / "blue.png").write_bytes(b"no image")


def no_label_map(images: Path, labels: Path) -> None:
    (labels / "thirds.png").write_bytes(b"\x89PNG no label map")


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (unmatched, "2 without a partner, such as ['blue', 'green']"),
        (missing, "2 images, 1 label maps, and 1 without a partner"),
        (empty, "got 0 images, 0 label maps"),
        (too_small, "blue.png: expected labels of (8, 12) (height, width), got (4, 6)"),
        (out_of_range, "blue.png: expected labels in 0..2 or 255 for void, got 3..3"),
        (void, "expected labelled pixels, got none in 2 label maps"),
        (no_image, "blue.png: expected a JPEG, PNG, WebP, TIFF or BMP image"),
        (no_label_map, "thirds.png: expected a label map, got"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_invalid_folders_are_rejected(run: Run, folders, tmp_path, corrupt, message):
    corrupt(*folders)
    page = tmp_path / "report.html"
    result = run("evaluate", "--images", folders[0], "--labels", folders[1], "--out", page)

    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not page.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--calibrator", "20200101T000000Z-temperature-000000"],
            "expected the id of a calibrator",
        ),
        (["--calibrator", "../../etc/passwd"], "expected the id of a calibrator of tiny"),
        (["--model", "huge"], "--model: expected one of ['tiny']"),
        (["--out", "gone/report.html"], "--out: expected a file in a folder that exists"),
        (["--tta", "rotate"], "--tta"),
        (["--worst", "-1"], "--worst"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_invalid_arguments_are_rejected(run: Run, folders, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    result = run("evaluate", "--images", folders[0], "--labels", folders[1], *options)

    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not list(tmp_path.glob("*.html"))


def test_calibrator_of_another_model_is_rejected(run: Run, folders, artifacts_dir, models_dir):
    other = publish_temperature(artifacts_dir, write_onnx_model(models_dir, "other", 4), 2)
    where = ("--model", "tiny", "--images", folders[0], "--labels", folders[1])
    result = run("evaluate", *where, "--calibrator", other)

    assert result.code == 2
    assert "expected a calibrator of tiny, got one of other" in result.err


def test_running_service_has_the_same_metrics_as_the_local_model(
    run: Run, folders, tmp_path, artifacts_dir, models_dir, make_server: MakeServer
):
    active = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    url = make_server(api_tokens="alpha")
    local_page, remote_page = tmp_path / "local.html", tmp_path / "remote.html"
    where = ("--images", folders[0], "--labels", folders[1])
    local = run("evaluate", *where, "--out", local_page)
    remote = run("evaluate", *where, "--out", remote_page, "--url", url, "--token", "alpha")
    local_rows, remote_rows = (dict(metric_rows(result.out)) for result in (local, remote))

    assert remote.code == 0, remote.err
    assert active in remote_page.read_text("utf-8")
    for name in ("mIoU", "Accuracy"):
        assert local_rows[name] == remote_rows[name]
    # The service rounds confidence to eleven bits.
    ece = local_rows["Image-wise ECE"][0]
    assert remote_rows["Image-wise ECE"][0] == pytest.approx(ece, abs=1e-3)
    assert "NLL" in local_rows


def metric_rows(text: str) -> Iterator[tuple[str, list[float]]]:
    """Parse the printed table of metrics."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("\u2502 ").split("\u2502")]
        if len(cells) > 1:
            yield cells[0], [float(c) for c in cells[1:3] if re.fullmatch(r"[0-9.]+", c)]


def test_error_of_the_service_is_printed(run: Run, folders, tmp_path, make_server: MakeServer):
    url = make_server(api_tokens="alpha")
    where = ("--images", folders[0], "--labels", folders[1], "--out", tmp_path / "a.html")
    wrong = run("evaluate", *where, "--url", url, "--token", "beta")
    unknown = run("evaluate", *where, "--url", url, "--token", "alpha", "--calibrator", "x")

    assert wrong.code == unknown.code == 2
    assert "expected a bearer token" in wrong.err
    assert "expected the id of a calibrator" in unknown.err
