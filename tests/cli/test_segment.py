"""`segcal segment`: files, table, options and errors, local and over HTTP."""

import csv
import threading
from pathlib import Path

import numpy as np
import pytest

from app.cli.figures import Figures
from app.cli.segment_files import completed
from app.schemas.calibrator import CertifiedThreshold
from tests.cli.test_main import Run, run
from tests.conftest import MakeServer
from tests.factories.service import (
    RED,
    THIRDS_MASK,
    decoded,
    encoded,
    publish_temperature,
    solid,
    thirds,
)

__all__ = ["run"]  # the fixture


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Write `thirds.png` and `red.jpg`."""
    folder = tmp_path / "image_files"
    folder.mkdir()
    (folder / "thirds.png").write_bytes(encoded(thirds()))
    (folder / "red.jpg").write_bytes(encoded(solid(RED, 16, 16), "JPEG"))
    return [folder / "thirds.png", folder / "red.jpg"]


def read_csv(out: Path) -> list[dict[str, str]]:
    with (out / "figures.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_segment_writes_masks_confidences_and_csv(run: Run, images, tmp_path, artifacts_dir):
    active = publish_temperature(artifacts_dir, artifacts_dir.parent / "models" / "tiny", 2)
    out = tmp_path / "out"
    result = run("segment", *images, "--out", out)
    rows = read_csv(out)

    assert result.code == 0
    assert "2 of 2 images" in result.err
    assert sorted(path.name for path in out.iterdir()) == [
        "figures.csv", "red.confidence.png", "red.mask.png",
        "thirds.confidence.png", "thirds.mask.png",
    ]  # fmt: skip
    mask = decoded((out / "thirds.mask.png").read_bytes())
    confidence = decoded((out / "thirds.confidence.png").read_bytes())
    assert mask.mode == "P"
    assert (np.asarray(mask) == THIRDS_MASK).all()
    assert confidence.mode == "L"
    assert confidence.size == (12, 8)
    assert [row["image"] for row in rows] == [str(path) for path in images]
    assert {(row["model"], row["calibrator"]) for row in rows} == {("tiny", active)}
    assert (rows[0]["width"], rows[0]["height"]) == ("12", "8")
    assert (rows[1]["width"], rows[1]["height"]) == ("16", "16")
    assert all(0 < float(row["mean_confidence"]) < 1 for row in rows)
    assert all(float(row["abstained_fraction"]) == 0 for row in rows)


def test_segment_over_http_writes_the_same_as_locally(
    run: Run, images, tmp_path, make_server: MakeServer
):
    url = make_server(api_tokens="alpha")
    local, remote = tmp_path / "local", tmp_path / "remote"

    assert run("segment", *images, "--out", local).code == 0
    assert run("segment", *images, "--out", remote, "--url", url, "--token", "alpha").code == 0
    for path in local.glob("*.png"):
        assert path.read_bytes() == (remote / path.name).read_bytes()
    for local_row, remote_row in zip(read_csv(local), read_csv(remote), strict=True):
        mean_confidence = float(remote_row.pop("mean_confidence"))
        assert float(local_row.pop("mean_confidence")) == pytest.approx(mean_confidence)
        assert local_row == remote_row


def test_segment_over_http_prints_the_error_of_the_service(run: Run, images, tmp_path, make_server):
    url = make_server(api_tokens="alpha")
    result = run("segment", *images, "--out", tmp_path / "out", "--url", url, "--token", "beta")

    assert result.code == 2
    assert "expected a bearer token" in result.err


def test_segment_without_a_service_is_an_error(run: Run, images, tmp_path):
    url = "http://127.0.0.1:9"
    result = run("segment", images[0], "--out", tmp_path / "out", "--url", url)

    assert result.code == 2
    assert f"expected a service at {url}" in result.err


def test_segment_continues_after_a_bad_image_and_exits_with_1(run: Run, images, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    out = tmp_path / "out"
    result = run("segment", bad, *images, "--out", out)

    assert result.code == 1
    assert f"{bad}: expected a JPEG, PNG, WebP, TIFF or BMP image" in result.err
    assert "2 of 3 images" in result.err
    assert [row["image"] for row in read_csv(out)] == [str(path) for path in images]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{image}"], "--out"),
        (["nowhere.png", "--out", "{out}"], "got nowhere.png"),
        (["{image}", "--out", "{image}"], "expected a folder, got the file"),
        (["{image}", "--out", "{out}", "--model", "street"], "expected one of ['tiny']"),
        (["{image}", "--out", "{out}", "--url", "ftp://x"], "--url: expected http:// or https://"),
        (["{image}", "--out", "{out}", "--max-error", "2"], "--max-error"),
        (
            ["{image}", "--out", "{out}", "--max-error", "0.1", "--min-confidence", "0.5"],
            "at most one of --min-confidence and --max-error",
        ),
        (["{image}", "--out", "{out}", "--calibrator", "x"], "expected the id of a calibrator"),
    ],
)
def test_segment_rejects_wrong_arguments(run: Run, images, tmp_path, arguments, message):
    filled = [a.format(image=images[0], out=tmp_path / "out") for a in arguments]
    result = run("segment", *filled)

    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


def write_images(folder: Path, *names: str) -> Path:
    """Write images of thirds into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        kind = "JPEG" if name.endswith("jpg") else "PNG"
        (folder / name).write_bytes(encoded(thirds(), kind))
    return folder


