"""The calibration flow: split, fit, select, test, gate, publish and activate."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from app.calibration.base import FitContext
from app.calibration.certification import LEVELS
from app.calibration.dataset import IGNORE, InMemory, LabelledImage
from app.calibration.methods.temperature import Temperature
from app.calibration.metrics.intervals import Interval, bootstrap_mean
from app.calibration.registry import auto_methods
from app.calibration.report import build_report
from app.calibration.selection import fit
from app.calibration.splits import split_images
from app.datasets.arrays import open_npy
from app.datasets.logits import DenseLogits
from app.errors import ArgumentError
from app.inference.model_card import read_model_folder
from app.recalibration import PublishedCalibrator, calibrate, candidates, decide_activation
from app.schemas.fit import FitOptions
from app.storage.artifacts import ArtifactStore
from tests.factories.models import write_onnx_model
from tests.factories.service import publish_temperature
from tests.factories.validation_data import overconfident

METHODS = ("identity", "temperature")
CONTEXT = FitContext(seed=3)


def labelled(temperature: float, images: int = 12, side: int = 24, seed: int = 0) -> InMemory:
    """Build maps of 3 classes whose labels are drawn from softmax(logits / temperature).

    The best temperature is known; above 1 the logits are over-confident.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(images):
        calibrated_logits = 2 * torch.randn(3, side, side, generator=generator)
        rows = calibrated_logits.softmax(0).flatten(1).T
        labels = rows.multinomial(1, generator=generator)[:, 0].reshape(side, side)
        made.append(LabelledImage(calibrated_logits * temperature, labels))
    return InMemory(3, made)


def replaced(data: InMemory, index: int, image: LabelledImage) -> InMemory:
    return InMemory(3, [image if i == index else old for i, old in enumerate(data.images)])


def test_fit_recovers_temperature_of_overconfident_logits():
    outcome = fit(labelled(temperature=3), METHODS, CONTEXT)

    assert outcome.chosen.method == "temperature"
    assert outcome.chosen.calibrator.summary()["temperature"] == pytest.approx(3, rel=0.05)
    before = outcome.uncalibrated.evaluation.result().ece_image
    assert outcome.chosen.evaluation.result().ece_image < before / 2
    assert outcome.ece_difference.high < 0
    assert outcome.better


def test_calibrated_logits_do_not_improve():
    outcome = fit(labelled(temperature=1), METHODS, CONTEXT)
    temperature = outcome.candidates[1].calibrator.summary()["temperature"]

    assert temperature == pytest.approx(1, rel=0.05)
    assert outcome.ece_difference.mean == pytest.approx(0, abs=0.01)


def test_tie_selects_first_method():
    data = labelled(temperature=1)
    outcome = fit(data, ("identity", "identity"), CONTEXT)

    assert outcome.chosen is outcome.candidates[0]
    assert outcome.ece_difference == (0, 0, 0)
    assert not outcome.better


def test_metrics_are_of_the_test_images():
    outcome = fit(labelled(temperature=2, images=15), METHODS, CONTEXT)
    split = outcome.split

    assert (len(split.fit), len(split.select), len(split.test)) == (6, 2, 7)
    assert outcome.images == 15
    assert outcome.uncalibrated.evaluation.result().images == 7
    assert outcome.uncalibrated.evaluation.result().pixels == 7 * 24 * 24


def test_selection_does_not_use_the_test_images():
    data, worst = labelled(temperature=3, images=20), labelled(temperature=1 / 3, images=20, seed=1)
    split = split_images(range(20), CONTEXT.seed, choosing=True)
    mixed = InMemory(3, [(worst if i in split.test else data).images[i] for i in range(20)])
    outcome = fit(mixed, METHODS, CONTEXT)
    by_method = {one.method: one for one in outcome.candidates}
    tested = {name: one.evaluation.result().ece_image for name, one in by_method.items()}

    assert outcome.chosen.method == "temperature"
    assert by_method["temperature"].score_select < by_method["identity"].score_select
    assert tested["temperature"] > tested["identity"]
    assert not outcome.better  # by the test images


def test_few_images_both_select_and_test_and_certify_nothing():
    outcome = fit(labelled(temperature=3, images=9), METHODS, CONTEXT)
    document = build_report(outcome, False, "")

    assert outcome.split.select == outcome.split.test
    assert not outcome.split.independent_test
    assert outcome.certification.thresholds == ()
    assert "too few" in set(outcome.certification.uncertified.values()).pop()
    assert document["images"]["test_images_used_for_selection"]  # type: ignore[index]


