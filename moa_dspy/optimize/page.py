"""The report of a study as a page: one HTML file that needs no network, and the same in Markdown.

The page embeds its data once, as compressed JSON; a script draws the plots from it with plotly,
which is embedded too. Texts of models reach it as data or escaped, and never as markup.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any, Final, NamedTuple

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.answers import StudyAnswers, SystemAnswers, stored_answers
from moa_dspy.optimize.objectives import front
from moa_dspy.optimize.report import (
    amount,
    brackets_line,
    duration,
    paid,
    result_lines,
    row_cells,
    row_names,
    verdict_lines,
)
from moa_dspy.optimize.result import (
    ScoresAlone,
    StudyResult,
    SystemScore,
    TrialRecord,
    agent_effects,
    members_score,
    mixtures_in,
    scores_alone,
)
from moa_dspy.optimize.space.programs import ProgramArchitecture, in_short, mixture_lines
from moa_dspy.winrate.intervals import points

_RIGHT: Final = 0.5
"""A question counts as solved from this score on."""
_BOXES: Final = 3
"""Agents beside each other in the drawing: more would be too small to read on a phone."""

LABELS: Final = {
    "pick": "Pick of the search",
    "best_single": "Best single agent",
    "best_without_limits": "Best single agent, whatever it costs",
    "own_prompt": "Pick with the aggregator's own prompt",
    "self_moa": "Self-MoA (one agent, several samples)",
    "top_k": "The best agents together",
    "random": "Best of as many random architectures",
    "oracle": "Oracle: best agent of each question",
}
"""Names of the rows of a comparison on a page."""
_LABELS_OF_PROGRAM: Final = {
    **LABELS,
    "best_single": "Best single agents",
    "best_without_limits": "Best single agents, whatever they cost",
}


class _Words(NamedTuple):
    """Words of a headline about one mixture, or about those of a program."""

    one: str = "one model"
    scores: str = "it scores"
    found: str = "the best mixture found does"
    mixture: str = "the mixture"
    single: str = "the best single model"

    @classmethod
    def of(cls, pick: Architecture) -> _Words:
        if not isinstance(pick, ProgramArchitecture):
            return cls()
        one, found = "one model in each mixture", "the best mixtures found do"
        return cls(one, "the program scores", found, "the mixtures", "the best single models")


def read_run(folder: Path) -> tuple[StudyResult, StudyAnswers]:
    """Return the result of a run, and the answers where the run kept them.

    Args:
        folder: Folder of the run, or its ``result.json``.

    Raises:
        StudyError: If there is no result that can be read.
    """
    path = folder / "result.json" if folder.is_dir() else folder
    if not path.is_file():
        raise StudyError(f"{folder} is not the folder of a finished study: it has no result.json.")
    try:
        result = StudyResult.from_json(json.loads(path.read_text("utf-8")))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StudyError(
            f"{path} cannot be read as a result ({type(error).__name__}: {error}): it is damaged, "
            "or another version of moa-dspy wrote it."
        ) from error
    return result, stored_answers(path.parent / "answers.json")


def write_pages(result: StudyResult, answers: StudyAnswers, folder: Path, *, name: str) -> None:
    """Write ``report.html`` and ``report.md`` into ``folder``."""
    content = _content(result, answers, name)
    for file, text in (
        ("report.html", _html(content, result, answers)),
        ("report.md", _environment().get_template("report.md.j2").render(content)),
    ):
        # A lone surrogate, half of an emoji that a model cut, has no place in a file.
        (folder / file).write_bytes(text.encode("utf-8", "replace"))


def report_html(result: StudyResult, answers: StudyAnswers, *, name: str) -> str:
    """Return the page of a study."""
    return _html(_content(result, answers, name), result, answers)


def _html(content: Mapping[str, Any], result: StudyResult, answers: StudyAnswers) -> str:
    folder = Path(__file__).parent / "templates"
    from markupsafe import Markup

    page: str = (
        _environment()
        .get_template("report.html.j2")
        .render(
            content,
            # Files of this package, not of a study.
            css=Markup((folder / "report.css").read_text("utf-8")),
            script=Markup((folder / "report.js").read_text("utf-8")),
            plotly=_plotly(),
            data=_packed(json.dumps(page_data(result, answers), allow_nan=False)),
        )
    )
    return page


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("moa_dspy.optimize"),
        autoescape=lambda name: name is None or not name.endswith(".md.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "points": points,
        "amount": amount,
        "duration": duration,
        "paid": paid,
        "plain": markdown_text,
        "fence": markdown_block,
    }
    return environment


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return _packed(get_plotlyjs())


def _packed(text: str) -> str:
    """Return text as base64 of gzip: a third of its size, and nothing in it ends a script tag."""
    raw = text.encode("utf-8", "replace")
    return base64.b64encode(gzip.compress(raw, 9, mtime=0)).decode("ascii")


def markdown_text(text: object) -> str:
    """Return text in one line that Markdown shows as it is."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]<>|#~!])", r"\\\1", line)


