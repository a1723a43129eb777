"""The web page calibrates: versions, activation and roll back, uploads, progress and reports."""

import json

import numpy as np
import pytest

from app.schemas.calibrator import CertifiedThreshold
from tests.clients.page.test_segment_page import PROXY_PAGE, WIDTHS, problem
from tests.factories.models import expected_logits
from tests.factories.service import encoded, publish_temperature
from tests.factories.validation_data import TEMPERATURE, npz, overconfident

TOKEN = "admin-token-of-a-test"
LEVEL = CertifiedThreshold(0.1, 0.9, 0.1, 0.75, 0.03, 44)


def labelled_images(count=12, side=32):
    """Draw images and labels for which the tiny network is over-confident, as files."""
    rng = np.random.default_rng(0)
    images: list[dict[str, object]] = []
    labels: list[dict[str, object]] = []
    for index in range(count):
        cells = rng.integers(0, 256, (side // 2, side // 2, 3), np.uint8)
        image = cells.repeat(2, axis=0).repeat(2, axis=1)
        values = (image.transpose(2, 0, 1)[None] / 255).astype(np.float32)
        logits = expected_logits(values)[0]
        drawn = (logits / TEMPERATURE + rng.gumbel(size=logits.shape)).argmax(axis=0)
        label = drawn.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
        for files, array in ((images, image), (labels, label)):
            files.append(
                {"name": f"{index}.png", "mimeType": "image/png", "buffer": encoded(array)}
            )
    return images, labels


def logits_file():
    logits, labels = overconfident(12)
    return {"name": "val.npz", "mimeType": "", "buffer": npz(logits=logits, labels=labels)}


def open_calibration(open_page, url, **options):
    page = open_page(f"{url}/#calibration", **options)
    page.wait_for_selector("#version h2")
    return page


def enter_token(page, token=TOKEN):
    page.wait_for_selector("#token-menu[open]")
    page.fill("#token", token)
    page.keyboard.press("Enter")


def fit(page):
    """Start a fit, enter the token that the page asks for, and wait for the end."""
    page.fill("[name=method]", "temperature")
    page.click("#fit-form button")
    enter_token(page)
    page.wait_for_selector("#job-end", timeout=120_000)


def test_model_without_a_calibrator_says_so(make_server, open_page):
    page = open_calibration(open_page, make_server())

    assert page.text_content("#version h2") == "No calibrator yet"
    assert page.text_content("#versions") == "None."


def test_versions_are_activated_and_rolled_back_with_the_admin_token(
    make_server, open_page, models_dir, artifacts_dir
):
    first = publish_temperature(artifacts_dir, models_dir / "cells", 1)
    second = publish_temperature(artifacts_dir, models_dir / "cells", 2, thresholds=(LEVEL,))
    page = open_calibration(open_page, make_server(admin_token=TOKEN), expect_failures=True)
    assert page.text_content("#version-id") == second
    assert page.locator("#version .scroll td").all_text_contents()[:2] == [
        "10\u00a0%",
        "75.0\u00a0%",
    ]
    older, newer = "Roll back", "Activate"
    if first > second:  # ids of the same second are in the order of their checksums
        older, newer = newer, older
    page.click(f"button[aria-label='{older} {first}']")
    enter_token(page)
    page.wait_for_selector(f"#version-id:has-text('{first}')")
    assert "nothing is guaranteed" in page.text_content("#version")
    page.click(f"button[aria-label='{newer} {second}']")
    page.wait_for_selector(f"#version-id:has-text('{second}')")

    assert (artifacts_dir / "cells" / "active").read_text().strip() == second
    assert page.is_hidden("#problem")


def test_loose_images_are_uploaded_fitted_and_active(make_server, open_page, artifacts_dir):
    page = open_calibration(open_page, make_server(admin_token=TOKEN), expect_failures=True)
    images, labels = labelled_images()
    page.set_input_files("[name=images]", images)
    page.set_input_files("[name=labels]", labels)
    fit(page)

    assert page.text_content("#job-end") == "The new version is better and is active."
    version = page.text_content("#version-id")
    assert (artifacts_dir / "cells" / "active").read_text().strip() == version
    assert "Activated by its fit: better" in page.text_content("#version")
    assert page.locator("#version svg.chart").count() == 2
    page.click("#version summary")
    assert "temperature (chosen)" in page.locator("#version details td").all_text_contents()
    page.click("nav >> text=Segment")
    assert page.locator("#calibrator option").first.text_content().startswith("active: temperature")


def test_logits_are_uploaded_and_progress_followed_through_a_lost_response(make_server, open_page):
    page = open_calibration(open_page, make_server(admin_token=TOKEN), expect_failures=True)
    lost: list[str] = []

    def lose_first(route):
        if lost:
            route.continue_()
        else:
            lost.append(route.request.url)
            route.fulfill(status=502, content_type="text/html", body=PROXY_PAGE)

    page.route("**/calibrate/*", lose_first)
    page.check("[value=logits]")
    page.set_input_files("[name=logits]", logits_file())
    fit(page)

    assert lost
    assert page.text_content("#status") == page.text_content("#job-end")
    assert "active" in page.text_content("#job-end")


def test_invalid_upload_is_answered_in_the_service_s_words(make_server, open_page):
    page = open_calibration(open_page, make_server(admin_token=TOKEN), expect_failures=True)
    page.click("#fit-form button")
    assert problem(page) == "Expected a zip archive of images or the files, got none."
    page.check("[value=logits]")
    page.set_input_files("[name=logits]", {"name": "val.npz", "mimeType": "", "buffer": b"noise"})
    page.click("#fit-form button")
    with page.expect_response(
        lambda r: r.url.endswith("/calibrate") and r.status == 400
    ) as response:
        enter_token(page)
    page.wait_for_selector("#problem:not([hidden])")

    detail = json.loads(response.value.text())["detail"]
    assert page.text_content("#problem-text").lower().startswith(detail.lower())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_section_is_accessible_and_fits_its_width(
    make_server, open_page, models_dir, artifacts_dir, scheme
):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    publish_temperature(artifacts_dir, models_dir / "cells", 2, thresholds=(LEVEL,))
    page = open_calibration(open_page, make_server(), color_scheme=scheme)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        results = axe.run(page)
        assert results.violations_count == 0, results.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") == width