def test_thresholds_are_certified_on_the_test_images():
    outcome = fit(labelled(temperature=3, images=120, side=8), METHODS, CONTEXT)
    found, skipped = outcome.certification.thresholds, outcome.certification.uncertified

    assert {level.images for level in found} == {54}
    assert [level.max_error for level in found] == sorted(level.max_error for level in found)
    assert found[-1].max_error == 0.3
    assert all(level.error <= level.max_error for level in found)
    assert {*skipped, *(level.max_error for level in found)} == set(LEVELS)


def test_table_and_map_of_the_same_pixels_get_the_same_thresholds():
    data = labelled(temperature=3, images=30)
    rows = [LabelledImage(image.logits.flatten(1), image.labels.flatten()) for image in data.images]
    as_map, as_table = fit(data, METHODS, CONTEXT), fit(InMemory(3, rows), METHODS, CONTEXT)

    assert as_map.certification == as_table.certification
    assert as_map.reference is not None
    assert as_table.reference is None  # rows need not make up a whole image


@pytest.mark.parametrize("methods", [("lts",), ("identity", "lts")])
def test_spatial_method_is_fitted_and_tested_on_whole_images(methods):
    outcome = fit(labelled(temperature=3, images=10, side=12), methods, CONTEXT)

    assert outcome.candidates[-1].method == "lts"
    assert outcome.candidates[-1].evaluation.result().pixels == len(outcome.split.test) * 144
    assert outcome.reference is not None


def test_method_with_too_few_pixels_is_skipped():
    small = labelled(temperature=2, images=12, side=1)
    outcome = fit(small, ("identity", "cmsap"), CONTEXT)

    assert "as many pixels as its expert has parameters, 6, got 1" in outcome.skipped["cmsap"]


def test_seed_determines_split_and_fit():
    data = labelled(temperature=3)
    first, again = (fit(data, ("temperature",), FitContext(seed=5)) for _ in range(2))
    other = fit(data, ("temperature",), FitContext(seed=6))

    assert first.chosen.calibrator.summary() == again.chosen.calibrator.summary()
    assert first.chosen.calibrator.summary() != other.chosen.calibrator.summary()
    assert first.seed == 5


def test_candidate_is_compared_with_active_calibrator():
    data = labelled(temperature=3)
    active = Temperature(3)
    active.beta.fill_(1 / 3)
    outcome = fit(data, METHODS, CONTEXT, active)

    assert outcome.current.calibrator is active
    assert outcome.ece_difference.mean == pytest.approx(0, abs=0.01)
    assert outcome.uncalibrated.evaluation.result().ece_image > 0.1


def test_void_pixels_are_ignored():
    data = labelled(temperature=3)
    image = data.images[0]
    holes = image.labels.clone()
    holes[:12] = IGNORE
    wild = image.logits.clone()
    wild[:, :12] = torch.nan
    voided = fit(replaced(data, 0, LabelledImage(wild, holes)), METHODS, CONTEXT)
    cut = LabelledImage(image.logits[:, 12:], image.labels[12:])
    without = fit(replaced(data, 0, cut), METHODS, CONTEXT)

    assert voided.chosen.calibrator.summary() == without.chosen.calibrator.summary()


def test_table_is_fitted_like_a_map():
    data = labelled(temperature=3)
    rows = [LabelledImage(image.logits.flatten(1), image.labels.flatten()) for image in data.images]
    as_map, as_table = fit(data, METHODS, CONTEXT), fit(InMemory(3, rows), METHODS, CONTEXT)

    assert as_table.chosen.calibrator.summary() == as_map.chosen.calibrator.summary()


def test_label_keeping_method_changes_no_label():
    outcome = fit(labelled(temperature=3), METHODS, CONTEXT)

    assert [candidate.labels_changed for candidate in outcome.candidates] == [0.0, 0.0]
    assert {c.evaluation.result().miou for c in outcome.candidates} == {
        outcome.uncalibrated.evaluation.result().miou
    }


def test_one_image_is_rejected():
    with pytest.raises(ArgumentError, match="at least 2 images"):
        fit(labelled(temperature=2, images=1), METHODS, CONTEXT)


def test_unknown_method_is_rejected_by_name():
    with pytest.raises(ArgumentError, match="magic"):
        fit(labelled(temperature=2), ("magic",), CONTEXT)


