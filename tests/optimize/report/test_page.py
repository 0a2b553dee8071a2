from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.answers import (
    StudyAnswers,
    SystemAnswers,
    stored_answers,
    write_answers,
)
from moa_dspy.optimize.page import (
    above_pick,
    architecture_drawing,
    architecture_rows,
    front_numbers,
    headline,
    markdown_block,
    markdown_text,
    read_run,
    report_html,
    write_pages,
)
from moa_dspy.optimize.result import StudyResult, TrialRecord, agent_effects
from moa_dspy.optimize.space.programs import read_architecture
from moa_dspy.winrate import Interval
from tests.optimize.report.synthetic import HOSTILE, synthetic_study
from tests.optimize.report.test_report import RESULT

SMALL = synthetic_study(n_trials=30, n_questions=12)


def embedded(page: str, name: str) -> str:
    found = re.search(rf'id="{name}">([A-Za-z0-9+/=]*)</script>', page)
    assert found is not None
    return gzip.decompress(base64.b64decode(found[1])).decode("utf-8")


def test_texts_of_models_are_data_and_never_markup() -> None:
    page = report_html(*SMALL, name="a <b>name</b>")
    assert "<b>name</b>" not in page
    assert "&lt;b&gt;name&lt;/b&gt;" in page
    assert page.count("<script") == 3 == page.count("</script>")
    assert "onerror=&#39;" in page, "a prompt is shown, escaped"
    data = json.loads(embedded(page, "data"))
    assert data["answers"][0]["texts"][0].startswith(HOSTILE[0])


def test_the_page_asks_no_other_machine_and_holds_its_data_once() -> None:
    page = report_html(*SMALL, name="study")
    outside = re.sub(r'id="(data|plotly)">[^<]*<', "", page)
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", outside)
    assert "default-src 'none'" in page
    assert "Plotly" in embedded(page, "plotly")


def test_a_thousand_trials_and_five_hundred_questions_stay_below_five_megabytes() -> None:
    result, answers = synthetic_study()
    assert (len(result.trials), len(answers.questions)) == (1000, 500)
    assert len(report_html(result, answers, name="large").encode()) < 5_000_000


def test_a_result_of_an_older_run_has_a_report_without_answers(tmp_path: Path) -> None:
    RESULT.write(tmp_path / "result.json")
    result, answers = read_run(tmp_path)
    assert answers == StudyAnswers() == stored_answers(tmp_path / "answers.json")
    write_pages(result, answers, tmp_path, name="old")
    assert "This run stored no answers" in (tmp_path / "report.html").read_text("utf-8")
    assert (tmp_path / "report.md").read_text("utf-8").startswith("# old\n")


def test_answers_are_the_same_after_a_round_trip(tmp_path: Path) -> None:
    _, answers = synthetic_study(n_trials=20, n_questions=3)
    path = tmp_path / "answers.json"
    write_answers(answers, path)
    assert stored_answers(path) == answers
    path.write_text('{"systems": 1}')
    with pytest.raises(StudyError, match="written by another version"):
        stored_answers(path)


@pytest.mark.parametrize(("content", "said"), [(None, "it has no result.json"), ("{}", "damaged")])
def test_what_is_no_run_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(StudyError, match=said):
        read_run(tmp_path)


def test_the_headline_says_what_to_do_with_the_numbers_of_the_table() -> None:
    # 9 / 5000 usd against 1 / 5000: 9 times; 71.0 - 67.0 = 4.0, whatever the verdict counts besides
    wider = replace(SMALL[0].verdict, interval=Interval(0.052, 0.031, 0.075, 0.9))
    for result in (SMALL[0], replace(SMALL[0], verdict=wider)):
        assert headline(result) == (
            "Use the mixture: it scores 71.0 % on questions that the search never saw, 4.0 points "
            "more than the best single model, haiku (67.0 %), at 9.0 times its price."
        )
    assert headline(RESULT).startswith("Not decided: 300 questions do not tell")
    assert "About 900 more would. Until then, use large." in headline(RESULT)


KEEP = "Keep one model, large: it scores 68.0 % on questions that the search never saw"


def with_single_pick(*tried: str, **more: Any) -> StudyResult:
    """Return a result whose pick is one agent, after these trials."""
    verdict = replace(RESULT.verdict, kind="single", p_value=None)
    trials = tuple(trial(n, text, 0.6, 1.0) for n, text in enumerate(tried))
    pick = Architecture.single("large")
    return replace(RESULT, pick=pick, verdict=verdict, trials=trials, **more)


