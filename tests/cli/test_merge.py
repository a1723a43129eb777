"""`segcal calibrate --shard` and `segcal merge` on files, by the command line."""

import sys

import pytest

from app.storage.artifacts import ArtifactStore
from tests.cli.test_main import Run, labelled, run

__all__ = ["labelled", "run"]  # fixtures


def test_merge_fits_on_all_shards(run: Run, labelled, artifacts_dir, tmp_path):
    images, labels = labelled
    data = ("--images", images, "--labels", labels, "--method", "temperature", "--note", "merged")
    for number in (1, 2, 3):
        done = run("calibrate", *data, "--shard", f"{number}/3", "--out", tmp_path / "shards")
        assert done.code == 0, done.err
        assert f"shard-{number}-of-3" in done.err
    assert ArtifactStore(artifacts_dir).versions("tiny") == []

    done = run("merge", tmp_path / "shards")
    (manifest,) = ArtifactStore(artifacts_dir).versions("tiny")
    assert done.code == 0, done.err
    assert f"{manifest.id} is active: better: " in done.err
    assert (manifest.images, manifest.note) == (8, "merged")


def test_merge_names_what_is_missing(run: Run, labelled, tmp_path):
    images, labels = labelled
    data = ("--images", images, "--labels", labels, "--out", tmp_path / "shards")
    run("calibrate", *data, "--shard", "2/3")

    done = run("merge", tmp_path / "shards")
    assert done.code == 2
    assert "expected the shards 1 to 3, got none with the number 1, 3" in done.err
    assert "expected a shard or a folder of shards" in run("merge", images).err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--shard", "1/2"), "expected --out"),
        (("--ray", "local"), "expected --out"),
        (("--out", "shards"), "expected --shard without --ray and --url, and --out with one"),
        (("--shard", "1/2", "--out", "x", "--url", "http://x"), "expected --shard without"),
        (("--ray", "local", "--out", "x", "--url", "http://x"), "at most one of --url and --ray"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, reason, run: Run, labelled):
    images, labels = labelled
    done = run("calibrate", "--images", images, "--labels", labels, *options)
    assert done.code == 2
    assert reason in done.err


def test_without_ray_the_extra_is_named(run: Run, labelled, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = run("segment", labelled[0], "--out", tmp_path / "out", "--ray", "local")
    assert done.code == 2
    assert "expected the extra packages of `pip install segcal[ray]`, got" in done.err
