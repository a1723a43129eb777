"""The web page segments images: samples, threshold, zoom, downloads, all states of a request."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from app.imaging.colormap import HEAT
from app.schemas.calibrator import CertifiedThreshold
from tests.factories.models import onnx_network, write_onnx_model
from tests.factories.service import (
    BLUE,
    GREEN,
    RED,
    SATURATED,
    SATURATED_AT_2,
    THIRDS_MASK,
    decoded,
    encoded,
    open_server,
    publish_temperature,
    solid,
    thirds,
)

SAMPLES = Path(__file__).parents[3] / "app" / "api" / "static" / "samples"
LEVEL = CertifiedThreshold(0.1, 0.9, 0.1, 0.75, 0.03, 44)
NUCLEUS = (0x4C, 0xC9, 0xF0)  # the colour of the taxonomy's second class
PROXY_PAGE = "<html><body><h1>502 Bad Gateway</h1></body></html>"
TIMES = "\u00d7"
WIDTHS = [390, 900, 1600]


def choose(page, image, name="thirds.png"):
    """Choose an image, an array or bytes, in the page's file field."""
    data = image if isinstance(image, bytes) else encoded(image)
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})


def wait_for_answer(page):
    page.wait_for_selector("#result:not([hidden]):not([aria-busy])")
    page.wait_for_selector("#status:has-text('Segmented')")


def problem(page):
    page.wait_for_selector("#problem:not([hidden])")
    return page.text_content("#problem-text")


def colors_of(page, *places):
    """Return the colours on the screen at places (x, y), fractions of the image's frame."""
    screen = np.asarray(decoded(page.locator("#canvas").screenshot()).convert("RGB"))
    height, width = screen.shape[:2]
    return [tuple(screen[int(y * height), int(x * width)].tolist()) for x, y in places]


def set_range(page, selector, value):
    page.evaluate(
        "([s, v]) => { const e = document.querySelector(s); e.value = v;"
        " e.dispatchEvent(new Event('input', {bubbles: true})); }",
        [selector, value],
    )


def point_at(page, x, y):
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    return page.text_content("#readout").replace("\u00a0", " ")


def download(page, name):
    with page.expect_download() as saved:
        page.click(f"#download-{name}")
    return Path(saved.value.path()).read_bytes()


def test_default_model_is_selected_and_models_are_told_apart_by_name(make_server, open_page):
    page = open_page(make_server())

    assert page.locator("#model option").all_text_contents() == ["another", "cells (default)"]
    assert page.input_value("#model") == "cells"


def test_sample_is_answered_by_the_model_that_fits_it_after_one_click(make_server, open_page):
    page = open_page(make_server())
    page.select_option("#model", "another")
    page.click("#sample-nuclei")
    wait_for_answer(page)

    assert page.input_value("#model") == "cells"
    assert page.text_content("#summary").startswith("nuclei.png: 520 ")
    assert ", cells, mean confidence" in page.text_content("#summary")
    assert page.locator("#sample-street").count() == 0  # no served model has its classes


def test_sample_in_the_address_is_answered_at_once(make_server, open_page):
    page = open_page(f"{make_server()}/?sample=nuclei")

    wait_for_answer(page)


def test_image_may_be_dropped_anywhere_and_pasted(make_server, open_page):
    page = open_page(make_server())
    send = """([kind, data]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(data)], `${kind}.png`, {type: "image/png"}));
      const options = {bubbles: true, cancelable: true, dataTransfer: transfer,
        clipboardData: transfer};
      const type = kind === "drop" ? DragEvent : ClipboardEvent;
      const event = new type(kind, options);
      document.body.dispatchEvent(event);
    }"""
    for kind in ("drop", "paste"):
        page.evaluate(send, [kind, list(encoded(thirds()))])
        page.wait_for_selector(f"#summary:has-text('{kind}.png')")
    wait_for_answer(page)


