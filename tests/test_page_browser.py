"""The pages in a real browser: pictures, tables, widths, themes, and that nothing leaves them."""

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.pages import full_page, page_without_a_gpu, table_without_a_gpu

pytest.importorskip("pandas", reason="needs pandas")
pytest.importorskip("matplotlib", reason="needs matplotlib")
pytest.importorskip("jinja2", reason="needs jinja2")
pytest.importorskip("selenium", reason="needs selenium")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), "")
DRIVER = shutil.which("chromedriver") or ""
# where the project's own checks run a browser must be there
if not (BROWSER and DRIVER) and os.environ.get("CI") != "true":
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)

PAGES = {"full": full_page, "no-gpu": page_without_a_gpu}
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser of its own, that writes down what it asks for."""
    if not (BROWSER and DRIVER):
        pytest.fail("expected chromium and chromedriver where CI=true, got none on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    folder = tmp_path_factory.mktemp("browser")
    for option in (*OPTIONS, f"--user-data-dir={folder}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(folder), "download.prompt_for_download": False}
    )
    # a given driver: none is looked for, and none fetched
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def _open(browser: Any, page: Path, width: int = 1400, theme: str = "light") -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {
            "features": [
                {"name": "prefers-color-scheme", "value": theme},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ]
        },
    )
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_no_request_leaves_the_page_and_its_console_is_silent(
    browser: Any, page: Callable[[], Path]
) -> None:
    browser.get("about:blank")
    for log in ("performance", "browser"):
        browser.get_log(log)
    _open(browser, page())
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert page().as_uri() in asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert [entry["message"] for entry in browser.get_log("browser")] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_nothing_overflows_and_every_picture_is_seen(
    browser: Any, page: Callable[[], Path], width: int, theme: str
) -> None:
    _open(browser, page(), width, theme)
    wide = "return [document.documentElement.scrollWidth, innerWidth]"
    assert browser.execute_script(wide) == [width, width]
    # what is wider than the page scrolls in a box of its own
    outside = browser.execute_script(
        """return [...document.querySelectorAll("body *")].filter((one) =>
             !one.closest("svg, .scroll, .panel, caption") &&
             one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML)"""
    )
    assert outside == []
    sizes = browser.execute_script(
        """return [...document.querySelectorAll(".panel svg")].map((one) => {
             const box = one.getBoundingClientRect(); return [box.width, box.height]; })"""
    )
    assert len(sizes) == len(list((page().parent / "pictures").iterdir()))
    assert all(across > 200 and down > 60 for across, down in sizes)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_stand_out_from_the_paper_in_either_theme(browser: Any, theme: str) -> None:
    _open(browser, page_without_a_gpu(), theme=theme)
    # every colour of words against what lies behind it: 4.5 is what readers need
    worst = browser.execute_script(
        """const light = (colour) => {
             const part = colour.match(/[\\d.]+/g).slice(0, 3).map((one) => {
               const share = one / 255;
               return share <= .04045 ? share / 12.92 : ((share + .055) / 1.055) ** 2.4; });
             return .2126 * part[0] + .7152 * part[1] + .0722 * part[2]; };
           const behind = (one) => {
             for (; one; one = one.parentElement) {
               const colour = getComputedStyle(one).backgroundColor;
               if (!/, 0\\)$/.test(colour)) return colour;
             }
             return "rgb(255, 255, 255)"; };
           const found = [];
           for (const one of document.querySelectorAll("p, td, th, h2, a, .badge, .panel text")) {
             const style = getComputedStyle(one);
             const words = light(one.tagName === "text" ? style.fill : style.color);
             const paper = light(behind(one));
             found.push((Math.max(words, paper) + .05) / (Math.min(words, paper) + .05));
           }
           return Math.min(...found);"""
    )
    assert worst > 4.5


def test_a_table_sorts_by_a_click_and_back_by_another(browser: Any) -> None:
    _open(browser, full_page())
    column = """return [...document.querySelector("#rows-cases").tBodies[0].rows].map(
        (row) => row.cells[arguments[0]].textContent)"""
    heads = browser.find_elements("css selector", "#rows-cases th")
    index = next(i for i, head in enumerate(heads) if head.text == "torch / tritonbn")
    before = browser.execute_script(column, index)
    for falling in (False, True):
        heads[index].find_element("tag name", "button").click()
        found = browser.execute_script(column, index)
        numbers = [float(text) for text in found if text != "-"]
        assert numbers == sorted(numbers, reverse=falling)
        assert sorted(found) == sorted(before) and found != before
        # what is missing comes last
        assert found[len(numbers) :] == ["-"] * (len(found) - len(numbers))
        assert heads[index].get_attribute("aria-sort") == ("descending" if falling else "ascending")


def test_what_is_not_finite_is_sorted_above_all_numbers(browser: Any) -> None:
    _open(browser, full_page())
    found = browser.execute_script(
        """const table = document.querySelector("#rows-accuracy-worst");
           const column = [...table.tBodies[0].rows].map((row) => row.cells[2]);
           column[1].textContent = column[4].textContent = "not finite";
           const heads = table.querySelectorAll("th button");
           heads[2].click(); heads[2].click();
           return [...table.tBodies[0].rows].map((row) => row.cells[2].textContent)"""
    )
    assert found[:2] == ["not finite"] * 2
    numbers = [*map(float, found[2:])]
    assert numbers == sorted(numbers, reverse=True)


def test_a_table_sorts_from_the_keyboard(browser: Any) -> None:
    _open(browser, full_page())
    button = browser.find_element("css selector", "#rows-groups th:nth-child(3) button")
    button.send_keys("\n")
    head = browser.find_element("css selector", "#rows-groups th:nth-child(3)")
    assert head.get_attribute("aria-sort") == "ascending"


def test_a_table_is_filtered_by_words(browser: Any) -> None:
    _open(browser, full_page())
    field = browser.find_element("css selector", "#table-cases input[type=search]")
    field.send_keys("BF16 nhwc backward")
    rows = browser.execute_script(
        """return [...document.querySelector("#rows-cases").tBodies[0].rows].filter(
             (row) => !row.hidden).map((row) => row.cells[1].textContent)"""
    )
    assert rows
    assert all("backward" in row and "bf16" in row and "nhwc" in row for row in rows)
    said = browser.find_element("css selector", "#table-cases output").text
    assert said.startswith(f"{len(rows)} of ")


def test_what_is_fake_is_seen_wherever_one_reads(browser: Any) -> None:
    _open(browser, full_page(), 400)
    browser.execute_script("scrollTo(0, document.body.scrollHeight / 2)")
    box = browser.execute_script(
        """const box = document.querySelector(".ribbon").getBoundingClientRect();
           return [box.top, box.bottom]"""
    )
    assert 0 <= box[0] < box[1] <= 900


def test_the_data_unpack_in_the_browser(browser: Any) -> None:
    _open(browser, page_without_a_gpu())
    rows = browser.execute_async_script(
        """const done = arguments[0];
           const made = URL.createObjectURL;
           URL.createObjectURL = (blob) => {
             blob.text().then(done);
             return made(blob);
           };
           document.querySelector("a.data + button").click();"""
    )
    assert len(json.loads(rows)["columns"]["value"]) == len(table_without_a_gpu().rows)


def test_it_prints(browser: Any) -> None:
    _open(browser, page_without_a_gpu())
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")


@contextmanager
def _on_paper(browser: Any, width: int) -> Iterator[None]:
    """The full page as it is printed."""
    _open(browser, full_page(), width)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("width", [680, 760])
def test_paper_holds_the_whole_width(browser: Any, width: int) -> None:
    with _on_paper(browser, width):
        assert browser.execute_script("return document.documentElement.scrollWidth") == width


def test_no_number_and_no_word_of_a_head_is_broken_on_paper(browser: Any) -> None:
    # words that a line ends within have a box for each part
    broken = """const range = document.createRange();
        const within = (one, from, to) => {
          range.setStart(one, from); range.setEnd(one, to);
          return new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1; };
        const found = [];
        for (const one of document.querySelectorAll("details")) one.open = true;
        for (const cell of document.querySelectorAll("th, td")) {
          const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
          for (let one; (one = walker.nextNode()); ) {
            if (!one.data.trim() || !cell.offsetParent) continue;
            // of names of cases too
            const words = cell.tagName === "TH" ? /[^\\s/-]+/g : /-?\\d[\\d.]*(e[-+]\\d+)?/g;
            for (const word of one.data.trimEnd().matchAll(words))
              if (within(one, word.index, word.index + word[0].length)) found.push(word[0]);
          }
        }
        return found;"""
    with _on_paper(browser, 680):
        assert browser.execute_script(broken) == []


def test_words_of_heads_are_repeated_on_every_sheet(browser: Any) -> None:
    # a box of its own is left out where a browser repeats the heads
    boxes = """return [...document.querySelectorAll("th *")].map(
        (one) => getComputedStyle(one).display)"""
    with _on_paper(browser, 760):
        assert set(browser.execute_script(boxes)) == {"contents"}


def test_paper_says_where_every_case_is_instead_of_all_cases(browser: Any) -> None:
    text = "return document.querySelector('#cases').innerText"
    with _on_paper(browser, 760):
        said = browser.execute_script(text)
    assert said.split("\n\n")[1:] == ["Every case: in the page and in results.json."]
    _open(browser, full_page())
    shown = browser.execute_script(text)
    assert "in results.json" not in shown and "forward_train" in shown


def test_legends_of_wide_pictures_are_seen_on_a_small_screen(browser: Any) -> None:
    _open(browser, full_page(), 400)
    # how far words of a legend are beyond what is seen of the panel that scrolls
    beyond = browser.execute_script(
        """return [...document.querySelectorAll(".panel[tabindex] svg text")].filter((one) =>
             /^(fp32|fp16|bf16|fp64) [(]/.test(one.textContent)).map((one) =>
             one.getBoundingClientRect().right -
             one.closest(".panel").getBoundingClientRect().right)"""
    )
    assert len(beyond) > 20
    assert max(beyond) <= 0
