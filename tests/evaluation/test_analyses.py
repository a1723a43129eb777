"""Analyses of a tiny model on drawn images, whose values are computed by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from app.calibration.metrics.intervals import Interval
from app.datasets.images import Pair, find_masks
from app.errors import ArgumentError
from app.evaluation.analyses import (
    CROP_SIZES,
    TEMPERATURES,
    Analyses,
    AnalysisOptions,
    analyse,
    evaluations,
)
from app.evaluation.analysis_charts import bar_diagram, crop_diagram, uiou_diagram
from app.evaluation.analysis_document import analysis_document
from app.evaluation.analysis_figures import analysis_figures, temperature_finding
from app.evaluation.charts import Stage
from app.evaluation.evaluate import (
    EvaluatedModel,
    ImagePredictions,
    LocalModel,
    Options,
    evaluate_model,
)
from app.evaluation.html_report import render
from app.inference.model_card import read_model_folder
from app.inference.predictor import open_predictor
from app.serving.segmenter import find_calibrator
from app.storage.artifacts import ArtifactStore
from tests.evaluation.test_charts import Chart
from tests.evaluation.test_evaluate import write_set
from tests.evaluation.test_html_report import Page
from tests.factories.models import write_onnx_model
from tests.factories.service import (
    BLUE,
    GREEN,
    RED,
    SATURATED,
    SATURATED_AT_2,
    publish_temperature,
    solid,
)

OPTIONS = Options(ignore_index=255, max_pixels=10_000)
HALF = np.repeat([[0] * 6 + [1] * 6], 8, axis=0)  # of a red image, the left half is right


@pytest.fixture
def model(tmp_path) -> LocalModel:
    return local(tmp_path, "tiny")


def local(root, name: str, **card: object) -> LocalModel:
    """Write a model with a calibrator of temperature 2."""
    folder = write_onnx_model(root / "models", name, **card)  # type: ignore[arg-type]
    version = publish_temperature(root / "artifacts", folder, 2)
    predictor = open_predictor(read_model_folder(folder), "cpu", 1)
    stored = find_calibrator(ArtifactStore(root / "artifacts"), predictor.folder, version)
    return LocalModel(predictor, stored, OPTIONS.max_pixels)


def analysed(
    model: EvaluatedModel,
    pairs: list[Pair],
    others: tuple[EvaluatedModel, ...] = (),
    options: Options = OPTIONS,
    **analysis: object,
) -> Analyses:
    chosen = AnalysisOptions(**analysis)  # type: ignore[arg-type]
    return analyse(model, others, pairs, options, chosen, lambda: None)


def at(temperature: float) -> float:
    """Return the confidence of a saturated colour at a temperature."""
    return math.exp(4 / temperature) / (math.exp(4 / temperature) + 2)


class LogitsUnknown:
    """A model that predicts no other temperatures, as a running service does not."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self.folder, self.manifest, self.fit_images = model.folder, model.manifest, None

    def predict(self, pair, temperatures=()) -> ImagePredictions:
        return self._model.predict(pair)

    def with_tta(self, tta):
        return LogitsUnknown(self._model.with_tta(tta))


# Crop size


def test_crops_of_evenly_confident_right_pixels_have_one_error(model, tmp_path):
    pairs = write_set(tmp_path, a=(solid(RED), np.zeros((8, 12))),
                      void=(solid(RED), np.full((8, 12), 255)))  # fmt: skip
    done = analysed(model, pairs)
    expected: dict[Stage, float] = {"before": SATURATED, "after": SATURATED_AT_2}
    for stage, confidence in expected.items():
        errors = done.crop_errors(stage)
        assert list(errors) == list(CROP_SIZES)
        assert [error.mean for error in errors.values()] == pytest.approx(
            [1 - confidence] * 5, abs=1e-6
        )
    assert math.isnan(done.images.crops["before"][1][32])  # of the image without labels


def test_crops_are_equal_before_and_after_calibration(model, tmp_path):
    """Half of a large image is wrong, so that the error of a crop depends on its place."""
    image, labels = solid(RED, 60, 90), np.repeat([[0] * 45 + [1] * 45], 60, axis=0)
    pairs = write_set(tmp_path, a=(image, labels))
    crops = analysed(replace(model, calibrator=None), pairs).images.crops
    again = analysed(model, pairs).images.crops
    assert again["before"] == crops["before"]
    whole = {stage: sizes[0][512] for stage, sizes in again.items()}
    assert whole == pytest.approx({"before": SATURATED - 0.5, "after": SATURATED_AT_2 - 0.5})
    # A right fraction r of a crop has the error |confidence - r|: equal crops have equal r.
    assert crops["before"][0][32] != pytest.approx(whole["before"])


# Scale and capacity


