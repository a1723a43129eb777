"""Images, label maps and results in a bucket give the files and figures of folders."""

import re
import secrets
from pathlib import Path

import pytest

from app.cli import object_figures
from app.cli import segment_batch as batch
from app.cli.figures import FILE
from app.storage.artifacts import ArtifactStore
from app.storage.object_files import ObjectFile, ObjectFolder
from tests.cli.test_main import Run, run
from tests.factories.service import publish_temperature
from tests.fleet.test_object_store import server
from tests.fleet.test_ray import IMAGES, files, folders, rows, two_actors
from tests.storage.buckets import MotoServer

pytest.importorskip("ray", reason="make fleet installs ray")
pytest.importorskip("moto", reason="make fleet installs moto")
parquet = pytest.importorskip("pyarrow.parquet")

__all__ = ["folders", "run", "server", "two_actors"]  # the fixtures


@pytest.fixture
def url(server: MotoServer) -> str:
    return f"s3://bucket/{secrets.token_hex(4)}"


@pytest.fixture
def prefixes(url: str, folders: tuple[Path, Path]) -> list[ObjectFolder]:
    """Put the images and the label maps into the bucket."""
    found = [ObjectFolder(f"{url}/{folder.name}") for folder in folders]
    for prefix, folder in zip(found, folders, strict=True):
        for path in folder.iterdir():
            (prefix / path.name).write_bytes(path.read_bytes())
    return found


def contents(folder: ObjectFolder) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


@pytest.mark.parametrize("engine", [(), ("--ray", "local")], ids=["plain", "ray"])
def test_segment_puts_the_files_of_a_folder(run: Run, folders, prefixes, url, tmp_path, engine):
    images, _ = prefixes
    (images / "broken.png").write_bytes(b"no image")
    (images / "notes.txt").write_bytes(b"no image's ending")
    run("segment", folders[0], "--out", tmp_path / "plain")
    done = run("segment", images, "--out", f"{url}/out", *engine)

    assert done.code == 1
    assert f"{images}/broken.png: expected a JPEG" in done.err
    assert f"{IMAGES} of {IMAGES + 1} images" in done.err
    out = contents(ObjectFolder(f"{url}/out"))
    written = {name: data for name, data in out.items() if name.endswith(".png")}
    assert written == files(tmp_path / "plain")
    expected = [line.replace(str(folders[0]), str(images)) for line in rows(tmp_path / "plain")]
    assert sorted(out[FILE].decode().splitlines()) == sorted(expected)
    of_batch = {batch.PARQUET, batch.BATCH} if engine else set()
    assert set(out) - set(written) == {FILE} | of_batch  # the parts are joined


def test_parquet_table_names_the_objects(run: Run, prefixes, url, tmp_path):
    images, _ = prefixes
    assert run("segment", images, "--out", f"{url}/out", "--ray", "local").code == 0
    (tmp_path / "table").write_bytes((ObjectFolder(f"{url}/out") / batch.PARQUET).read_bytes())
    table = parquet.read_table(tmp_path / "table")

    assert sorted(table["image"].to_pylist()) == [f"{images}/{n:02}.png" for n in range(IMAGES)]
    assert table.schema.field("mean_confidence").type == "double"


def test_batch_that_died_goes_on_where_it_was(run: Run, prefixes, url, monkeypatch):
    """The process ends at the eleventh row, after two parts of five rows."""
    images, _ = prefixes
    out = ObjectFolder(f"{url}/out")
    monkeypatch.setattr(object_figures, "PART_ROWS", 5)
    monkeypatch.setattr(object_figures, "PART_S", 600)
    put, parts = ObjectFile.write_bytes, list[bytes]()

    def put_two_parts(self: ObjectFile, data: bytes) -> None:
        if self.parent.name == object_figures.PARTS:
            if len(parts) == 2:
                raise KeyboardInterrupt
            parts.append(data)
        put(self, data)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectFile, "write_bytes", put_two_parts)
        assert run("segment", images, "--out", out, "--ray", "local").code != 0
    early = [line.split(",")[1] for part in parts for line in part.decode().splitlines()[1:]]
    assert len(early) == 10
    for name in early:
        (out / f"{name}.mask.png").write_bytes(b"of the first run")

    assert run("segment", images, "--out", out, "--ray", "local").code == 0
    found = contents(out)
    first = {name.partition(".")[0] for name, data in found.items() if data == b"of the first run"}
    assert first == set(early)
    names = [line.split(",")[1] for line in found[FILE].decode().splitlines()[1:]]
    assert sorted(names) == [f"{index:02}" for index in range(IMAGES)]

    other = run("segment", images, "--out", out, "--ray", "local", "--tta", "flip")
    assert other.code == 2
    assert "expected a new folder or the options of" in other.err


@pytest.mark.parametrize("engine", [(), ("--ray", "local")], ids=["plain", "ray"])
def test_evaluation_has_the_page_of_folders(
    run: Run, folders, prefixes, tmp_path, models_dir, artifacts_dir, engine
):
    publish_temperature(artifacts_dir, models_dir / "tiny", temperature=2)
    pages = []
    for name, (images, labels) in {"folders": folders, "prefixes": prefixes}.items():
        page = tmp_path / f"{name}.html"
        data = ("--images", images, "--labels", labels, "--out", page)
        done = run("evaluate", *data, *(engine if name == "prefixes" else ()))
        assert done.code == 0, done.err
        pages.append(re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "", page.read_text("utf-8")))
    assert pages[0] == pages[1]


@pytest.mark.parametrize("engine", ["plain", "ray"])
def test_fit_equals_that_of_folders(run: Run, folders, prefixes, tmp_path, artifacts_dir, engine):
    store, manifests, reports = ArtifactStore(artifacts_dir), [], []
    for name, (images, labels) in {"folders": folders, "prefixes": prefixes}.items():
        data = ("--images", images, "--labels", labels, "--activate", "never")
        on_ray = ("--ray", "local", "--out", tmp_path / "shards")
        divided = name == "prefixes" and engine == "ray"
        known = {one.id for one in store.versions("tiny")}
        done = run("calibrate", *data, *(on_ray if divided else ()), "--note", name)
        assert done.code == 0, done.err
        (manifest,) = [one for one in store.versions("tiny") if one.id not in known]
        manifests.append(manifest)
        reports.append(store.report("tiny", manifest.id))
    for file in ("calibrator.safetensors", "reference.safetensors"):
        assert manifests[0].files[file] == manifests[1].files[file]
    for field in ("gate", "thresholds", "image_hashes"):
        assert reports[0][field] == reports[1][field]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{url}/none", "--out", "out"], "expected an image, a folder with some or a glob, got"),
        (["{url}/images/*.png", "--out", "out"], "expected an object or a prefix of a bucket"),
        (["ftp://bucket/images", "--out", "out"], "a URL that begins with s3, gs or az"),
        (["s3://no-such-bucket/images", "--out", "out"], "expected a bucket that exists"),
        (["{url}/images", "--out", "s3://no-such-bucket/out"], "expected a bucket that exists"),
    ],
)
def test_wrong_url_is_named(run: Run, prefixes, url, arguments, message):
    done = run("segment", *(each.format(url=url) for each in arguments))

    assert done.code == 2
    assert message in done.err


def test_service_gets_no_prefix_for_a_fit(run: Run, prefixes):
    images, labels = prefixes
    done = run("calibrate", "--images", images, "--labels", labels, "--url", "http://localhost:1")

    assert done.code == 2
    assert "expected folders with --url, got" in done.err
