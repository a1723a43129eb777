"""The page: well-formed, without scripts, escaped, and with the measured values."""

import base64
import hashlib
import io
import math
import re
import xml.etree.ElementTree as ET
from copy import copy
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from app.calibration.methods.identity import Identity
from app.calibration.metrics.evaluation import Evaluation
from app.calibration.metrics.intervals import Interval
from app.cli.evaluation import image_thumbnails
from app.datasets.images import find_pairs
from app.evaluation.charts import Stage, reliability_diagram, risk_coverage_diagram
from app.evaluation.evaluate import Comparison, LocalModel, Options, evaluate_model
from app.evaluation.fit_images import SharedImages
from app.evaluation.formatting import headline, metric_rows, number, percent, points, signed
from app.evaluation.html_report import TEMPLATES, render
from app.evaluation.resampling import ResamplingUnits
from app.inference.model_card import read_model_folder
from app.inference.predictor import open_predictor
from app.serving.segmenter import find_calibrator
from app.storage.artifacts import ArtifactStore
from app.storage.manifest import StoredCalibrator
from tests.factories.models import write_onnx_model
from tests.factories.service import GREEN, RED, publish_temperature, solid, thirds

HOSTILE = '</style><script>alert("1")</script>&amp;'
VOID_ELEMENTS = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Parses a page, and asserts that it is well-formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.tags.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open[-2:] or "th" in self.open[-2:]:
            self.rows[-1][-1] += data
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def images(self, subtype: str) -> list[tuple[dict[str, str | None], bytes]]:
        """Return attributes and file of the images of media types `image/<subtype>`, a pattern."""
        found = []
        for tag, attributes in self.tags:
            start, _, data = str(attributes.get("src")).partition(",")
            if tag == "img" and re.fullmatch(f"data:image/({subtype});base64", start):
                found.append((attributes, base64.b64decode(data, validate=True)))
        return found

    def row(self, name: str) -> list[str]:
        """Return the cells of the row that begins with a name."""
        found = [[cell.strip() for cell in row] for row in self.rows if row[0].strip() == name]
        assert len(found) == 1, f"expected one row {name}, got {found}"
        return found[0]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Evaluate four images, with and without a calibrator; a file and a class name hold HTML."""
    root = tmp_path_factory.mktemp("page")
    classes = [{"name": HOSTILE, "color": "#804020"}, {"name": "green", "color": "#00ff00"},
               {"name": "blue", "color": "#0000ff"}]  # fmt: skip
    model = write_onnx_model(root / "models", "tiny", title=HOSTILE, classes=classes)
    wrong_third = np.repeat([[0] * 4 + [1] * 4 + [0] * 4], 8, axis=0)
    sets = {
        'a"><b>&': (thirds(), wrong_third),
        "dull": (np.full((20, 30, 3), 120, np.uint8), np.ones((20, 30))),
        "good": (solid(GREEN), np.ones((8, 12))),
        "void": (solid(RED), np.full((8, 12), 255)),
    }
    for name, (image, labels) in sets.items():
        for folder, values in (("images", image), ("labels", labels)):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(np.asarray(values, np.uint8)).save(root / folder / f"{name}.png")
    version = publish_temperature(root / "artifacts", model, 2)
    predictor = open_predictor(read_model_folder(model), "cpu", 1)
    stored = find_calibrator(ArtifactStore(root / "artifacts"), predictor.folder, version)
    pairs = find_pairs(root / "images", root / "labels")
    options = Options(ignore_index=255, max_pixels=10_000)

    def run(calibrator: object) -> tuple[Comparison, str]:
        subject = LocalModel(predictor, stored if calibrator else None, options.max_pixels)
        done = evaluate_model(subject, pairs, options, lambda: None)
        return done, render(done, {i: image_thumbnails(subject, done, i) for i in done.worst()})

    return {"with": run(True), "without": run(False)}


@pytest.fixture(params=["with", "without"])
def either(request, evaluated):
    return evaluated[request.param]


def test_page_is_well_formed(either):
    _, text = either
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert [tag for tag, _ in page.tags if tag in ("h1", "main")] == ["h1", "main"]
    assert page.texts["title"][0] == "tiny: evaluation of masks and confidence"
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_page_loads_nothing_and_runs_nothing(either):
    _, text = either
    assert "http:" not in text
    assert "https:" not in text
    page = Page(text)
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in page.tags)
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name) is None or str(attributes[name]).startswith("data:image/")
    for _, svg in page.images(r"svg\+xml"):
        elements = list(ET.fromstring(svg).iter())
        assert not any("script" in element.tag for element in elements)
        links = [v for e in elements for k, v in e.items() if k.endswith("href") or "url(" in v]
        assert links
        assert all(re.fullmatch(r"(url\()?#\w+\)?", link) for link in links)


def test_content_security_policy_allows_only_the_pages_style(either):
    _, text = either
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    hashed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'sha256-{hashed}'"


def test_untrusted_names_are_escaped(either):
    _, text = either
    page = Page(text)
    assert "<script" not in text
    assert HOSTILE in page.texts["header"][0]
    assert page.row(HOSTILE)
    assert 'a"><b>&.png' in page.texts["h3"]


def test_metrics_on_the_page_are_those_of_the_evaluation(evaluated):
    done, text = evaluated["with"]
    page = Page(text)
    assert done.after is not None
    assert done.difference is not None
    before, after = done.before.evaluation.result(), done.after.evaluation.result()
    for name, key in (("Image-wise ECE", "ece_image"), ("Pooled ECE", "ece_pooled"), ("NLL", "nll"),
                      ("Brier", "brier"), ("AURC", "aurc"), ("mIoU", "miou"),
                      ("Misprediction AUROC", "auroc_misprediction")):  # fmt: skip
        cells = page.row(name)
        assert cells[1:3] == [number(getattr(before, key)), number(getattr(after, key))]
    assert page.row("Boundary ECE")[1:3] == [
        number(done.before.boundary_ece), number(done.after.boundary_ece)
    ]  # fmt: skip
    assert page.row("MCE")[2] == number(done.after.evaluation.bins.mce())
    # Two thirds of `a` and all of `good` are right of 96 each; of `dull`, 600 grey pixels, none.
    assert page.row("Accuracy")[1] == "0.2020" == number((64 + 96) / 792)
    assert page.row("Correct pixels")[1] == percent((64 + 96) / 792)
    assert page.texts["h1"] == [headline(done.before, done.after)]
    assert "Image-wise ECE with the calibrator is" in text
    assert "fewer than 10 blocks of 8 images give no confidence interval" in text


def test_intervals_on_the_page_are_those_of_the_evaluation(evaluated):
    done, _ = evaluated["with"]
    rng = np.random.default_rng(0)
    images = [done.after.images[0]._replace(ece=float(ece)) for ece in rng.uniform(size=10)]
    after = copy(done.after)
    after.images = images
    groups = ResamplingUnits.of(range(10), 10)
    ten = replace(done, after=after, units=groups, difference=Interval(-0.2, -0.31, -0.125))
    text = render(ten, {})
    ece = groups.interval([image.ece for image in images])
    assert f"by group from {number(ece.low)} to {number(ece.high)}" in text
    assert f"by group from {signed(-0.31)} to {signed(-0.125)}" in text


@pytest.mark.parametrize(
    ("shared", "words", "warns"),
    [
        (None, "does not record the images of its fit", False),
        (SharedImages(0, 0, 0, 0), "None of the images is among those", False),
        (SharedImages(2, 1, 0, 1), "2 of 4 images are among those", True),
    ],
)
def test_page_says_whether_its_images_are_those_of_the_fit(evaluated, shared, words, warns):
    done, _ = evaluated["with"]
    page = Page(render(replace(done, shared=shared), {}))
    assert words in page.texts["header"][0]
    assert any(tag == "p" and attrs.get("class") == "worse" for tag, attrs in page.tags) == warns


def test_page_without_calibrator_says_nothing_of_its_fit(evaluated):
    assert "its fit" not in evaluated["without"][1]


def test_charts_show_the_curves_of_the_evaluation(evaluated):
    done, text = evaluated["with"]
    sides: dict[Stage, Evaluation] = {
        "before": done.before.evaluation,
        "after": done.after.evaluation,
    }
    charts = [svg for _, svg in Page(text).images(r"svg\+xml")]
    assert charts == [
        reliability_diagram({stage: side.reliability() for stage, side in sides.items()}),
        risk_coverage_diagram(
            {stage: s.confidence_histogram.risk_coverage() for stage, s in sides.items()}
        ),
    ]


def test_classes_on_the_page_are_those_of_the_evaluation(evaluated):
    done, text = evaluated["without"]
    page = Page(text)
    row = done.served.classes()[1]
    assert row.pixels == 32 + 600 + 96
    assert page.row("green")[1:] == [
        percent(728 / 792), percent(128 / 728), number(row.iou), number(row.dice),
        percent(128 / 792), "100.0%", percent(row.predicted.confidence),
        points(row.predicted.confidence - 1),
        number(row.predicted.ece),
    ]  # fmt: skip
    assert page.row("blue")[1] == "0.0%"


def test_page_without_calibrator_has_no_comparison(evaluated):
    _, text = evaluated["without"]
    page = Page(text)
    assert "none: plain softmax" in text
    assert len(page.row("NLL")) == 3
    assert "Change" not in text
    assert all(b">uncalibrated<" in svg for _, svg in page.images(r"svg\+xml"))
    assert not any(b">calibrated<" in svg for _, svg in page.images(r"svg\+xml"))


def test_images_to_inspect(evaluated):
    done, text = evaluated["without"]
    page = Page(text)
    images = page.images("jpeg|png")
    assert len(page.texts["article"]) == len(done.worst()) == 3
    assert len(images) == 12
    for attributes, data in images:
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == tuple(int(attributes[side] or 0) for side in ("width", "height"))
    # `dull` has a confidence of 1/3 in a wrong label, `a` a high one in a third that is wrong.
    assert page.texts["h3"][:2] == ["dull.png", 'a"><b>&.png']
    assert ["most errors at 90%" in article for article in page.texts["article"]] == [
        False, True, False
    ]  # fmt: skip


def test_images_can_be_left_out(evaluated):
    done, _ = evaluated["with"]
    text = render(done, {})
    assert Page(text).images("jpeg|png") == []
    assert "Images to inspect" not in text


def test_one_image_gives_no_interval(evaluated):
    done, _ = evaluated["with"]
    one = find_pairs(done.pairs[0].image.parent, done.pairs[0].labels.parent)[:1]
    predictor = open_predictor(done.folder, "cpu", 1)
    subject = LocalModel(predictor, StoredCalibrator(done.manifest, Identity(3)), 10_000)
    alone = evaluate_model(subject, one, done.options, lambda: None)
    assert alone.difference is not None
    assert math.isnan(alone.difference.low)
    text = render(alone, {})
    assert "blocks of 8 images give no confidence interval" in text
    assert "nan" not in " ".join(" ".join(row) for row in Page(text).rows).lower()


def test_direction_of_a_change_is_named(evaluated):
    done, _ = evaluated["with"]
    for row in metric_rows(done.before, done.after):
        assert row.after is not None
        if row.direction == "better":
            assert (row.after < row.before) == (row.better == "lower")
    by_name = {row.name: row for row in metric_rows(done.before, done.after)}
    assert by_name["mIoU"].direction == "same"
    assert by_name["Mean confidence"].direction == ""


def test_style_has_dark_and_print_rules_and_loads_nothing():
    style = (TEMPLATES / "report.css").read_text("utf-8")
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style
