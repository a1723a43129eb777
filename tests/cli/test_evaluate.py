"""`segcal evaluate` as it is typed: what it prints and writes, and how it refuses."""

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
    """Two images, all of one right and two thirds of the other."""
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
    ended = run(
        "evaluate", "--model", "tiny", "--images", folders[0], "--labels", folders[1], "--out", page
    )

    assert ended.code == 0, ended.err
    text = page.read_text("utf-8")
    for figure in ("Image-wise ECE", "Boundary ECE", "AURC", "mIoU"):
        assert figure in ended.out
        assert figure in text
    accuracy = f"{(96 + 64) / 192:.4f}"
    assert accuracy in ended.out
    assert accuracy in text
    assert "uncalibrated" in ended.out
    assert "95% interval of the change" in ended.out
    assert active in text
    assert str(page) in ended.err
    assert [path.name for path in tmp_path.glob("*.html")] == ["report.html"]


def test_without_calibrator(run: Run, folders, tmp_path, artifacts_dir, models_dir):
    active = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    page = tmp_path / "report.html"
    where = ("--images", folders[0], "--labels", folders[1], "--out", page)
    ended = run("evaluate", *where, "--calibrator", "none", "--worst", 0)

    assert ended.code == 0, ended.err
    assert "change" not in ended.out
    assert active not in page.read_text("utf-8")
    assert not re.search("data:image/(jpeg|png)", page.read_text("utf-8"))


def test_model_without_active_calibrator_says_so(run: Run, folders, tmp_path):
    where = ("--images", folders[0], "--labels", folders[1], "--out", tmp_path / "report.html")
    ended = run("evaluate", *where, "--tta", "flip")

    assert ended.code == 0, ended.err
    assert "tiny has no active calibrator" in ended.err
    assert "two, mirrored" in (tmp_path / "report.html").read_text("utf-8")


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
    ("spoil", "words"),
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
def test_folders_that_cannot_be_used(run: Run, folders, tmp_path, spoil, words):
    spoil(*folders)
    page = tmp_path / "report.html"
    ended = run("evaluate", "--images", folders[0], "--labels", folders[1], "--out", page)

    assert ended.code == 2
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert not page.exists()


@pytest.mark.parametrize(
    ("options", "words"),
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
def test_arguments_that_cannot_be_used(run: Run, folders, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    ended = run("evaluate", "--images", folders[0], "--labels", folders[1], *options)

    assert ended.code == 2
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert not list(tmp_path.glob("*.html"))


def test_calibrator_of_another_model_is_refused(run: Run, folders, artifacts_dir, models_dir):
    other = publish_temperature(artifacts_dir, write_onnx_model(models_dir, "other", 4), 2)
    where = ("--model", "tiny", "--images", folders[0], "--labels", folders[1])
    ended = run("evaluate", *where, "--calibrator", other)

    assert ended.code == 2
    assert "expected a calibrator of tiny, got one of other" in ended.err


def test_a_running_service_is_measured_as_it_answers(
    run: Run, folders, tmp_path, artifacts_dir, models_dir, make_server: MakeServer
):
    active = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    url = make_server(api_tokens="alpha")
    here, there = tmp_path / "here.html", tmp_path / "there.html"
    where = ("--images", folders[0], "--labels", folders[1])
    ours = run("evaluate", *where, "--out", here)
    theirs = run("evaluate", *where, "--out", there, "--url", url, "--token", "alpha")
    rows = [dict(figure_rows(ended.out)) for ended in (ours, theirs)]

    assert theirs.code == 0, theirs.err
    assert active in there.read_text("utf-8")
    for name in ("mIoU", "Accuracy"):
        assert rows[0][name] == rows[1][name]
    # Confidence comes with eleven bits.
    assert rows[1]["Image-wise ECE"][0] == pytest.approx(rows[0]["Image-wise ECE"][0], abs=1e-3)
    assert "NLL" in rows[0]


def figure_rows(text: str) -> Iterator[tuple[str, list[float]]]:
    """Read the printed table."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("\u2502 ").split("\u2502")]
        if len(cells) > 1:
            yield cells[0], [float(c) for c in cells[1:3] if re.fullmatch(r"[0-9.]+", c)]


def test_a_service_that_refuses_says_why(run: Run, folders, tmp_path, make_server: MakeServer):
    url = make_server(api_tokens="alpha")
    where = ("--images", folders[0], "--labels", folders[1], "--out", tmp_path / "a.html")
    wrong = run("evaluate", *where, "--url", url, "--token", "beta")
    unknown = run("evaluate", *where, "--url", url, "--token", "alpha", "--calibrator", "x")

    assert wrong.code == unknown.code == 2
    assert "expected a bearer token" in wrong.err
    assert "expected the id of a calibrator" in unknown.err