@pytest.mark.parametrize(
    ("tried", "said"),
    [
        (
            ("large", "small", "large + small > vote(large)"),
            f"{KEEP}, and none of the 3 architectures tried was better on val by more than luck "
            "explains.",
        ),
        (("large", "small"), f"{KEEP}, and no mixture was tried."),
        (("large",), f"{KEEP}."),
    ],
)
def test_the_headline_of_a_single_pick_says_what_was_tried(
    tried: tuple[str, ...], said: str
) -> None:
    assert headline(with_single_pick(*tried)) == said


def test_a_headline_contradicts_no_baseline_that_is_better_on_test() -> None:
    better = {"extra": Interval(-0.1, -0.16, -0.06, 0.9)}
    result = with_single_pick("large", "large + small > vote(large)", differences=better)
    assert headline(result) == f"{KEEP}."


def test_a_part_of_the_rows_is_marked_wherever_its_score_is() -> None:
    result, answers = SMALL
    part = replace(result.test["pick"], n_rows=33, n_missing=47, note="33 of 80 rows: ended")
    # Without a difference on the same rows.
    partial = replace(result, test={**result.test, "pick": part}, differences={})
    page = report_html(partial, answers, name="part")
    assert "<small>of 33 of 80 rows</small>" in page
    assert "[67.0, 75.0]\n33 of 80 rows</td>" in page
    labels = [row[0] for row in json.loads(embedded(page, "data"))["systems"]]
    assert labels[:2] == ["Pick of the search, 33 of 80 rows", "Best single agent"]
    assert above_pick(partial) == []
    # Its score and that of the best single agent are of different rows.
    assert headline(partial) == result.verdict.text


def test_rows_that_were_not_asked_are_not_counted_as_unsolved() -> None:
    pick = Architecture.parse("a + b > vote(a)")
    asked = [
        SystemAnswers(("pick",), str(pick), (1.0, 1.0, None, None), ("",) * 4, {}),
        SystemAnswers((), "a", (1.0, 0.0, 1.0, None), ("",) * 4, {}),
        SystemAnswers((), "b", (1.0, 1.0, None, None), ("",) * 4, {}),
    ]
    first, _ = architecture_rows(pick, StudyAnswers(systems=tuple(asked)))
    # All three answered two questions: a solves 1 of them, b both, and one that a does not.
    assert [agent["facts"] for agent in first["agents"]] == [
        ["alone 50.0 % solved", "only it: 0, used: 0"],
        ["alone 100.0 % solved", "only it: 1, used: 1"],
    ]


def test_a_baseline_above_the_pick_is_explained_by_its_interval() -> None:
    (line,) = above_pick(SMALL[0])
    # The difference of self_moa is -0.01 [-0.04, 0.02]: it contains 0
    assert "72.0 % against 71.0 %; luck explains a difference of this size" in line
    assert "Oracle" not in line


def trial(number: int, name: str, score: float, usd: float, **more: Any) -> TrialRecord:
    origin = "model" if ">" in name else "single"
    return TrialRecord(number, name, origin, score, score, 0.0, 1.0, usd, 1.0, 10, **more)


def test_the_front_is_what_nothing_cheaper_reaches() -> None:
    trials = [
        trial(0, "a", 0.5, 1.0),
        trial(1, "b", 0.6, 1.0),  # as cheap as a, and better
        trial(2, "a + b > vote", 0.55, 2.0),  # dearer than b, and worse
        trial(3, "a*3 > vote", 0.7, 3.0),
        trial(4, "b*3 > vote", 0.9, 0.1, is_stopped_early=True),  # not on all rows
    ]
    assert front_numbers(trials, "usd") == [1, 3]


def test_an_agent_matters_by_the_mixtures_with_and_without_it() -> None:
    trials = [
        trial(0, "a", 0.5, 1.0),
        trial(1, "b", 0.6, 1.0),
        trial(2, "a + b > vote", 0.8, 2.0),
        trial(3, "b*3 > vote", 0.6, 2.0),
        trial(4, "b*5 > vote", 0.7, 2.0),
    ]
    # a: 0.8 with it, (0.6 + 0.7) / 2 without; b is in every mixture, (0.8 + 0.6 + 0.7) / 3
    assert agent_effects(trials) == [["b", 0.6, 0.7, None, 3], ["a", 0.5, 0.8, 0.65, 1]]


TWO = "rag.query: a; rag.answer: a + b > vote(a; order=b)"