def test_scales_and_models_are_evaluated_as_by_themselves(model, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    pairs = write_set(tmp_path, a=(noise, np.zeros((24, 36))))
    other = local(tmp_path, "other")
    steps: list[int] = []
    done = analyse(model, [other], pairs, OPTIONS, AnalysisOptions(), lambda: steps.append(1))

    alone = evaluate_model(model.with_tta("multiscale"), pairs, OPTIONS, lambda: None)
    assert done.multiscale.after is not None
    assert alone.after is not None
    assert done.multiscale.after.evaluation.result() == alone.after.evaluation.result()
    assert done.multiscale.before.overall != done.comparison.before.overall
    assert done.others[0].folder.card.name == "other"
    assert done.others[0].served.overall == done.comparison.served.overall
    assert len(steps) == evaluations(1) == 3


def test_models_of_other_classes_are_rejected(model, tmp_path):
    pairs = write_set(tmp_path, a=(solid(RED), np.zeros((8, 12))))
    four = local(tmp_path, "four", num_classes=4)
    with pytest.raises(ArgumentError, match=r"the classes of tiny, .* got four with"):
        analysed(model, pairs, (four,))


# UIoU


def test_uiou_without_masks_counts_every_rejected_pixel_as_wrong(model, tmp_path):
    pairs = write_set(tmp_path, a=(solid(RED), HALF))
    uiou = analysed(model, pairs, thetas=[0.5, 0.9]).images.uiou
    # Kept: class 0 has 48 hits and 48 false ones, class 1 is missed. Rejected: none is right.
    assert uiou["before"].uiou() == pytest.approx([(0.5 + 0) / 2] * 2)
    assert uiou["after"].uiou() == pytest.approx([0.25, 0])  # the confidence is .787
    assert uiou["after"].auiou() == pytest.approx(0.125)


def test_uiou_credits_rejected_pixels_that_a_mask_marks_as_invalid(model, tmp_path):
    pairs = write_set(tmp_path, a=(solid(RED), HALF))
    (tmp_path / "invalid").mkdir()
    Image.fromarray(HALF.astype(np.uint8) * 255).save(tmp_path / "invalid" / "a.png")
    masks = find_masks(tmp_path / "invalid", pairs)
    done = analysed(model, pairs, thetas=[0.5, 0.9], invalid=masks)
    # At .9 the calibrated model rejects all: class 0 is all wrong, class 1 all credited.
    assert done.images.uiou["after"].uiou() == pytest.approx([0.25, 0.5])
    assert done.with_invalid


def test_thetas_are_ten_between_one_over_k_and_one_by_default(model, tmp_path):
    pairs = write_set(tmp_path, a=(solid(RED), HALF))
    thetas = analysed(model, pairs).images.uiou["before"].thetas
    assert thetas == pytest.approx(np.linspace(1 / 3, 1, 10).tolist())


def test_masks_of_all_images_and_of_their_size_are_needed(model, tmp_path):
    pairs = write_set(tmp_path, a=(solid(RED), HALF))
    (tmp_path / "invalid").mkdir()
    with pytest.raises(ArgumentError, match=r"a mask for each of 1 images.*such as \['a'\]"):
        find_masks(tmp_path / "invalid", pairs)
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "invalid" / "a.png")
    masks = find_masks(tmp_path / "invalid", pairs)
    with pytest.raises(ArgumentError, match=r"a\.png: expected a mask of \(8, 12\)"):
        analysed(model, pairs, invalid=masks)


# Temperature


def test_higher_temperature_lowers_both_ece_and_auiou_of_an_overconfident_model(model, tmp_path):
    pairs = write_set(tmp_path, a=(solid(RED), HALF))
    done = analysed(model, pairs, thetas=[0.5, 0.9])
    scaled = done.images.scaled
    assert [one.temperature for one in scaled] == list(TEMPERATURES)
    errors = [done.scaled_error(one).mean for one in scaled]
    assert errors == pytest.approx([at(t) - 0.5 for t in TEMPERATURES])
    assert [one.uiou.auiou() for one in scaled] == pytest.approx([0.25, 0.25, 0.125])
    assert at(1.5) < 0.9 < at(1)
    assert scaled[1].evaluation.result().ece_image == pytest.approx(
        done.comparison.before.evaluation.result().ece_image
    )


@pytest.mark.parametrize(
    ("errors", "areas", "words"),
    [([0.086, 0.051, 0.044], [0.854, 0.844, 0.829], "does not have the highest AUIoU"),
     ([0.02, 0.05, 0.08], [0.854, 0.844, 0.829], "has the highest AUIoU as well")],
)  # fmt: skip
def test_sentence_on_temperatures_follows_the_values(errors, areas, words):
    assert words in temperature_finding(errors, areas)