def markdown_block(text: object) -> str:
    """Return text as a block of code, with a fence that the text does not hold."""
    ticks = max((len(run) for run in re.findall(r"`+", str(text))), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}text\n{str(text).rstrip()}\n{fence}"


def headline(result: StudyResult) -> str:
    """Return the verdict in one sentence that needs no knowledge of the field."""
    words = _Words.of(result.pick)
    kind, pick = result.verdict.kind, result.test.get("pick")
    single = result.test.get("best_single")
    score = "" if pick is None or pick.score is None else f"{points(pick.score)} %"
    if kind == "single" and not result.pick.layers:
        scored = f"{words.scores} {score} on questions that the search never saw" if score else ""
        facts = ", and ".join(filter(None, (scored, _tried(result))))
        return f"Keep {words.one}, {result.pick}{': ' if facts else ''}{facts}."
    if kind == "single":
        return f"Keep {words.one}, {result.recommended}: {words.found} not beat it."
    # Of parts of the rows, which may differ, the verdict's own sentence has the difference.
    is_told = kind == "mixture" and pick and single and not pick.part + single.part
    if is_told and pick and single and None not in (pick.score, single.score):
        return _mixture_headline(pick, single, words)
    if kind == "judge_cannot_tell":
        return (
            "Not decided: the judge cannot tell better answers from worse ones, so that "
            f"{result.pick} was picked may be chance too. Ask a stronger judge."
        )
    if kind == "not_enough_examples":
        more = f" About {result.verdict.n_more:,} more would." if result.verdict.n_more else ""
        return (
            f"Not decided: {result.verdict.n:,} questions do not tell {words.mixture} from "
            f"{words.single}.{more} Until then, use {result.recommended}."
        )
    return verdict_lines(result)[0]


def _tried(result: StudyResult) -> str:
    """Return what the search says of other architectures than a single pick; empty if nothing."""
    n = len(result.trials)
    tried = (mixtures_in(trial.architecture).values() for trial in result.trials)
    if n > 1 and not any(mixture.layers for mixtures in tried for mixture in mixtures):
        return "no mixture was tried"
    if n < 2 or any(difference.high < 0 for difference in result.differences.values()):
        return ""
    return f"none of the {n:,} architectures tried was better on val by more than luck explains"


def _mixture_headline(pick: SystemScore, single: SystemScore, words: _Words) -> str:
    score, other = pick.score or 0.0, single.score or 0.0
    gain = f"{points(abs(score - other))} points {'more' if score >= other else 'less'} than"
    price = f", at {pick.usd / single.usd:.1f} times its price" if pick.usd and single.usd else ""
    return (
        f"Use {words.mixture}: {words.scores} {points(score)} % on questions that the search "
        f"never saw, {gain} {words.single}, {single.architecture} ({points(other)} %)"
        f"{price}."
    )


def above_pick(result: StudyResult) -> list[str]:
    """Return a sentence on each baseline that scores more on test than the pick."""
    pick = result.test.get("pick")
    if pick is None or pick.score is None:
        return []
    lines = []
    for name, row in result.test.items():
        gap = result.differences.get(name)
        # Without a difference the two were not measured on the same rows.
        if gap is None or row.score is None or row.score <= pick.score:
            continue
        reason = (
            "the difference is larger than luck explains: the search missed it"
            if gap.high < 0
            else "luck explains a difference of this size"
        )
        lines.append(
            f"{LABELS.get(name, name)} scored more on test, {points(row.score)} % against "
            f"{points(pick.score)} %; {reason}. The pick was made on val, before the test: a pick "
            "made by test scores would have no honest score left."
        )
    return lines