def test_camera_image_is_segmented(make_server, open_page):
    page = open_page(make_server(), permissions=["camera"])
    page.click("#camera")
    page.click("#shoot")
    wait_for_answer(page)

    assert page.text_content("#summary").startswith("camera.png")


def test_pixel_is_read_with_calibrated_and_uncalibrated_confidence(
    make_server, open_page, models_dir, artifacts_dir
):
    publish_temperature(artifacts_dir, models_dir / "cells", 2)
    page = open_page(make_server())
    with page.expect_response(lambda r: "calibrator=none" in r.url):
        choose(page, thirds())
    wait_for_answer(page)
    calibrated = f"{100 * round(255 * SATURATED_AT_2) / 255:.1f} %"
    uncalibrated = f"{100 * round(255 * SATURATED) / 255:.1f} %"
    for x, name in [(1.5, "background"), (5.5, "nucleus"), (10.5, "border")]:
        expected = f"{name} at {int(x)}, 3: confidence {calibrated}, {uncalibrated} uncalibrated"
        assert point_at(page, x / 12, 3.5 / 8) == expected


def test_labels_lie_left_of_the_slider_and_confidence_right_of_it(make_server, open_page):
    page = open_page(make_server())
    choose(page, np.full((40, 60, 3), GREEN, np.uint8))
    wait_for_answer(page)
    set_range(page, "#opacity", 100)
    page.focus("#slider")
    page.keyboard.press("Home")
    (right,) = colors_of(page, (0.5, 0.2))
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert page.input_value("#slider") == "4"
    page.keyboard.press("End")
    (left,) = colors_of(page, (0.5, 0.2))

    assert left == NUCLEUS
    assert right == tuple(HEAT[round(255 * SATURATED)])


def test_keys_zoom_and_the_view_stays_sharp(make_server, open_page):
    page = open_page(make_server())
    choose(page, thirds())
    wait_for_answer(page)
    set_range(page, "#slider", 100)
    set_range(page, "#opacity", 100)
    page.focus("#frame")
    for _ in range(3):
        page.keyboard.press("+")
    assert page.text_content("#zoom-value") == f"3.4{TIMES}"
    # The view lies in the middle third and is 3.5 pixels wide; smoothing would mix colours.
    assert set(colors_of(page, *[(x, 0.2) for x in np.linspace(0.05, 0.9, 40)])) == {NUCLEUS}
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("-")
    assert page.text_content("#zoom-value") == f"2.3{TIMES}"
    page.keyboard.press("0")
    assert page.text_content("#zoom-value") == f"1{TIMES}"


def test_classes_are_switched_off_in_the_legend_and_missing_in_the_cut_out(make_server, open_page):
    page = open_page(make_server())
    choose(page, thirds())
    wait_for_answer(page)
    set_range(page, "#slider", 100)
    page.uncheck("#legend tr:nth-child(1) input")
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")

    assert colors_of(page, (0.1, 0.2)) == [RED]
    alpha = np.asarray(decoded(download(page, "cut-out")))[..., 3]
    assert (alpha == np.where(THIRDS_MASK == 0, 0, 255)).all()


def test_threshold_hides_pixels_at_once_and_downloads_have_it(make_server, open_page):
    page = open_page(make_server())
    image = thirds()
    image[:, :4] = (100, 90, 90)  # a low confidence
    choose(page, image)
    wait_for_answer(page)
    assert page.text_content("#kept") == "100.0\u00a0%"
    set_range(page, "#threshold", 80)

    assert page.text_content("#kept") == "66.7\u00a0%"
    assert (
        np.asarray(decoded(download(page, "mask"))) == np.where(THIRDS_MASK, THIRDS_MASK, 255)
    ).all()
    assert "(hidden)" in point_at(page, 0.1, 0.2)
    assert "min_confidence=0.8" in page.text_content("#code-curl")


