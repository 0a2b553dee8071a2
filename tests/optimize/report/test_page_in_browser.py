"""The page as a browser shows it: skipped, loudly, where there is no Chromium."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.architecture import Architecture
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


LONG = "anthropic/claude-with-one-very-long-name"
MANY = [LONG, *(f"model-{n:02d}-{'x' * (n % 3 * 12)}" for n in range(39))]


@pytest.fixture(scope="module")
def crowded(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report of forty agents, some with one long word as a name."""
    folder = tmp_path_factory.mktemp("crowded")
    result, answers = synthetic_study(n_trials=40, n_questions=30)
    pairs = zip(MANY, result.trials, strict=True)
    trials = tuple(replace(t, architecture=name, is_stopped_early=False) for name, t in pairs)
    systems = (*answers.systems[:3], *(replace(answers.systems[3], architecture=n) for n in MANY))
    distances = tuple(tuple(float(a != b) * 0.4 for b in MANY) for a in MANY)
    pick = Architecture.parse(f"{LONG}*3 + {MANY[1]} + {MANY[2]} > synthesize({LONG})")
    shown = replace(answers, agents=tuple(MANY), systems=systems, distances=distances)
    write_pages(replace(result, trials=trials, pick=pick), shown, folder, name="crowded")
    return folder


def shown_at(browser: Any, folder: Path, width: int) -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    open_page(browser, folder)


def test_paper_shows_every_column_of_every_table(browser: Any, crowded: Path) -> None:
    shown_at(browser, crowded, 718)  # A4 without its margins
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        edges = browser.execute_script(
            "return [...document.querySelectorAll('table')].map(t => "
            "[t.closest('.wide').getAttribute('aria-label'), t.getBoundingClientRect().right, "
            "getComputedStyle(t.closest('.wide')).overflowX])"
        )
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert len(edges) == 4
    assert [edge for edge in edges if edge[1] > 718 or edge[2] != "visible"] == []


def test_a_phone_shows_labels_and_texts_whole(browser: Any, crowded: Path) -> None:
    shown_at(browser, crowded, 390)
    assert browser.get_log("browser") == []
    # A name of one long word begins in its first line, and every agent has its label.
    labels = browser.execute_script(
        "return [...document.querySelectorAll('#plot-agents .ytick text')].map(t => "
        "[t.querySelector('tspan') ? t.querySelector('tspan').textContent : t.textContent, "
        "t.getBoundingClientRect().left])"
    )
    assert len(labels) == 40
    assert [label for label in labels if not label[0] or label[1] < 0] == []
    note = "[...document.querySelectorAll('#costs p')].find(p => p.textContent.includes('reused'))"
    assert browser.execute_script(f"return {note}.getBoundingClientRect().right") <= 390
    assert browser.execute_script(f"return {note}.closest('.wide')") is None
    room, needed = browser.execute_script(
        "const i = document.getElementById('q-find'), s = getComputedStyle(i);"
        "const c = document.createElement('canvas').getContext('2d'); c.font = s.font;"
        "const sides = parseFloat(s.paddingLeft) + parseFloat(s.paddingRight);"
        "return [i.clientWidth - sides, c.measureText(i.placeholder).width]"
    )
    assert needed <= room


def test_the_names_of_the_pick_stay_in_their_boxes(browser: Any, crowded: Path) -> None:
    shown_at(browser, crowded, 1280)
    outside = browser.execute_script(
        "const box = n => n.getBoundingClientRect();"
        "const rects = [...document.querySelectorAll('.drawing rect')].map(box);"
        "return [...document.querySelectorAll('.drawing text:not(.t)')].filter(t => "
        "t.textContent !== 'answer' && !rects.some(r => r.left <= box(t).left && "
        "box(t).right <= r.right && r.top <= box(t).top && box(t).bottom <= r.bottom))"
        ".map(t => t.textContent)"
    )
    assert outside == []
    drawn = browser.execute_script("return document.querySelector('.drawing').textContent")
    assert "\u00d7 3" in drawn


def test_the_similarity_of_many_agents_has_cells_without_gaps_and_names(
    browser: Any, crowded: Path
) -> None:
    facts = (
        "const p = document.getElementById('plot-similarity'); return [p.data[0].xgap, "
        "p.querySelectorAll('.xtick text').length, p.querySelectorAll('.annotation').length, "
        "p.clientHeight]"
    )
    shown_at(browser, crowded, 390)
    # 40 agents, 9 pixels each, and 40 for the margins
    assert browser.execute_script(facts) == [0, 0, 0, 400]


def test_numbers_of_the_similarity_are_dark_on_light_and_light_on_dark(
    browser: Any, tmp_path: Path
) -> None:
    write_pages(*synthetic_study(n_trials=10, n_questions=5), tmp_path, name="six")
    shown_at(browser, tmp_path, 390)
    colours = browser.execute_script(
        "return document.getElementById('plot-similarity').layout.annotations"
        ".map(a => [a.text, a.font.color])"
    )
    # Six agents: each is like itself to 100 %, and to 60 % like another.
    assert sorted({tuple(pair) for pair in colours}) == [("100", "#ffffff"), ("60", "#0b1119")]
    assert len(colours) == 36