def test_folders_and_globs_are_searched_for_images(run: Run, tmp_path):
    folder = write_images(tmp_path / "a", "b.png", "a.jpg", ".hidden.png")
    (folder / "notes.txt").write_text("no image")
    write_images(folder / "below", "c.png")
    glob = f"{tmp_path}/a/**/*.png"
    again = folder / "below" / ".." / "b.png"
    result = run("segment", folder, glob, again, "--out", tmp_path / "out")

    assert result.code == 0, result.err
    found = [row["image"] for row in read_csv(tmp_path / "out")]
    assert found == [str(folder / name) for name in ("a.jpg", "b.png", "below/c.png")]
    empty = run("segment", write_images(tmp_path / "empty"), "--out", tmp_path / "out")
    assert "expected an image, a folder with some or a glob" in empty.err


def test_later_runs_append_to_the_table_and_overwrite_no_other_image(run: Run, tmp_path):
    first, other = write_images(tmp_path / "a", "x.png"), write_images(tmp_path / "b", "x.jpg")
    (other / "x.png").write_bytes(encoded(solid(RED)))
    out = tmp_path / "out"
    assert run("segment", first, "--out", out).code == 0
    before = (out / "x.mask.png").read_bytes()
    assert run("segment", other, "--out", out).code == 0
    assert run("segment", first, "--out", out, "--calibrator", "none").code == 0

    lines = (out / "figures.csv").read_text().splitlines()
    assert [line.startswith("image,name,") for line in lines] == [True, False, False, False, False]
    assert [(row["image"], row["name"]) for row in read_csv(out)] == [
        (str(first / "x.png"), "x"),
        (str(other / "x.jpg"), "b-x"),
        (str(other / "x.png"), "b-x-2"),
        (str(first / "x.png"), "x"),
    ]
    assert (out / "x.mask.png").read_bytes() == before
    assert (np.asarray(decoded((out / "b-x-2.mask.png").read_bytes())) == 0).all()


def test_table_with_other_columns_is_not_appended_to(run: Run, images, tmp_path):
    (tmp_path / "figures.csv").write_text("image,model\na.png,tiny\n")
    result = run("segment", *images, "--out", tmp_path)

    assert result.code == 2
    assert "--out: expected a folder whose figures.csv has the columns image,name," in result.err
    assert "got 'image,model'" in result.err
    assert (tmp_path / "figures.csv").read_text() == "image,model\na.png,tiny\n"


def test_options_act_locally_as_over_http(
    run: Run, images, tmp_path, models_dir, artifacts_dir, make_server: MakeServer
):
    level = CertifiedThreshold(0.1, 0.7, 0.1, 0.9, 0.06, 40)
    version = publish_temperature(artifacts_dir, models_dir / "tiny", 2, thresholds=(level,))
    service = ["--url", make_server()]
    cases: list[list[object]] = [
        ["--calibrator", "none", "--tta", "flip", "--overlay", "--heatmap"],
        ["--calibrator", version, "--min-confidence", 0.9],
        ["--max-error", 0.1],
    ]
    for number, options in enumerate(cases):
        local, remote = tmp_path / f"local{number}", tmp_path / f"remote{number}"
        for out, where in ((local, []), (remote, service)):
            result = run("segment", *images, "--out", out, *options, *where)
            assert result.code == 0, result.err
        for path in local.glob("*.png"):
            assert path.read_bytes() == (remote / path.name).read_bytes(), path.name
        local_rows, remote_rows = read_csv(local), read_csv(remote)
        for row in (*local_rows, *remote_rows):
            row["mean_confidence"] = f"{float(row['mean_confidence']):.6f}"
        assert local_rows == remote_rows
    assert {path.suffixes[0] for path in (tmp_path / "local0").glob("*.png")} == {
        ".mask", ".confidence", ".overlay", ".heatmap",
    }  # fmt: skip
    assert {row["abstained_fraction"] for row in read_csv(tmp_path / "local1")} == {"1.0"}
    certified = read_csv(tmp_path / "local2")
    assert {(row["threshold"], row["guarantee"]) for row in certified} == {("0.7", "not-measured")}


@pytest.mark.parametrize("remote", [False, True])
def test_missing_certificate_is_reported_once_with_the_option(
    run: Run, images, tmp_path, make_server: MakeServer, remote
):
    where = ["--url", make_server()] if remote else []
    result = run("segment", *images, "--out", tmp_path / "out", "--max-error", 0.05, *where)

    assert result.code == 2
    assert result.err.count("certified for --max-error 0.05") == 1
    assert "max_error" not in result.err


def test_several_images_are_segmented_at_once_and_yielded_in_order():
    together = threading.Barrier(2, timeout=60)

    def work(path: Path) -> Figures:
        together.wait()
        return Figures(path.name, "none", 1, 1, 1.0, 0.0, None, None, None)

    paths = [Path(f"{number}.png") for number in range(8)]
    done = [(path, future.result().model) for path, future in completed(work, paths, 2)]

    assert done == [(path, path.name) for path in paths]


def test_threads_wait_once_enough_results_are_pending():
    begun: list[Path] = []

    def work(path: Path) -> Figures:
        begun.append(path)
        return Figures(path.name, "none", 1, 1, 1.0, 0.0, None, None, None)

    results = completed(work, [Path(f"{number}.png") for number in range(50)], 1)
    next(results)
    assert len(begun) <= 3
