"""A new calibrator is one new file: found, fitted by name and by `auto`, stored and loaded."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.calibration import methods
from app.calibration.base import FitContext
from app.calibration.methods.selective import Selective
from app.calibration.registry import auto_methods, build, discover, require_options
from app.calibration.selection import fit
from app.errors import ArgumentError
from app.inference.model_card import read_model_folder
from app.recalibration import calibrate, candidates
from app.schemas.fit import FitOptions
from app.storage.artifacts import ArtifactStore
from tests.factories.logits import nll, synthetic_set
from tests.factories.models import write_onnx_model

SOURCE = '''
"""Smoothing: mix the softmax with the uniform distribution."""

from typing import ClassVar

import torch
from torch import Tensor

from app.calibration.base import FitContext, Invariances, Pixelwise
from app.calibration.dataset import ValidationSet, pixels


class Smoothing(Pixelwise):
    """(1 - a) softmax(z) + a/K, with the mean confidence equal to the accuracy."""

    method: ClassVar[str] = "smoothing"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=True)
    auto_rank: ClassVar[int | None] = 2
    fraction: Tensor

    @classmethod
    def required_pixels(cls, num_classes: int) -> int:
        return 100 * num_classes

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("fraction", torch.zeros(()))

    def calibrate_rows(self, rows: Tensor) -> Tensor:
        mixed = rows.softmax(-1) * (1 - self.fraction) + self.fraction / self.num_classes
        return mixed.log()

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        logits, labels = (torch.cat(parts) for parts in zip(*pixels(data), strict=True))
        confidence, predicted = logits.softmax(1).max(1)
        excess = confidence.mean() - (predicted == labels).float().mean()
        self.fraction.copy_((excess / (confidence.mean() - 1 / self.num_classes)).clamp(0, 1))
'''
SEEDED = FitContext(seed=1)


@pytest.fixture
def add_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder a part of the package of methods, for one test."""
    folder = tmp_path / "methods"
    folder.mkdir()
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    discover.cache_clear()
    yield folder
    for path in folder.glob("*.py"):
        sys.modules.pop(f"{methods.__name__}.{path.stem}", None)
        vars(methods).pop(path.stem, None)
    discover.cache_clear()


@pytest.fixture
def smoothing(add_method: Path) -> str:
    (add_method / "smoothing.py").write_text(SOURCE)
    return "smoothing"


def test_new_file_is_discovered_in_its_place(smoothing):
    assert auto_methods(allow_label_changes=False)[1:5] == (
        "temperature", "ets", "smoothing", "isotonic",
    )  # fmt: skip
    assert candidates(FitOptions(allow_label_changes=True))[3] == smoothing
    assert candidates(FitOptions(method=smoothing)) == (smoothing,)
    stacked = build(f"selective+{smoothing}", 3)
    assert stacked.auto_rank is None
    assert type(stacked.base) is discover()[smoothing]


def test_new_method_is_fitted_by_name_stored_and_loaded(smoothing, tmp_path):
    folder = read_model_folder(write_onnx_model(tmp_path / "models", "tiny"))
    store, data = ArtifactStore(tmp_path / "artifacts"), synthetic_set(3)
    done = calibrate(
        folder, data, store, FitOptions(method=smoothing, activate="always", seed=SEEDED.seed)
    )
    loaded = ArtifactStore(tmp_path / "artifacts").active("tiny", folder.sha256)

    assert loaded is not None
    assert loaded.manifest.id == done.manifest.id
    assert loaded.manifest.method == loaded.calibrator.method == smoothing
    assert loaded.calibrator.get_buffer("fraction") > 0.05
    assert nll(loaded.calibrator, data) < nll(build("identity", 3), data)


def test_new_method_is_a_candidate_of_auto(smoothing, tmp_path):
    folder = read_model_folder(write_onnx_model(tmp_path / "models", "tiny"))
    done = calibrate(
        folder,
        synthetic_set(3),
        ArtifactStore(tmp_path / "artifacts"),
        FitOptions(seed=SEEDED.seed),
    )

    tried = [candidate["method"] for candidate in done.report["candidates"]]  # type: ignore[attr-defined]
    assert tried == list(auto_methods(allow_label_changes=False))


def test_new_method_is_skipped_where_it_requires_more_pixels(smoothing):
    outcome = fit(synthetic_set(3, side=6), ("identity", smoothing), SEEDED)
    assert [candidate.method for candidate in outcome.candidates] == ["identity"]
    assert "100, got " in outcome.skipped[smoothing]


def test_two_classes_of_one_name_are_refused(smoothing, add_method):
    (add_method / "another.py").write_text(SOURCE)
    with pytest.raises(ValueError, match="expected one class for each method name"):
        discover()


def test_name_that_no_version_id_may_hold_is_refused(add_method):
    (add_method / "hyphen.py").write_text(SOURCE.replace('"smoothing"', '"label-smoothing"'))
    with pytest.raises(ValueError, match="expected a method name of a-z, 0-9 and _"):
        discover()


def test_methods_are_those_of_the_package_alone():
    assert "smoothing" not in discover()
    assert all(kind.method == name for name, kind in discover().items())


def test_options_are_arguments_of_the_method_and_of_its_base():
    hard = build("selective", 3, {"routing": "hard", "mispredicted_temperature": 2.0})
    assert isinstance(hard, Selective)
    assert hard.soft.item() == 0
    assert hard.mispredicted == 2
    stacked = build("selective+metacal", 3, {"routing": "hard", "rejected_temperature": 20.0})
    assert isinstance(stacked, Selective)
    assert stacked.soft.item() == 0
    assert stacked.base.get_buffer("beta_rejected").item() == pytest.approx(0.05)


@pytest.mark.parametrize("method", ["temperature", "selective", "auto"])
def test_option_of_another_method_is_rejected(method):
    with pytest.raises(
        ArgumentError,
        match=rf"rejected_temperature with one of the methods metacal, .*, got it with {method}",
    ):
        require_options(method, {"rejected_temperature": 2.0})


def test_every_option_of_a_method_is_a_field_of_a_fit():
    known = {name for calibrator in discover().values() for name in calibrator.options}
    assert known == {"routing", "mispredicted_temperature", "rejected_temperature"}
    given = FitOptions(routing="soft", mispredicted_temperature=2, rejected_temperature=3)
    assert set(given.method_options) == known
    assert FitOptions().method_options == {}