def test_in_a_program_an_agent_matters_in_each_mixture() -> None:
    trials = [
        trial(0, "q: a; r: a", 0.2, 1.0),
        trial(1, "q: a; r: b", 0.5, 1.0),
        trial(2, "q: b; r: b", 0.4, 1.0),
        trial(3, "q: a + b > vote; r: b", 0.8, 2.0),
        trial(4, "q: a*3 > vote; r: a*3 > vote", 0.6, 2.0),
    ]
    # Alone: the best program of single agents that has it there. Mixtures of q are 3 and 4, of r
    # only 4.
    assert agent_effects(trials) == [
        ["q: a", 0.5, 0.7, None, 2],
        ["r: b", 0.5, None, 0.6, 0],
        ["q: b", 0.4, 0.8, 0.6, 1],
        ["r: a", 0.2, 0.6, None, 1],
    ]


def test_the_mixtures_of_a_program_are_drawn_one_by_one_and_named_in_words() -> None:
    pick = read_architecture(TWO)
    rows = architecture_rows(pick, StudyAnswers())
    titles = ["rag.query: Single agent", "rag.answer: Layer 1", "rag.answer: vote"]
    assert [row["title"] for row in rows] == titles
    drawing = architecture_drawing(pick, StudyAnswers())
    # The program's own code is between the mixtures: the only arrow is inside of the second.
    assert len(drawing["arrows"]) == 1
    single = replace(RESULT.test["best_single"], architecture="rag.query: a; rag.answer: b")
    rows_of_test = {**RESULT.test, "best_single": single}
    verdict = replace(RESULT.verdict, kind="mixture")
    result = replace(RESULT, pick=pick, recommended=pick, test=rows_of_test, verdict=verdict)
    assert headline(result).startswith("Use the mixtures: the program scores ")
    assert "the best single models, rag.query: a; rag.answer: b (" in headline(result)
    page = report_html(result, StudyAnswers(), name="two")
    assert "rag.query: a;<br>rag.answer: a + b &gt; vote(a; order=b)</p>" in page
    assert 'class="b">answer</text>' not in page
    assert ["Best single agents", single.architecture] in [
        row[:2] for row in json.loads(embedded(page, "data"))["systems"]
    ]


def test_a_table_has_a_line_for_each_mixture_of_a_program() -> None:
    single = replace(RESULT.test["best_single"], architecture=TWO)
    lines = str(replace(RESULT, test={"best_single": single})).splitlines()
    assert lines[1].startswith("best_single  rag.query: a; ")
    assert lines[2].strip() == "rag.answer: a + b > vote(a; order=b)"
    html = replace(RESULT, test={"best_single": single})._repr_html_()
    assert "<td>rag.query: a;<br>rag.answer: a + b &gt; vote(a; order=b)</td>" in html


def test_a_member_is_shown_with_what_only_it_solves() -> None:
    from moa_dspy.optimize.answers import AskedQuestion, SystemAnswers

    texts = ("", "", "", "")
    answers = StudyAnswers(
        questions=tuple(AskedQuestion(str(n), "", "") for n in range(4)),
        systems=(
            SystemAnswers(("pick",), "a + b > vote", (1.0, 1.0, 0.0, 0.0), texts),
            SystemAnswers((), "a", (1.0, 1.0, 1.0, 0.0), texts),
            SystemAnswers((), "b", (1.0, 0.0, 0.0, 0.0), texts),
        ),
    )
    layer, last = architecture_rows(Architecture.parse("a + b > vote"), answers)
    # a solves 3 of 4; b does not solve the second and third of them, and the pick the second
    assert layer["agents"][0]["facts"] == ["alone 75.0 % solved", "only it: 2, used: 1"]
    assert layer["agents"][1]["facts"] == ["alone 25.0 % solved", "only it: 0, used: 0"]
    assert last["title"] == "vote"


def test_the_drawing_of_a_weighted_vote_says_the_weight_of_each_member() -> None:
    weighted = Architecture.parse("a + b > vote(a; weights=a:1.5 b:0.5)")
    layer, last = architecture_rows(weighted, StudyAnswers())
    facts = {agent["name"]: agent["facts"] for agent in layer["agents"]}
    assert facts == {"a": ["weight 1.5"], "b": ["weight 0.5"]}
    assert last["agents"][0]["facts"] == ["decides ties of the vote"]
    layered = Architecture.parse("a + b > a + b > vote(a; weights=a:1.5 b:0.5)")
    first, second, _ = architecture_rows(layered, StudyAnswers())
    assert [agent["facts"] for agent in first["agents"]] == [[], []]
    assert second["agents"][0]["facts"] == ["reads layer 1", "weight 1.5"]


def test_markdown_shows_texts_as_they_are() -> None:
    assert markdown_text("a | b\n`c` <d>") == r"a \| b \`c\` \<d\>"
    assert markdown_block("x ``` y").splitlines() == ["````text", "x ``` y", "````"]
