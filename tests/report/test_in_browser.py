"""A browser opens the pages without a network, and what they promise to do they do."""

import shutil
from pathlib import Path

import pytest

from flowpolicy.report.dataset_pages import write_dataset_view
from flowpolicy.report.run_pages import write_report

from ..conftest import write_demonstrations
from .reported_runs import HOSTILE, make_run

api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("imageio_ffmpeg")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium is installed")
WAIT = 120_000  # milliseconds, on a machine that does other things


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as started:
        one = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"], timeout=WAIT)
        yield one
        one.close()


@pytest.fixture
def opened(browser):
    """Open a page offline; at the end nothing was asked of the network and nothing was complained of."""
    contexts, complaints = [], []

    def open_page(path, width=1280):
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        local = ("file:", "blob:", "data:")
        page.on("request", lambda asked: None if asked.url.startswith(local) else complaints.append(asked.url))
        page.goto(path.as_uri())
        page.wait_for_selector("footer")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    home = tmp_path_factory.mktemp("report")
    run = make_run(home / HOSTILE.replace("/", ""), episodes=1000, films=3, nfes=(1, 2))
    written = write_report([run], home / "report.html")
    shutil.rmtree(run)
    assert written.size < 20e6
    return written.path


def test_a_report_of_two_thousand_episodes_is_filtered_sorted_played_and_switched(report, opened):
    page = opened(report)
    assert HOSTILE.replace("/", "") in page.title() and page.locator("section img").count() == 0
    assert page.locator("#episodes tbody tr").count() <= 100  # of 2,000
    failures = page.locator("#episodes button", has_text="Failures")
    failures.click()
    assert set(page.locator("#episodes td.verdict").all_text_contents()) == {"failure"}
    page.locator("#episodes button", has_text="All").click()
    box = page.locator("#episodes input.filter")
    box.fill("no such thing")
    assert page.locator("#episodes").get_by_text("Nothing fits the filter.").is_visible()
    box.fill("")
    heading = page.locator("#episodes th button", has_text="steps").last
    heading.click()
    assert page.locator("#episodes th[aria-sort=ascending]").count() == 1
    heading.click()
    assert page.locator("#episodes th[aria-sort=descending]").count() == 1
    page.locator(".stage").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.stage video').duration > 1")
    page.wait_for_selector(".here", state="attached")
    cursor = page.locator(".here").first
    before = cursor.get_attribute("style")
    page.keyboard.press("Escape")
    page.locator("body").press("ArrowRight")
    page.wait_for_function("before => document.querySelector('.here').getAttribute('style') !== before", arg=before)
    assert "step 1 of 12" in page.locator(".now").text_content()
    page.wait_for_function("document.querySelector('.stage video').currentTime > 0.1")
    theme = page.evaluate("document.documentElement.dataset.theme")
    page.locator("body").press("t")
    assert page.evaluate("document.documentElement.dataset.theme") != theme


def test_nothing_is_wider_than_a_telephone(report, opened):
    page = opened(report, width=390)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_finding_leads_to_its_episode(tmp_path, opened):
    file = write_demonstrations(tmp_path / "d.hdf5", lengths=(30,) * 12 + (200,))
    page = opened(write_dataset_view(file, tmp_path / "v.html").path)
    page.locator("#doctor button", has_text="demo_12 @ 0").click()
    assert "demo_12" in page.locator(".player h3").first.text_content()
    assert "of 200" in page.locator(".now").text_content()
    page.locator(".stage input[type=range]").fill("150")
    assert "step 150 of 200" in page.locator(".now").text_content()
