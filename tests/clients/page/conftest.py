"""Fixtures of the browser tests: Debian's chromium, driven by playwright.

Every test fails on an error in the browser's console, and on a response of 400 or above unless it
says that it expects one.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.factories.models import write_onnx_model

CHROMIUM = shutil.which("chromium")
FAILED_RESOURCE = "Failed to load resource"  # the console's line for every response above 400

OpenPage = Callable[..., Any]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Start the browser, once for all tests."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    # Root has no sandbox; the tests open their own service only.
    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Return a function that opens an address in a new context, with playwright's options."""
    contexts, errors, failures = [], [], []

    def open_one(url: str, *, expect_failures: bool = False, wait: bool = True, **options: Any):
        context = browser.new_context(**options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console", lambda line: errors.extend([line.text] * (line.type in ("error", "warning")))
        )
        if not expect_failures:
            page.on("response", lambda r: failures.extend([r.url] * (r.status >= 400)))
        page.goto(url)
        if wait:
            page.wait_for_selector("#model:enabled")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert [text for text in errors if FAILED_RESOURCE not in text] == []
    assert failures == []


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """Return a folder of models whose default has the sample's classes and is not the first."""
    write_onnx_model(tmp_path / "models", "another")
    write_onnx_model(tmp_path / "models", "cells", taxonomy="nuclei", classes=None, default=True)
    return tmp_path / "models"