def test_set_without_labelled_held_out_pixels_is_rejected():
    image = labelled(temperature=2, images=1).images[0]
    void = LabelledImage(image.logits, torch.full_like(image.labels, IGNORE))

    for images in ([image, void], [void, image], [void, void]):
        with pytest.raises(ArgumentError, match="labelled pixel"):
            fit(InMemory(3, images), METHODS, CONTEXT)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logit_that_is_not_finite_is_rejected(value):
    data = labelled(temperature=2)
    broken = data.images[0].logits.clone()
    broken[1, 2, 3] = value

    with pytest.raises(ArgumentError, match="finite logits"):
        fit(replaced(data, 0, LabelledImage(broken, data.images[0].labels)), METHODS, CONTEXT)


def test_unknown_method_among_others_is_rejected():
    with pytest.raises(ArgumentError, match="magic"):
        fit(labelled(temperature=2), ("identity", "magic"), CONTEXT)  # unknown is not undetermined
    assert fit(labelled(temperature=2), METHODS, CONTEXT).skipped == {}


def test_fit_reports_progress_and_stops_if_callback_raises():
    reported: list[tuple[str, float]] = []
    fit(labelled(temperature=2), METHODS, FitContext(0, lambda *now: reported.append(now)))

    fractions = [fraction for _, fraction in reported]

    assert any("temperature" in stage for stage, _ in reported)
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] < fractions[-1] <= 1

    def cancel(_stage: str, _fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(labelled(temperature=2), METHODS, FitContext(0, cancel))


def test_report_lists_metrics_of_every_candidate():
    outcome = fit(labelled(temperature=3), METHODS, CONTEXT)
    document = build_report(outcome, activated=True, why="better")
    metrics = {
        "method", "images", "pixels", "ece_image", "ece_pooled", "nll", "brier",
        "auroc_misprediction", "aurc", "miou", "accuracy", "labels_changed", "fit_seconds",
    }  # fmt: skip
    rows = [document["uncalibrated"], *document["candidates"]]  # type: ignore[misc]

    assert [row["method"] for row in rows] == ["none", "identity", "temperature"]
    assert all(metrics <= row.keys() for row in rows)
    assert document["images"] == {
        "fit": 4, "select": 2, "held_out": 6, "test_images_used_for_selection": False,
    }  # fmt: skip
    assert document["certification"]["images"] == 6  # type: ignore[index]
    assert document["certification"]["resolution"] == "logits"  # type: ignore[index]
    assert document["chosen"] == "temperature"
    assert document["seed"] == 3
    assert document["decision"] == {"activated": True, "why": "better"}
    assert document["ece_difference"].keys() == {"mean", "low", "high"}  # type: ignore[attr-defined]


def test_logits_near_the_largest_float_are_fitted():
    images = [
        LabelledImage(logits.sign() * 3e38, labels, image)
        for logits, labels, image in labelled(temperature=3).images
    ]
    outcome = fit(InMemory(3, images), auto_methods(allow_label_changes=True), CONTEXT)
    assert all(math.isfinite(one.evaluation.result().ece_image) for one in outcome.candidates)


@pytest.mark.parametrize(("side", "resolution"), [(6, "logits"), (12, "image")])
def test_resolution_of_certificates_is_that_of_the_label_maps(tmp_path, side, resolution):
    logits, labels = overconfident(20, 6, 6)
    labels = labels.repeat(side // 6, axis=1).repeat(side // 6, axis=2)
    files = {}
    for name, values in {"logits": logits, "labels": labels}.items():
        np.save(tmp_path / f"{name}.npy", values)
        files[name] = open_npy(tmp_path / f"{name}.npy", name)
    data = DenseLogits(files["logits"], files["labels"], None, 3, 255)
    outcome = fit(data, ("temperature",), CONTEXT)
    assert build_report(outcome, True, "")["certification"]["resolution"] == resolution  # type: ignore[index]


def test_report_lists_error_detection_metrics():
    document = build_report(fit(labelled(temperature=3), ("selective",), CONTEXT), True, "")
    metrics = document["selector"]
    assert isinstance(metrics, dict)
    assert metrics.keys() == {"accuracy", "recall", "precision"}
    assert all(0 <= metrics[name] <= 1 for name in ("accuracy", "recall"))
    assert document["candidates"][0]["selector"] == metrics  # type: ignore[index]
    assert document["uncalibrated"]["selector"] is None  # type: ignore[index]
    assert (
        build_report(fit(labelled(temperature=3), METHODS, CONTEXT), True, "")["selector"] is None
    )


def test_groups_are_kept_together_and_are_the_unit_of_intervals():
    whole = labelled(temperature=3, images=60, side=8)

    @dataclass(frozen=True)
    class Groups(InMemory):
        groups: tuple[int, ...] = ()

    groups = tuple(image // 6 for image in range(60))
    outcome = fit(Groups(3, whole.images, groups), METHODS, CONTEXT)
    split = outcome.split
    of_parts = [{groups[i] for i in images} for images in (split.fit, split.select, split.test)]

    assert [len(part) for part in of_parts] == [3, 1, 6]
    assert outcome.certification.images == outcome.test_groups == 6
    pairs = zip(outcome.chosen.evaluation.images, outcome.current.evaluation.images, strict=True)
    values = [after.ece - before.ece for after, before in pairs]
    means = np.reshape(values, (6, 6)).mean(axis=1)
    assert outcome.ece_difference == pytest.approx(bootstrap_mean(means.tolist(), CONTEXT.seed))


def test_certificates_count_groups_with_the_mean_over_their_images():
    """Twenty groups of six copies certify what twenty images do, and less than 120 images."""
    alone = labelled(temperature=3, images=60, side=8)

    @dataclass(frozen=True)
    class Groups(InMemory):
        groups: tuple[int, ...] = ()

    copies = [image for image in alone.images for _ in range(6)]
    groups = tuple(copy // 6 for copy in range(360))
    single, grouped, independent = (
        fit(data, ("temperature",), CONTEXT).certification
        for data in (alone, Groups(3, copies, groups), InMemory(3, copies))
    )
    assert grouped.images == single.images == 27
    assert independent.images == 162
    levels = [[level.max_error for level in found.thresholds] for found in (single, grouped)]
    assert levels[0] == levels[1]
    assert len(independent.thresholds) > len(grouped.thresholds)


def test_fit_without_certificates_keeps_the_rest(folder, store):
    done = calibrate(folder, labelled(3, images=60), store, options(certify=False))
    certified = calibrate(folder, labelled(3, images=60), store, options(activate="never"))

    assert done.activated
    assert done.manifest.thresholds == ()
    assert len(certified.manifest.thresholds) > 0
    reasons = done.report["certification"]["uncertified"]  # type: ignore[index]
    assert reasons == {str(level): "the fit was asked to certify nothing" for level in LEVELS}
    assert done.report["candidates"][0]["ece_image"] == certified.manifest.ece_after  # type: ignore[index]
    assert store.load("tiny", done.manifest.id, folder.sha256).reference is not None


def test_report_holds_reliability_curves_before_and_after():
    curves = build_report(fit(labelled(temperature=3), METHODS, CONTEXT), True, "")["reliability"]
    assert isinstance(curves, dict)

    def gap(curve: list[dict[str, float]]) -> float:
        weighed = [b["pixels"] * abs(b["confidence"] - b["accuracy"]) for b in curve]
        return sum(weighed) / sum(b["pixels"] for b in curve)

    assert gap(curves["after"]) < gap(curves["before"]) / 2


def test_report_holds_risk_coverage_curves():
    outcome = fit(labelled(temperature=3), METHODS, CONTEXT)
    curves = build_report(outcome, True, "")["risk_coverage"]
    assert isinstance(curves, dict)
    assert curves.keys() == {"before", "after"}
    for curve in curves.values():
        coverage = [step["coverage"] for step in curve]
        assert coverage == sorted(coverage)
        assert coverage[-1] == 1
        wrong = 1 - outcome.chosen.evaluation.result().accuracy
        assert curve[-1]["risk"] == pytest.approx(wrong)


def test_report_holds_null_for_undefined_metrics():
    image = labelled(temperature=2, images=1).images[0]
    right = LabelledImage(image.logits, image.logits.argmax(0))  # never wrong: no AUROC
    document = build_report(fit(InMemory(3, [right, right]), METHODS, CONTEXT), False, "")

    assert document["uncalibrated"]["auroc_misprediction"] is None  # type: ignore[index]
    assert document["ece_difference"]["low"] is None  # type: ignore[index]


@pytest.fixture
def folder(tmp_path):
    return read_model_folder(write_onnx_model(tmp_path / "models", "tiny"))


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "artifacts")


def options(**given: object) -> FitOptions:
    return FitOptions.parse({"method": "temperature", "seed": CONTEXT.seed, **given})


def reason(published: PublishedCalibrator) -> str:
    decision = published.report["decision"]
    assert isinstance(decision, dict)
    return str(decision["why"])


def test_better_calibrator_is_published_and_activated(folder, store):
    done = calibrate(folder, labelled(3), store, options(note="first"))
    stored = store.load("tiny", done.manifest.id, folder.sha256)

    assert done.activated
    assert store.active_id("tiny") == done.manifest.id
    assert reason(done).startswith("better: the NLL of correctness changes by -")
    assert stored.manifest.method == "temperature"
    assert stored.manifest.summary["temperature"] == pytest.approx(3, rel=0.05)
    assert (stored.manifest.images, stored.manifest.note) == (12, "first")
    assert stored.manifest.ece_after < stored.manifest.ece_before
    assert store.report("tiny", done.manifest.id) == done.report


def test_calibrator_that_is_not_better_is_published_but_not_activated(folder, store):
    first = calibrate(folder, labelled(3), store, options())
    again = calibrate(folder, labelled(3), store, options())

    assert not again.activated
    assert reason(again).startswith("not shown to be better: ")
    assert first.manifest.id in reason(again)
    assert store.active_id("tiny") == first.manifest.id
    assert len(store.versions("tiny")) == 2


@pytest.mark.parametrize(("activate", "temperature"), [("always", 1.0), ("never", 3.0)])
def test_activate_option_overrides_the_gate(folder, store, activate, temperature):
    done = calibrate(folder, labelled(temperature), store, options(activate=activate))

    assert done.activated == (activate == "always")
    assert activate in reason(done)
    assert store.active_id("tiny") == (done.manifest.id if activate == "always" else None)


def test_version_of_replaced_model_is_not_compared_with(folder, store, tmp_path):
    publish_temperature(tmp_path / "artifacts", folder.path.parent, 3, sha256="0" * 64)
    done = calibrate(folder, labelled(3), store, options())

    assert done.activated
    assert "against the uncalibrated model" in reason(done)


def test_damaged_active_calibrator_is_replaced_by_a_new_fit(folder, store, tmp_path):
    active = publish_temperature(tmp_path / "artifacts", folder.path.parent, 3)
    (tmp_path / "artifacts" / "tiny" / active / "manifest.json").write_text("damaged")
    done = calibrate(folder, labelled(3), store, options())

    assert store.active_id("tiny") == done.manifest.id


def test_method_that_data_does_not_determine_is_skipped():
    one_class = InMemory(
        3, [LabelledImage(i.logits, torch.zeros_like(i.labels)) for i in labelled(3).images]
    )
    outcome = fit(one_class, ("identity", "vector_ti"), CONTEXT)

    assert [candidate.method for candidate in outcome.candidates] == ["identity"]
    assert "at least two classes" in outcome.skipped["vector_ti"]
    assert build_report(outcome, False, "")["skipped"] == outcome.skipped
    with pytest.raises(ArgumentError, match="at least two classes"):
        fit(one_class, ("vector_ti",), CONTEXT)


def test_methods_that_change_labels_need_permission():
    keeping = ("identity", "temperature", "ets", "isotonic", "cmsap", "selective", "contextual")
    assert candidates(FitOptions()) == keeping
    assert candidates(FitOptions(allow_label_changes=True)) == (*keeping, "vector_ti", "dirichlet")
    assert candidates(FitOptions(method="vector", allow_label_changes=True)) == ("vector",)
    with pytest.raises(ArgumentError, match="expected allow_label_changes with the method vector"):
        candidates(FitOptions(method="vector"))
    with pytest.raises(ArgumentError, match=r"expected auto or one of .*, got magic"):
        candidates(FitOptions(method="magic"))


def test_progress_is_over_all_methods_and_never_falls():
    reported: list[tuple[str, float]] = []
    context = FitContext(
        seed=3, progress=lambda stage, fraction: reported.append((stage, fraction))
    )
    fit(labelled(3), ("identity", "temperature", "ets", "isotonic"), context)
    fractions = [fraction for _, fraction in reported]

    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= 0.25
    assert 0.9 < fractions[-1] <= 1
    stages = {stage for stage, _ in reported}
    assert {"reading", "fitting ets", "choosing", "measuring", "certifying"} < stages


def test_reason_of_a_decision_holds_no_nan():
    alone = Interval(-0.02, math.nan, math.nan)
    outcome = SimpleNamespace(
        ece_difference=alone, aurc_difference=alone, score_difference=alone, better=False,
        p_value=0.5, test_groups=1, split=SimpleNamespace(test=[0], independent_test=True),
    )  # fmt: skip
    activated, why = decide_activation(outcome, "if_better", None)  # type: ignore[arg-type]
    assert not activated
    assert "image-wise ECE by -0.0200 (too few images for an interval)" in why
    assert "fewer than six images can show nothing" in why
    assert "nan" not in why
