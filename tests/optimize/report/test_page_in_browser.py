"""The page as a browser shows it: skipped, loudly, where there is no Chromium."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.optimize.page import write_pages
from moa_dspy.optimize.space.programs import read_architecture
from tests.optimize.report.synthetic import synthetic_study

pytestmark = pytest.mark.slow
PLOTS = ("systems", "usd", "seconds", "criteria", "agents", "similarity")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium and chromedriver here: the page was seen by no browser")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("large")
    write_pages(*synthetic_study(), folder, name="large")
    open_page(browser, folder)
    return browser


def open_page(browser: Any, folder: Path) -> None:
    browser.get((folder / "report.html").as_uri())
    end = time.monotonic() + 60
    while not browser.execute_script("return document.documentElement.dataset.drawn"):
        assert time.monotonic() < end, browser.get_log("browser")
        time.sleep(0.1)


def test_every_plot_is_drawn_and_nothing_complains(page: Any) -> None:
    assert page.get_log("browser") == []
    for name in PLOTS:
        n = page.execute_script(
            f"return document.querySelectorAll('#plot-{name} .main-svg').length"
        )
        assert n > 0, name
    assert page.execute_script("return window.attacked") is None


def test_hover_shows_the_architecture(page: Any) -> None:
    page.execute_script("Plotly.Fx.hover('plot-usd', [{curveNumber: 3, pointNumber: 0}])")
    shown = page.execute_script(
        "return document.querySelector('#plot-usd .hoverlayer').textContent"
    )
    assert "flash + haiku*2" in shown


def test_filters_and_texts_of_a_question_work(page: Any) -> None:
    def chosen(name: str) -> str:
        page.execute_script(
            "const s = document.getElementById('q-filter'); s.value = arguments[0]; s.onchange();",
            name,
        )
        return str(page.execute_script("return document.getElementById('q-count').textContent"))

    assert chosen("all").startswith("500 shown, page 1 of 20")
    # Question 7 failed, in every system.
    assert chosen("failed").startswith("1 shown")
    missed = int(chosen("missed").split()[0])
    assert 0 < missed < 500
    page.execute_script("document.querySelector('#q-rows button').click()")
    cards = page.execute_script("return document.querySelectorAll('#q-rows .text').length")
    assert cards == 2 + 8, "question, expected answer, and eight systems"


@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_is_as_wide_as_the_screen(page: Any, width: int) -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    # The plots follow a new width after a moment, when the browser has told them of it.
    shown, end = "return document.documentElement.scrollWidth", time.monotonic() + 20
    while page.execute_script(shown) > width and time.monotonic() < end:
        time.sleep(0.1)
    assert page.execute_script(shown) <= width
    # Texts of a question that a filter found are read without scrolling aside.
    rows = "document.querySelector('#q-rows {}')"
    opens = f"{rows.format('.texts')} || {rows.format('button')}.click()"
    page.execute_script(opens)
    cards = "[...document.querySelectorAll('#q-rows .text')]"
    edges = f"return {cards}.map(card => card.getBoundingClientRect().right)"
    assert max(page.execute_script(edges)) <= width


def test_each_agent_of_each_mixture_of_a_program_has_its_label(
    browser: Any, tmp_path: Path
) -> None:
    result, answers = synthetic_study(n_trials=10, n_questions=5)
    agents = [f"agent{n}" for n in range(7)]
    texts = [f"query: {name}; answer: {name}" for name in agents]
    texts.append("query: agent0*3 > vote; answer: agent0")
    kinds = zip(texts, result.trials, strict=False)
    trials = tuple(replace(trial, architecture=text) for text, trial in kinds)
    pick = read_architecture(texts[-1])
    write_pages(replace(result, pick=pick, trials=trials), answers, tmp_path, name="program")
    open_page(browser, tmp_path)
    assert browser.get_log("browser") == []
    found = browser.execute_script(
        "return [...document.querySelectorAll('#plot-agents .ytick text')].map(t => t.textContent)"
    )
    labels = [f"{path}: {name}" for path in ("query", "answer") for name in agents]
    assert sorted(found) == sorted(labels)


def test_where_no_price_is_known_it_is_said_and_no_axis_is_made_up(
    browser: Any, tmp_path: Path
) -> None:
    result, answers = synthetic_study(n_trials=10, n_questions=5)
    trials = tuple(replace(trial, usd=None) for trial in result.trials)
    write_pages(replace(result, trials=trials), answers, tmp_path, name="unknown")
    open_page(browser, tmp_path)
    assert browser.get_log("browser") == []
    texts = "return [...document.querySelectorAll('#plot-{} {} text')].map(t => t.textContent)"
    noted = browser.execute_script(texts.format("usd", ".annotation"))
    assert noted == ["usd per 1,000 questions: unknown of every trial"]
    assert browser.execute_script(texts.format("usd", ".xtick")) == []
    assert browser.execute_script(texts.format("seconds", ".xtick")) != []
    assert browser.execute_script(texts.format("seconds", ".annotation")) == []