def test_certified_level_is_chosen_and_its_sentence_shown(
    make_server, open_page, models_dir, artifacts_dir
):
    publish_temperature(artifacts_dir, models_dir / "cells", 1, thresholds=(LEVEL,))
    page = open_page(make_server())
    choose(page, thirds())
    wait_for_answer(page)
    options = page.locator("#level option").all_text_contents()
    assert options == ["no limit", "at most 10\u00a0% wrong, keeps 75.0\u00a0%"]
    assert "guarantees nothing" in page.text_content("#guarantee")
    page.select_option("#level", index=1)
    page.wait_for_selector("#threshold-value:has-text('90.0')")

    assert "at most 10\u00a0% of the kept pixels are wrong" in page.text_content("#guarantee")
    assert "44 held-out images" in page.text_content("#guarantee")
    set_range(page, "#threshold", 30)
    assert page.input_value("#level") == ""


def test_nothing_certified_is_said_plainly(make_server, open_page, models_dir, artifacts_dir):
    publish_temperature(artifacts_dir, models_dir / "cells", 1)
    page = open_page(make_server())
    choose(page, thirds())
    wait_for_answer(page)

    assert page.is_disabled("#level")
    assert page.text_content("#guarantee").startswith("Nothing is guaranteed: no error level")
    lights = page.locator("#lights").text_content()
    assert "Likeness not measured" in lights
    assert "No drift" in lights
    page.select_option("#calibrator", "none")
    page.wait_for_selector("#guarantee:has-text('plain softmax')")


def test_more_than_255_classes_are_drawn_with_their_exact_ids(make_server, open_page, models_dir):
    folder = write_onnx_model(models_dir, "many", num_classes=300)
    network = onnx_network(300)
    for tensor in network.graph.initializer:  # class 299 - k has the weights of class k
        values = numpy_helper.to_array(tensor)
        if values.shape[:1] == (300,):
            tensor.CopyFrom(numpy_helper.from_array(values[::-1].copy(), tensor.name))
    onnx.save(network, folder / "model.onnx")
    page = open_page(make_server())
    page.select_option("#model", "many")
    choose(page, thirds())
    wait_for_answer(page)
    set_range(page, "#slider", 100)
    set_range(page, "#opacity", 100)

    names = page.locator("#legend label").all_text_contents()
    shown = [point_at(page, x, 0.4).split(" at ")[0] for x in (0.1, 0.5, 0.8)]
    assert shown == names[::-1]
    assert (np.asarray(decoded(download(page, "mask"))) == 299 - THIRDS_MASK.astype(int)).all()


def test_tiff_that_the_browser_cannot_decode_is_shown(make_server, open_page):
    page = open_page(make_server())
    choose(page, encoded(thirds(), "TIFF"), "thirds.tif")
    wait_for_answer(page)
    set_range(page, "#slider", 100)
    set_range(page, "#opacity", 0)

    shown = colors_of(page, (0.1, 0.2), (0.5, 0.2), (0.8, 0.2))
    assert np.abs(np.subtract(shown, (RED, GREEN, BLUE))).max() <= 2


def test_downloads_work_after_the_result_has_expired(make_server, open_page):
    page = open_page(make_server(result_bytes=1), expect_failures=True)
    choose(page, thirds())
    wait_for_answer(page)

    assert (np.asarray(decoded(download(page, "mask"))) == THIRDS_MASK).all()
    assert set(np.load(io.BytesIO(download(page, "data")))) == {"mask", "confidence"}
    assert page.is_hidden("#problem")


def test_page_works_with_api_tokens(make_server, open_page):
    page = open_page(make_server(api_tokens="token-of-a-client"), expect_failures=True)
    assert "token" in problem(page)
    assert page.evaluate("document.activeElement.id") == "token"
    page.fill("#token", "token-of-a-client")
    page.keyboard.press("Enter")
    page.wait_for_selector("#problem", state="hidden")
    choose(page, thirds())
    wait_for_answer(page)

    assert (np.asarray(decoded(download(page, "mask"))) == THIRDS_MASK).all()
    assert '"Authorization: Bearer $SEGCAL_TOKEN"' in page.text_content("#code-curl")
    assert "token-of-a-client" not in page.content()
    page.reload()
    page.wait_for_selector("#model:enabled")
    assert page.evaluate("sessionStorage.length") == 1  # a reload keeps the token


