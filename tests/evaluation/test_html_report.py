"""The page as a browser gets it: whole, quiet, escaped, and with the numbers that were measured."""

import base64
import hashlib
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from app.calibration.methods.identity import Identity
from app.cli.evaluate import image_views
from app.datasets.images import find_pairs
from app.evaluation.evaluate import Comparison, LocalModel, Options, evaluate
from app.evaluation.formatting import headline, metric_rows, number, percent, points
from app.evaluation.html_report import TEMPLATES, render
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
    """Reads a page, and holds it to being well-formed."""

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

    def row(self, name: str) -> list[str]:
        """The cells of the row that begins with a name."""
        found = [[cell.strip() for cell in row] for row in self.rows if row[0].strip() == name]
        assert len(found) == 1, f"expected one row {name}, got {found}"
        return found[0]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Four images, one of a hostile name, with a hostile class, with and without a calibrator."""
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
        done = evaluate(subject, pairs, options, lambda: None)
        return done, render(done, {i: image_views(subject, done, i) for i in done.worst()})

    return {"with": run(True), "without": run(False)}


@pytest.fixture(params=["with", "without"])
def either(request, evaluated):
    return evaluated[request.param]


def test_page_is_well_formed_and_says_so(either):
    _, text = either
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert [tag for tag, _ in page.tags if tag in ("h1", "main")] == ["h1", "main"]
    assert page.texts["title"][0] == "tiny: how far its confidence can be trusted"
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


def test_page_forbids_itself_everything_but_its_own_style(either):
    _, text = either
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    hashed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'sha256-{hashed}'"


def test_names_from_outside_are_text(either):
    _, text = either
    page = Page(text)
    assert "<script" not in text
    assert HOSTILE in page.texts["header"][0]
    assert page.row(HOSTILE)
    assert 'a"><b>&.png' in page.texts["h3"]


def test_figures_on_the_page_are_those_measured(evaluated):
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
    assert page.row("Right pixels")[1] == percent((64 + 96) / 792)
    assert page.texts["h1"] == [headline(done.before, done.after)]
    for end in (done.difference.low, done.difference.high):
        assert number(end) in text


def test_classes_on_the_page_are_those_measured(evaluated):
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


def test_page_without_calibrator_compares_nothing(evaluated):
    _, text = evaluated["without"]
    page = Page(text)
    assert "none: plain softmax" in text
    assert len(page.row("NLL")) == 3
    assert "Change" not in text


def test_images_to_look_at(evaluated):
    done, text = evaluated["without"]
    page = Page(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(page.texts["article"]) == len(done.worst()) == 3
    assert len(images) == 12
    for attributes in images:
        data = base64.b64decode(str(attributes["src"]).split(",", 1)[1], validate=True)
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == tuple(int(attributes[side] or 0) for side in ("width", "height"))
    # `dull` says 1/3 of a wrong label; `a` is sure of a third that is wrong.
    assert page.texts["h3"][:2] == ["dull.png", 'a"><b>&.png']
    assert ["most errors at 90%" in article for article in page.texts["article"]] == [
        False, True, False
    ]  # fmt: skip


def test_images_can_be_left_out(evaluated):
    done, _ = evaluated["with"]
    text = render(done, {})
    assert "<img" not in text
    assert "Images to look at" not in text
    Page(text)


def test_only_one_image_gives_no_interval(evaluated):
    done, _ = evaluated["with"]
    one = find_pairs(done.pairs[0].image.parent, done.pairs[0].labels.parent)[:1]
    predictor = open_predictor(done.folder, "cpu", 1)
    subject = LocalModel(predictor, StoredCalibrator(done.manifest, Identity(3)), 10_000)
    alone = evaluate(subject, one, done.options, lambda: None)
    assert alone.difference is not None
    assert math.isnan(alone.difference.low)
    text = render(alone, {})
    assert "one image gives no interval" in text
    assert "nan" not in " ".join(" ".join(row) for row in Page(text).rows).lower()


def test_figures_say_what_is_better(evaluated):
    done, _ = evaluated["with"]
    for figure in metric_rows(done.before, done.after):
        assert figure.after is not None
        if figure.direction == "better":
            assert (figure.after < figure.before) == (figure.better == "lower")
    by_name = {figure.name: figure for figure in metric_rows(done.before, done.after)}
    assert by_name["mIoU"].direction == "same"
    assert by_name["Mean confidence"].direction == ""


def test_style_suits_dark_screens_and_paper_and_loads_nothing():
    style = (TEMPLATES / "report.css").read_text("utf-8")
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style
