"""Images and results in a bucket, without Ray; the store is in memory."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.cli import object_figures
from app.cli.figures import FILE, Figures, open_table
from app.errors import ArgumentError
from app.storage import object_files
from app.storage.object_files import ObjectFile, ObjectFolder
from app.storage.objects import Objects
from tests.cli.test_main import Run, run
from tests.storage.buckets import memory_store

__all__ = ["run"]  # the fixture
FIGURES = Figures("tiny", "none", 8, 6, 0.5, 0.0, None, None, None)


@pytest.fixture(autouse=True)
def stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the objects directly below each URL in a store in memory."""
    opened: defaultdict[str, Any] = defaultdict(memory_store)
    monkeypatch.setattr(object_files, "open_objects", lambda url: Objects(opened[url]))


def names(folder: ObjectFolder) -> list[str]:
    return [each.name for each in folder.iterdir()]


def test_object_has_the_parts_of_its_url():
    found = ObjectFile.parse("s3://bucket/street/image.1.png")
    assert (found.name, found.stem, found.suffix) == ("image.1.png", "image.1", ".png")
    assert (found.parent.name, str(found)) == ("street", "s3://bucket/street/image.1.png")
    assert ObjectFolder.parse("s3://bucket/street/") / "image.1.png" == found
    with pytest.raises(ArgumentError, match="a URL that begins with s3, gs or az, got ftp://x/y"):
        ObjectFolder.parse("ftp://x/y")


def test_missing_object_is_no_file():
    folder = ObjectFolder("gs://bucket/images")
    with pytest.raises(FileNotFoundError, match="no such object"):
        (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(b"first")
    (folder / "a.png").write_bytes(b"second")
    assert (folder / "a.png").read_bytes() == b"second"


def test_rows_of_a_table_are_put_in_parts_until_all_are_written(monkeypatch):
    monkeypatch.setattr(object_figures, "PART_ROWS", 2)
    monkeypatch.setattr(object_figures, "PART_S", 600)
    out, images = ObjectFolder("s3://bucket/out"), ObjectFolder("s3://bucket/images")
    parts = ObjectFolder("s3://bucket/out/figures")

    def interrupted_run() -> None:
        with open_table(out).appending() as write:
            for number in range(5):
                assert len(names(parts)) == number // 2
                write(images / f"{number}.png", str(number), FIGURES)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert len(names(parts)) == 3
    assert FILE not in names(out)

    table = open_table(out)
    assert table.earlier == {images / f"{number}.png" for number in range(5)}
    with table.appending() as write:
        write(images / "4.png", "4", FIGURES)
        write(images / "5.png", "5", FIGURES)
    assert names(parts) == []
    lines = (out / FILE).read_bytes().decode().splitlines()
    assert lines[0] == ",".join(table.columns)
    assert [line.split(",")[1] for line in lines[1:]] == ["0", "1", "2", "3", "4", "5"]


def test_images_of_one_stem_have_names_of_their_own():
    table = open_table(ObjectFolder("s3://bucket/out"))
    assert table.name(ObjectFile.parse("s3://bucket/east/a.png")) == "a"
    assert table.name(ObjectFile.parse("s3://bucket/west/a.png")) == "west-a"
    assert table.name(Path("/north/a.png")) == "north-a"


def test_prefix_and_object_are_segmented_into_a_prefix(run: Run, tmp_path):
    images = ObjectFolder("s3://bucket/images")
    for name in ("a.png", "b.png"):
        path = tmp_path / name
        Image.fromarray(np.full((6, 8, 3), 200, np.uint8)).save(path)
        (images / name).write_bytes(path.read_bytes())
    assert (
        run("segment", tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out").code == 0
    )

    out = ObjectFolder("s3://bucket/out")
    assert run("segment", f"{images}/b.png", "--out", out).code == 0
    assert names(out) == ["b.confidence.png", "b.mask.png", FILE]
    assert run("segment", f"{images}/", "--out", f"{out}/").code == 0
    for kind in ("mask", "confidence"):
        for name in ("a", "b"):
            file = f"{name}.{kind}.png"
            assert (out / file).read_bytes() == (tmp_path / "out" / file).read_bytes()


def test_shards_are_kept_in_a_folder(run: Run):
    data = ("--images", "s3://bucket/images", "--labels", "s3://bucket/labels")
    done = run("calibrate", *data, "--shard", "1/2", "--out", "s3://bucket/shards")

    assert done.code == 2
    assert "--out: expected a folder, from which the fit reads the shards, got a URL" in done.err