def test_problem_is_shown_in_the_service_s_words(make_server, open_page):
    page = open_page(make_server(), expect_failures=True)
    with page.expect_response("**/segment*") as response:
        choose(page, b"no image")

    detail = response.value.json()["detail"]
    assert problem(page).lower().startswith(detail.lower())
    assert page.is_hidden("#result")


def test_proxy_s_error_page_is_explained(make_server, open_page):
    page = open_page(make_server(), expect_failures=True)
    page.route(
        "**/segment*",
        lambda route: route.fulfill(status=502, content_type="text/html", body=PROXY_PAGE),
    )
    choose(page, thirds())

    assert "proxy" in problem(page)
    assert "502" in problem(page)
    page.unroute("**/segment*")
    page.click("#retry")
    wait_for_answer(page)
    assert page.is_hidden("#problem")


def test_lost_service_is_said_plainly(make_settings, open_page):
    with open_server(make_settings()) as url:
        page = open_page(url, expect_failures=True)
    choose(page, thirds())

    assert problem(page).startswith("The service does not respond.")


def test_starting_service_is_waited_for(make_server, open_page):
    url = make_server()
    starting = {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "models are loading",
    }
    seen = []

    def answer(route):
        seen.append(route.request.url)
        if len(seen) > 1:
            route.continue_()
        else:
            route.fulfill(
                status=503, content_type="application/problem+json", body=json.dumps(starting)
            )

    page = open_page("about:blank", expect_failures=True, wait=False)
    page.route("**/models", answer)
    page.goto(url)
    page.wait_for_selector("#status:has-text('Models are loading')")
    page.wait_for_selector("#model:enabled")


def test_slow_answer_never_replaces_that_of_a_newer_image(make_server, open_page):
    page = open_page(make_server())
    held: list[Any] = []

    def hold_first(route):
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/segment*", hold_first)
    choose(page, solid(RED), "first.png")
    page.wait_for_selector("#cancel:not([hidden])")
    assert page.text_content("#status").startswith("Segmenting first.png")
    choose(page, thirds(), "second.png")
    wait_for_answer(page)
    held[0].continue_()
    page.wait_for_timeout(300)

    assert page.text_content("#summary").startswith("second.png")
    assert page.locator("#legend tr").count() == 3


def test_copied_lines_give_the_same_answer(make_server, open_page, tmp_path):
    url = make_server()
    (tmp_path / "thirds.png").write_bytes(encoded(thirds()))
    page = open_page(url, permissions=["clipboard-read", "clipboard-write"])
    choose(page, thirds())
    wait_for_answer(page)
    copied = []
    for name in ("curl", "Python"):
        page.click(f"button[aria-label='Copy the {name} lines']")
        copied.append(page.evaluate("navigator.clipboard.readText()"))
    commands = [
        ["sh", "-c", copied[0].replace("curl", "curl --silent")],
        [sys.executable, "-c", copied[1]],
    ]
    curl, python = (
        subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            check=True,
            text=True,
            env={**os.environ, "no_proxy": "*"},
        ).stdout
        for command in commands
    )

    assert json.loads(curl)["model"] == "cells"
    assert python.split() == [str(json.loads(curl)["mean_confidence"]), "none"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_page_is_accessible_and_fits_its_width(make_server, open_page, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(make_server(), viewport={"width": width, "height": 900}, color_scheme=scheme)

    def check():
        results = axe.run(page)
        assert results.violations_count == 0, results.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") == width

    check()
    page.click("#sample-nuclei")
    wait_for_answer(page)
    check()
    page.click("#token-state")
    check()
