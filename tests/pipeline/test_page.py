"""The page at / in a real Chromium: by keyboard, wide and narrow, light and dark, documents pasted and found."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from serving.process import Served, darl_rerank, served

from darl_rerank.evaluation.ranking import ndcg

CHROMEDRIVER = shutil.which("chromedriver")
DOCUMENTS = ["Garden hose, 20 m", "Dell XPS 13 notebook", "Laptop sleeve for 13 inch"]


@pytest.fixture(scope="module")
def server(tiny_model: Path, lucene_index: Path) -> Iterator[Served]:
    options = ("--engine", "torch", "--device", "cpu", "--precision", "float32", "--demo", "--index", str(lucene_index))
    with served(darl_rerank(tiny_model, *options), {"OMP_NUM_THREADS": "1"}) as running:
        running.wait_until_ready()
        yield running
        # Java has handlers of its own for this signal.
        assert running.terminate() == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    if CHROMEDRIVER is None:
        pytest.skip("no chromedriver")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


def opened(browser: Any, server: Served, width: int = 1280, scheme: str = "light") -> Any:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme_feature]})
    browser.get(server.url)
    wait(browser, lambda: "torch" in browser.find_element("id", "about").text)
    return browser


def wait(browser: Any, holds: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60).until(lambda _: holds())


def keys(browser: Any, *pressed: str) -> None:
    browser.switch_to.active_element.send_keys(*pressed)


def shown(browser: Any, part: str) -> list[str]:
    # In one call, since the page may replace its elements between two.
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)"
    found: list[str] = browser.execute_script(script, f"#{part} .text")
    return found


def asked(browser: Any) -> None:
    browser.find_element("css selector", "button[type=submit]").click()
    wait(browser, lambda: browser.find_element("id", "result").is_displayed())


def test_the_page_is_one_file_that_may_load_nothing(server: Served) -> None:
    status, headers, html = server.call("GET", "/")
    assert status == 200
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|//[a-z]+\.""", html.split("<script>")[0])
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]


def test_the_first_stage_is_searched(server: Served) -> None:
    status, values = server.post("/search", {"query": "black", "depth": 3})
    assert status == 200
    assert len(values["documents"]) == 3
    assert all(document["id"] and document["text"] for document in values["documents"])
    for depth in (0, 1001, True, "3"):
        assert server.post("/search", {"query": "black", "depth": depth})[0] == 422
    assert server.post("/search", {"query": " "})[0] == 422