def _content(result: StudyResult, answers: StudyAnswers, name: str) -> dict[str, Any]:
    """Return what the templates show, formatted: the numbers are those of the text report."""
    names, judge = row_names(result), result.judge
    is_judged = judge is not None and judge.picks == "judge"
    rows = [{"name": n, "label": _label(result, n), **row_cells(result, n)} for n in names]
    return {
        "name": name,
        "headline": in_short(headline(result)),
        "verdicts": [*map(in_short, verdict_lines(result))],
        "above": above_pick(result),
        "result": result,
        "rows": [{**row, "lines": mixture_lines(row["architecture"])} for row in rows],
        "brackets": brackets_line(result),
        "lines": list(result_lines(result)),
        "pick_lines": mixture_lines(str(result.pick)),
        "layers": architecture_rows(result.pick, answers, is_judged=is_judged),
        "svg": architecture_drawing(result.pick, answers, is_judged=is_judged),
        "is_judged": is_judged,
        "prompts": result.prompts,
        "calls": answers.calls,
        "answers": answers,
        "study": json.dumps(answers.study, indent=1, ensure_ascii=True, default=str),
        "n_front": len(front_numbers(result.trials, "usd")),
    }


def page_data(result: StudyResult, answers: StudyAnswers) -> dict[str, Any]:
    """Return what the script draws: scores, trials, agents, questions and answers."""
    trials = result.trials
    alone = scores_alone(trials)
    return {
        "pick": str(result.pick),
        "systems": [
            [_label(result, n, row.part), row.architecture, row.score, *result.score_interval(row)]
            for n, row in result.test.items()
            if row.score is not None
        ],
        "expected": None
        if result.expected is None
        else [result.expected.estimate, result.expected.low, result.expected.high],
        "trials": [_trial_data(trial, alone) for trial in trials],
        "fronts": {cost: front_numbers(trials, cost) for cost in ("usd", "seconds")},
        "effects": agent_effects(trials),
        "agents": list(answers.agents),
        "similarity": [[round(1 - v, 4) for v in row] for row in answers.distances],
        "questions": [[q.id, q.text, q.expected] for q in answers.questions],
        "answers": [_answers_data(result, system) for system in answers.systems],
    }


def _label(result: StudyResult, name: str, part: str = "") -> str:
    is_program = isinstance(result.pick, ProgramArchitecture)
    label = (_LABELS_OF_PROGRAM if is_program else LABELS).get(name, name)
    return f"{label}, {part}" if part else label


def _trial_data(trial: TrialRecord, alone: ScoresAlone) -> list[Any]:
    names = ("architecture", "origin", "score", "usd", "seconds", "calls", "diversity", "rows")
    values = [getattr(trial, name) for name in names]
    return [*values, int(trial.is_stopped_early), members_score(trial, alone)]


def _answers_data(result: StudyResult, system: SystemAnswers) -> dict[str, Any]:
    label = ", ".join(_label(result, n) for n in system.names) or system.architecture
    if not system.names and isinstance(result.pick, ProgramArchitecture):
        label = f"{label} in every mixture"
    names = ("architecture", "scores", "texts", "failures")
    return {"label": label, **{name: getattr(system, name) for name in names}}


def front_numbers(trials: Sequence[TrialRecord], cost: str) -> list[int]:
    """Return the places of the Pareto front of score and ``cost``, cheapest first."""
    places = {id(trial): n for n, trial in enumerate(trials)}
    return [places[id(trial)] for trial in reversed(front(trials, ("score", cost)))]