def test_without_logits_only_the_temperatures_are_left_out(model, tmp_path):
    pairs = write_set(tmp_path, a=(solid(RED), HALF))
    done = analysed(LogitsUnknown(model), pairs)
    assert not done.has_temperatures
    document = analysis_document(done)["analyses"]
    assert isinstance(document, dict)
    assert "without --url" in document["temperature"]["left_out"]
    assert len(document["scale"]) == 2
    *others, temperature = analysis_figures(done)
    assert temperature.chart is None
    assert "without --url" in temperature.text
    assert [figure.title for figure in others if figure.chart is None] == ["Capacity"]


# Document, figures and page


@pytest.fixture
def full(model, tmp_path) -> Analyses:
    """Analyse twelve images of two kinds in groups of one, beside another model."""
    images = {f"{n:02}": (solid((RED, GREEN)[n % 2]), HALF) for n in range(11)}
    pairs = write_set(tmp_path, **images, whole=(solid(BLUE), np.full((8, 12), 2)))
    options = replace(OPTIONS, groups=range(12))
    return analysed(model, pairs, (local(tmp_path, "other"),), options, thetas=[0.5, 0.9])


def test_document_holds_every_analysis_as_json(full):
    document = json.loads(json.dumps(analysis_document(full), allow_nan=False))
    analyses = document["analyses"]
    assert list(analyses) == [
        "correctness", "boundary", "class", "crop_size", "scale", "capacity", "uiou", "temperature"
    ]  # fmt: skip
    assert document["resampling"] == {"unit": "group", "units": 12, "minimum": 10}
    assert document["images_of_the_fit"] is None
    assert document["model"]["before"]["ece_image"]["mean"] == pytest.approx(
        (11 * (SATURATED - 0.5) + 1 - SATURATED) / 12
    )
    correct = analyses["correctness"]["after"]["correct"]
    assert correct["pixels"] == 11 * 48 + 96
    assert correct["confidence"] == pytest.approx(SATURATED_AT_2)
    assert sum(bin_["pixels"] for bin_ in correct["bins"]) == correct["pixels"]
    assert analyses["boundary"]["before"]["boundary"]["accuracy"] == 0.5
    assert [entry["name"] for entry in analyses["capacity"]] == ["tiny", "other"]
    assert analyses["capacity"][1]["bytes"] > 0
    assert analyses["class"][2]["before"]["predicted"]["accuracy"] == 1
    assert [entry["size"] for entry in analyses["crop_size"]] == list(CROP_SIZES)
    assert [entry["scale"] for entry in analyses["scale"]] == ["single", "multi"]
    assert analyses["uiou"]["thetas"] == [0.5, 0.9]
    assert "no pixel counts as invalid" in analyses["uiou"]["invalid"]
    temperatures = analyses["temperature"]
    assert [entry["temperature"] for entry in temperatures] == list(TEMPERATURES)
    low, high = (temperatures[2]["ece_image"][end] for end in ("low", "high"))
    assert low < temperatures[2]["ece_image"]["mean"] < high


def test_page_shows_every_analysis(full):
    page = Page(render(full.comparison, {}, full))
    charts = page.images(r"svg\+xml")
    assert len(charts) == 2 + 8
    texts = page.texts["strong"][2:]
    assert [title.strip() for title in texts] == [
        "Correctness", "Boundary", "Class", "Crop size", "Scale", "Capacity", "UIoU and AUIoU",
        "Temperature: ECE beside AUIoU",
    ]  # fmt: skip
    assert page.row("AUIoU")[1:] == [f"{one.auiou():.4f}" for one in full.images.uiou.values()]
    assert page.row("0.67")[1].startswith(f"{full.scaled_error(full.images.scaled[0]).mean:.4f} (")
    assert "--invalid" in "".join(page.texts["figcaption"])


def test_page_without_analyses_has_none(full):
    assert "<h2>Analyses</h2>" not in render(full.comparison, {})


def test_charts_draw_the_values():
    chart = Chart(uiou_diagram([0.25, 0.75], {"before": [0.5, 0.25], "after": [0.5, 0.125]}))
    assert chart.curve("before") == [pytest.approx(point, abs=1e-4)
                                     for point in ((0.25, 0.5), (0.75, 0.25))]  # fmt: skip
    intervals = {32: Interval(0.2, 0.1, 0.3), 64: Interval(0.1, math.nan, math.nan)}
    crops = Chart(crop_diagram({"before": intervals}))
    (left, high), (right, low) = crops.curve("before")
    assert left < right
    assert high == pytest.approx(2 * low, rel=1e-3)  # the axis begins at 0
    assert {"32", "64"} <= set(crops.texts())


def test_names_in_charts_are_no_formulas():
    names = ["$x_{", "</text><script>"]
    svg = bar_diagram(names, {"before": [Interval(0.1, math.nan, math.nan)] * 2})
    assert b"<script" not in svg
    assert set(names) <= set(Chart(svg).texts())