def test_it_reranks_by_keyboard_alone(browser: Any, server: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, server)
    wait(browser, lambda: browser.find_element("id", "demo").is_displayed())
    for reached in ("demo", "query"):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        assert browser.switch_to.active_element.get_attribute("id") == reached
    keys(browser, "laptop", Keys.TAB, Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("id") == "documents"
    keys(browser, Keys.ENTER.join(DOCUMENTS), Keys.CONTROL + Keys.ENTER)
    wait(browser, lambda: len(shown(browser, "after")) == len(DOCUMENTS))
    results = server.post("/rerank", {"query": "laptop", "documents": DOCUMENTS})[1]["results"]
    assert shown(browser, "before") == DOCUMENTS
    assert shown(browser, "after") == [DOCUMENTS[result["index"]] for result in results]
    grades = [e.text for e in browser.find_elements("css selector", "#after .facts strong")]
    assert grades == [result["grade_name"] for result in results]
    bars = browser.find_elements("css selector", "#after .bar")
    assert "irrelevant" in bars[0].get_attribute("aria-label")
    # What was done is announced: the focus is on the result.
    assert browser.switch_to.active_element.get_attribute("id") == "result-title"
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


def test_with_an_empty_box_it_searches_the_index(browser: Any, server: Served) -> None:
    opened(browser, server)
    browser.find_element("id", "query").send_keys("black")
    depth = browser.find_element("id", "depth")
    depth.clear()
    depth.send_keys("4")
    asked(browser)
    assert len(shown(browser, "after")) == 4


def test_a_list_of_the_demo_before_and_after(browser: Any, server: Served) -> None:
    from selenium.webdriver.support.ui import Select

    medical, products = server.call("GET", "/demo")[2]["lists"]
    assert [len(lists["queries"]) for lists in (medical, products)] == [30, 30]
    item = products["queries"][0]
    assert item["query"] == "sd card"
    opened(browser, server)
    wait(browser, lambda: browser.find_element("id", "demo-field").is_displayed())
    Select(browser.find_element("id", "demo")).select_by_visible_text(item["query"])
    wait(browser, lambda: len(shown(browser, "after")) == len(item["documents"]))
    answer = server.post("/rerank", {"query": item["query"], "documents": item["documents"]})[1]
    ids = [document["id"] for document in item["documents"]]
    order = [ids[result["index"]] for result in answer["results"]]
    title = browser.find_element("id", "result-title").text
    before, after = (ndcg({"q": item_grades(item)}, {"q": ranked(order)})["q"] for order in (ids, order))
    assert title.endswith(f"; nDCG@10 {before:.2f} before, {after:.2f} after")
    people = [e.text for e in browser.find_elements("css selector", "#before .people")]
    assert people == [f"people: {item['people'][docid]['name']}" for docid in ids if docid in item["people"]]
    # With the order before fused in, the documents' own scores count.
    fused = server.post("/rerank", {"query": item["query"], "documents": item["documents"], "fuse": "auto"})[1]
    texts = shown(browser, "before")
    expected = [texts[result["index"]] for result in fused["results"]]
    assert expected != shown(browser, "after")
    browser.find_element("id", "fuse").click()
    browser.find_element("css selector", "button[type=submit]").click()
    wait(browser, lambda: shown(browser, "after") == expected)


def item_grades(item: Any) -> dict[str, int]:
    return {docid: said["grade"] for docid, said in item["people"].items()}


def ranked(order: list[str]) -> dict[str, float]:
    return {docid: -float(place) for place, docid in enumerate(order)}


def test_an_error_is_shown(browser: Any, server: Served) -> None:
    opened(browser, server)
    browser.find_element("id", "query").send_keys("   ")
    browser.find_element("id", "documents").send_keys("a")
    browser.find_element("css selector", "button[type=submit]").click()
    wait(browser, lambda: browser.find_elements("css selector", ".note.bad"))
    assert "the query is empty" in browser.find_element("css selector", ".note.bad").text


def test_a_question_waits_for_a_model_that_loads(browser: Any, server: Served) -> None:
    opened(browser, server)
    # The first answer is that of a server whose model is not there yet.
    browser.execute_script("""
        const fetched = window.fetch;
        const loading = {message: "the model is loading", error: {code: "loading"}};
        window.fetch = (...words) => {
            window.fetch = fetched;
            return Promise.resolve(new Response(JSON.stringify(loading), {status: 503, headers: {"Retry-After": "1"}}));
        };
    """)
    browser.find_element("id", "query").send_keys("laptop")
    browser.find_element("id", "documents").send_keys("Garden hose")
    browser.find_element("css selector", "button[type=submit]").click()
    wait(browser, lambda: "the answer comes" in browser.find_element("id", "notes").text)
    wait(browser, lambda: browser.find_element("id", "result").is_displayed())
    assert "loading" not in browser.find_element("id", "notes").text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_can_be_read(browser: Any, server: Served, width: int, scheme: str) -> None:
    opened(browser, server, width, scheme)
    browser.find_element("id", "example").click()
    asked(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # WCAG 2.2: text has a contrast of at least 4.5, a button is at least 24 pixels high.
    for selector in ("#about", "label", ".hint", "button[type=submit]", "#example", ".rank", ".text", ".facts strong",
                     ".facts span", "#legend li", ".check"):  # fmt: skip
        assert contrast(browser, selector) >= 4.5, (selector, scheme)
    buttons = browser.find_elements("css selector", "button")
    assert all(button.size["height"] >= 24 for button in buttons)


def contrast(browser: Any, selector: str) -> float:
    """Contrast of an element's text with the nearest background behind it."""
    colors = browser.execute_script(
        """
        let e = document.querySelector(arguments[0]), text = getComputedStyle(e).color;
        while (getComputedStyle(e).backgroundColor === "rgba(0, 0, 0, 0)") e = e.parentElement;
        return [text, getComputedStyle(e).backgroundColor];
        """,
        selector,
    )
    light, dark = sorted((luminance(color) for color in colors), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
