"""The report of a job with hostile rows, in a real browser."""

import os
import shutil

import pytest

from jobs import ask
from penstock.errors import EngineError

pytestmark = pytest.mark.browser
HOSTILE = (
    "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
    "<style>body { display: none }</style></pre></main><iframe src='http://127.0.0.1:9/'></iframe>"
)


@pytest.fixture
async def browser_page():
    """A page of a headless browser: PENSTOCK_BROWSER, one that the system has, or Playwright's
    own.
    """
    playwright = pytest.importorskip("playwright.async_api")
    found = (
        os.environ.get("PENSTOCK_BROWSER")
        or shutil.which("chromium")
        or shutil.which("google-chrome")
    )
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield await browser.new_page()
        await browser.close()


async def test_hostile_rows_stay_text(tmp_path, make_engine, browser_page):
    def answer(text):
        return EngineError(HOSTILE) if text.startswith("1") else text

    path = tmp_path / "job.html"
    rows = [{"text": f"{number}{HOSTILE}", HOSTILE: HOSTILE} for number in range(4)]
    await ask(rows, None, make_engine(answer), max_attempts=1, report=path, system=HOSTILE)
    asked, said = [], []
    browser_page.on("request", lambda request: asked.append(request.url))
    browser_page.on("console", lambda message: said.append(message.text))
    browser_page.on("pageerror", lambda error: said.append(str(error)))
    await browser_page.goto(path.as_uri())
    assert await browser_page.title() == "penstock run: rows"
    assert asked == [path.as_uri()]
    assert said == []
    assert await browser_page.locator("script, img, iframe").count() == 0
    assert await browser_page.locator("article").count() == 5
    chart = browser_page.get_by_role("img", name="Length of answers")
    assert await chart.is_visible()
    colours = "e => getComputedStyle(e).fill"
    assert await chart.locator("rect").first.evaluate(colours) == "rgb(31, 111, 235)"