def architecture_rows(
    architecture: Architecture, answers: StudyAnswers, *, is_judged: bool = False
) -> list[dict[str, Any]]:
    """Return the layers with their agents, and what each agent of layer 1 knew alone.

    Not where a judge gave the scores: they compare answers, and say of none that it is right. Nor
    in a program, where an agent was alone in all mixtures at once.
    """
    if isinstance(architecture, ProgramArchitecture):
        return [
            {**row, "title": f"{path}: {row['title']}", "path": path}
            for path, part in architecture.parts
            for row in architecture_rows(part, answers, is_judged=True)
        ]
    alone = {system.architecture: system for system in answers.systems}
    pick = alone.get(str(architecture))
    rows = []
    for depth, layer in enumerate(architecture.layers):
        members = list(dict.fromkeys(layer))
        is_shown = depth == 0 and not is_judged
        known = {n: alone[n] for n in members if n in alone} if is_shown else {}
        weights = dict(architecture.weights) if depth + 1 == architecture.depth else {}
        agents = []
        for n in members:
            facts = [f"reads layer {depth}"] if depth else _facts(n, known, pick)
            facts += [f"weight {weights[n]:g}"] if n in weights else []
            agents.append({"name": n, "times": layer.count(n), "facts": facts})
        rows.append({"title": f"Layer {depth + 1}", "agents": agents})
    return [*rows, _last_row(architecture)]


_ROLES: Final = {
    "synthesize": "writes the answer",
    "select": "selects an answer",
    "vote": "decides ties of the vote",
    "fuse": "writes the answer",
    "knockout": "compares two at a time",
}


def _last_row(architecture: Architecture) -> dict[str, Any]:
    combine, is_single = architecture.combine, not architecture.layers
    role = "answers alone" if is_single else _ROLES.get(combine, combine)
    end = {"name": architecture.aggregator or combine, "times": 1, "facts": [role]}
    return {"title": "Single agent" if is_single else combine, "agents": [end]}


def _solved(system: SystemAnswers) -> set[int]:
    return {n for n, score in enumerate(system.scores) if score is not None and score >= _RIGHT}


def _facts(name: str, known: Mapping[str, SystemAnswers], pick: SystemAnswers | None) -> list[str]:
    """Return two lines: how much an agent solves alone, and how much of it no other member does."""
    if name not in known or pick is None:
        return []
    scores = zip(pick.scores, *(member.scores for member in known.values()), strict=True)
    # A budget may have ended before all were asked.
    rows = {row for row, of_all in enumerate(scores) if None not in of_all}
    if not rows:
        return []
    own_rows = _solved(known[name]) & rows
    others = set().union(*(_solved(member) for n, member in known.items() if n != name))
    only = own_rows - others
    return [
        f"alone {100 * len(own_rows) / len(rows):.1f} % solved",
        f"only it: {len(only)}, used: {len(only & _solved(pick))}",
    ]


def architecture_drawing(
    architecture: Architecture, answers: StudyAnswers, *, is_judged: bool = False
) -> dict[str, Any]:
    """Return boxes and arrows of a drawing, in units of a picture that is 480 wide."""
    boxes: list[dict[str, Any]] = []
    arrows: list[tuple[int, int]] = []
    rows = architecture_rows(architecture, answers, is_judged=is_judged)
    every = [agent for row in rows for agent in row["agents"]]
    for agent in every:
        times = f" \u00d7 {agent['times']}" if agent["times"] > 1 else ""
        agent["name_lines"] = wrap(agent["name"] + times, 18)  # more letters would not fit
    n_lines = max(3, *(len(agent["name_lines"]) + len(agent["facts"]) for agent in every))
    top, width, height, gap = 8, 148, 14 + 20 * n_lines, 12
    is_one = not isinstance(architecture, ProgramArchitecture)
    for number, row in enumerate(rows, start=1):
        boxes.append({"title": row["title"], "y": top + 12})
        top += 22
        agents = row["agents"]
        for start in range(0, len(agents), _BOXES):
            line = agents[start : start + _BOXES]
            left = (480 - len(line) * width - (len(line) - 1) * gap) // 2
            for place, agent in enumerate(line):
                boxes.append({**agent, "x": left + place * (width + gap), "y": top})
            top += height + gap
        # The program's own code is between two mixtures, in an order that is not known here.
        is_last = number == len(rows) or row.get("path") != rows[number].get("path")
        if is_one or not is_last:
            arrows.append((top - gap, top + 18))
        top += 22
    return {
        "boxes": [box for box in boxes if "name" in box],
        "titles": [box for box in boxes if "title" in box],
        "arrows": arrows,
        "is_one": is_one,
        "height": top + 30 * is_one,
        "width": width,
        "box_height": height,
    }
