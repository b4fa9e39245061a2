"""The web page and the API documentation, in a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.e2e.conftest import Pool

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("CI") != "true", reason="no chromium here: `make browser` installs it"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None, "CI needs chromium: `make browser` installs it"
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield running
        running.close()


def test_the_page_shows_the_models_and_whether_they_are_ready(pool: Pool, browser: Browser) -> None:
    page = browser.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if not request.url.startswith(pool.url) else None)
    page.goto(f"{pool.url}/")
    row = page.get_by_role("row", name="penstock-demo")
    expect(row).to_contain_text("ready")
    expect(page.get_by_role("link", name="Flower")).to_have_attribute("href", pool.flower)
    assert not faults
    assert not outside, "the page asks nobody else"
    page.close()


def test_the_documentation_shows_the_routes(pool: Pool, browser: Browser) -> None:
    page = browser.new_page()
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if not request.url.startswith(pool.url) else None)
    page.goto(f"{pool.url}/docs")
    expect(page.locator("body")).to_contain_text("/v1/chat/completions")
    assert not outside, "the documentation asks nobody else"
    page.close()
