"""The result of a study as plain data: pick, baselines, verdicts, costs and versions."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeAlias

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.early_facts import EarlyFacts
from moa_dspy.optimize.judge_facts import DirectComparison, JudgedSystem, JudgeFacts
from moa_dspy.optimize.space.programs import (
    ProgramArchitecture,
    mixture_lines,
    read_architecture,
)
from moa_dspy.winrate import CostVerdict, Interval, Verdict


@dataclass(frozen=True, slots=True)
class SystemScore:
    """One system on one split: its mean score with a 95 % interval, and the cost of a question.

    Attributes:
        name: ``pick``, ``best_single``, ``self_moa``, ``top_k``, ``random`` or ``oracle``.
        architecture: Text notation; None for the oracle, which is no program.
        score: Mean metric, in [0, 1]; None if the system was not run.
        low: Lower end of the interval of ``score``.
        high: Upper end of the interval of ``score``.
        calls: Requests to models per question.
        usd: Price per question, at the pool's prices; None if one of them is unknown.
        seconds: Time to the answer per question, with the proposers of a layer in parallel; None
            if the study's recording lacks it.
        failures: Share of questions without an answer; they score 0.
        note: Why the system was not run on all rows, or how it was chosen.
        n_rows: Number of questions that the score is of; None if that was not counted.
        n_missing: Further questions of the split, on which the system was not measured.
    """

    name: str
    architecture: str | None
    score: float | None
    low: float | None = None
    high: float | None = None
    calls: float | None = None
    usd: float | None = None
    seconds: float | None = None
    failures: float = 0.0
    note: str = ""
    n_rows: int | None = None
    n_missing: int = 0

    @property
    def part(self) -> str:
        """The part of the rows that was measured, "33 of 80 rows"; empty if that is all."""
        n = self.n_rows or 0
        return f"{n:,} of {n + self.n_missing:,} rows" if self.n_missing else ""


@dataclass(frozen=True, slots=True)
class ComparedSystems:
    """Rows on val and test by name, paired differences on test, and the verdict."""

    val: Mapping[str, SystemScore]
    test: Mapping[str, SystemScore]
    differences: Mapping[str, Interval]
    verdict: Verdict
    cost_verdict: CostVerdict | None = None
    front_verdicts: Mapping[str, CostVerdict] = field(default_factory=dict)
    savings: Mapping[str, CostVerdict] = field(default_factory=dict)
    direct: DirectComparison | None = None
    judged: Mapping[str, Mapping[str, JudgedSystem]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One architecture that the search measured on validation rows; an unknown cost is None."""

    number: int
    architecture: str
    origin: str
    win_rate: float
    score: float
    diversity: float
    calls: float
    usd: float | None
    seconds: float | None
    rows: int
    is_stopped_early: bool = False


@dataclass(frozen=True, slots=True)
class StudyResult:
    """The outcome of a study.

    Attributes:
        pick: The architecture with the highest win rate on val.
        recommended: The pick if the verdict is for it, else the best single agent.
        verdict: Result of one paired test on the test rows, pick against best single.
        val: Systems on the validation split, by name.
        test: Systems on the test split, by name.
        differences: Pick minus each other system on test: for the best single agent with the
            verdict's interval, for the others with simultaneous intervals.
        optimism: Bias of the pick's val score by the selection, estimated without test rows, by
            resampling the selection.
        trials: Every architecture measured, in order.
        space_size: Number of different architectures, including measured ones that are not in
            the space; None if it was not counted.
        calls_made: Requests paid for by this run.
        calls_reused: Answers that came from the store.
        usd: Amount that this run paid; None if the price of an agent is unknown.
        seconds: Wall time of this run.
        stopped_by: The limit of the budget that ended the search, or None.
        failures: Failed responses per agent, counted over distinct computations.
        failure_reasons: The most frequent reasons of these, with their numbers.
        cut: Responses truncated by the token limit (``length``) or a filter (``content_filter``):
            agent -> reason -> number, counted like failures.
        seed: Seed of all random choices.
        versions: Versions of the relevant packages.
        notes: Notes on this run, such as on agents that were left out.
        expected: Expected score on new rows of a pick made in this way, cross-fitted on val, 95 %;
            None with fewer than 10 rows.
        early: Facts from the single agents, before the search.
        front: The Pareto front, best score first: architectures that no other dominates; empty
            with one objective.
        knee: The member of ``front`` that is recommended if all objectives matter equally.
        explained: Share of the variance between architectures, in [0, 1], that
            ``performance`` and ``diversity`` of their members explain, and the ``rest``.
        prompts: The prompts tried for aggregators, as plain data: ``name``, ``origin``,
            ``text``, ``accepted`` and other facts about each.
        cost_verdict: Whether the pick is as good as the best single agent of all, for less;
            None if no cost is an objective or limited.
        front_verdicts: The same for the other members of ``front``, by architecture.
        savings: Whether votes of ``front`` that cost less than the pick are as good as the pick,
            by architecture; in these verdicts the pick replaces the single agent.
        judge: Facts about the judge and its scores; None without a judge.
        for_less: The cheapest trial that val shows to be no worse than the pick, if a cost is an
            objective or limited; None if that is the pick.
    """

    pick: Architecture
    recommended: Architecture
    verdict: Verdict
    val: Mapping[str, SystemScore]
    test: Mapping[str, SystemScore]
    differences: Mapping[str, Interval]
    optimism: float
    trials: tuple[TrialRecord, ...]
    space_size: int | None
    calls_made: int
    calls_reused: int
    usd: float | None
    seconds: float
    seed: int
    stopped_by: str | None = None
    failures: Mapping[str, int] = field(default_factory=dict)
    failure_reasons: Mapping[str, int] = field(default_factory=dict)
    cut: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    expected: Interval | None = None
    early: EarlyFacts | None = None
    front: tuple[str, ...] = ()
    knee: str | None = None
    explained: Mapping[str, float] = field(default_factory=dict)
    prompts: tuple[Mapping[str, Any], ...] = ()
    cost_verdict: CostVerdict | None = None
    front_verdicts: Mapping[str, CostVerdict] = field(default_factory=dict)
    savings: Mapping[str, CostVerdict] = field(default_factory=dict)
    judge: JudgeFacts | None = None
    for_less: str | None = None

    def score_interval(self, row: SystemScore) -> tuple[float | None, float | None]:
        """Return the ends of the 95 % interval of a system's score; None if it has no interval.

        The reference of a judge has none, as it wins 50 % against itself by definition.
        """
        judge = self.judge
        if judge is not None and judge.picks == "judge" and row.architecture == judge.reference:
            return None, None
        return row.low, row.high

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, with the keys of the command line's ``--json``."""
        return {
            "pick": str(self.pick),
            "recommended": str(self.recommended),
            "verdict": asdict(self.verdict),
            "val": {name: asdict(row) for name, row in self.val.items()},
            "test": {name: asdict(row) for name, row in self.test.items()},
            "differences": {name: asdict(interval) for name, interval in self.differences.items()},
            "optimism": self.optimism,
            "calls": {"made": self.calls_made, "reused": self.calls_reused},
            "usd": self.usd,
            "seconds": self.seconds,
            "trials": [asdict(trial) for trial in self.trials],
            "space_size": self.space_size,
            "stopped_by": self.stopped_by,
            "failures": dict(self.failures),
            "failure_reasons": dict(self.failure_reasons),
            "cut": {agent: dict(reasons) for agent, reasons in self.cut.items()},
            "seed": self.seed,
            "versions": dict(self.versions),
            "notes": list(self.notes),
            "expected": None if self.expected is None else asdict(self.expected),
            "early": None if self.early is None else self.early.to_json(),
            "front": list(self.front),
            "knee": self.knee,
            "explained": dict(self.explained),
            "prompts": [dict(prompt) for prompt in self.prompts],
            "cost_verdict": None if self.cost_verdict is None else asdict(self.cost_verdict),
            "front_verdicts": {
                name: asdict(verdict) for name, verdict in self.front_verdicts.items()
            },
            "savings": {name: asdict(verdict) for name, verdict in self.savings.items()},
            "judge": None if self.judge is None else self.judge.to_json(),
            "for_less": self.for_less,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StudyResult:
        """Return the result whose ``to_json`` was ``content``."""
        plain = dict(content)
        calls = plain.pop("calls")
        verdict = plain.pop("verdict")
        interval = Interval(**verdict.pop("interval"))
        differences = plain.pop("differences")
        expected, early = plain.pop("expected", None), plain.pop("early", None)
        for_less, judge = plain.pop("cost_verdict", None), plain.pop("judge", None)
        return cls(
            pick=read_architecture(plain.pop("pick")),
            recommended=read_architecture(plain.pop("recommended")),
            verdict=Verdict(**verdict, interval=interval),
            differences={name: Interval(**ends) for name, ends in differences.items()},
            calls_made=calls["made"],
            calls_reused=calls["reused"],
            trials=tuple(TrialRecord(**trial) for trial in plain.pop("trials")),
            notes=tuple(plain.pop("notes")),
            expected=None if expected is None else Interval(**expected),
            early=None if early is None else EarlyFacts.from_json(early),
            front=tuple(plain.pop("front", ())),
            prompts=tuple(plain.pop("prompts", ())),
            cost_verdict=None if for_less is None else _cost_verdict(for_less),
            judge=None if judge is None else JudgeFacts.from_json(judge),
            front_verdicts=_cost_verdicts(plain.pop("front_verdicts", {})),
            savings=_cost_verdicts(plain.pop("savings", {})),
            val={name: SystemScore(**row) for name, row in plain.pop("val").items()},
            test={name: SystemScore(**row) for name, row in plain.pop("test").items()},
            **plain,
        )

    def to_pandas(self, of: Literal["systems", "trials"] = "systems") -> Any:
        """Return a data frame: a row for each system on test, or for each architecture tried.

        Args:
            of: ``systems``: scores on test with intervals, costs, and the difference to the pick;
                ``trials``: val scores and costs of each architecture that the search measured.

        Raises:
            StudyError: If ``of`` is neither.
        """
        import pandas as pd

        if of == "trials":
            return pd.DataFrame([asdict(trial) for trial in self.trials]).set_index("number")
        if of != "systems":
            raise StudyError(f"`of` must be 'systems' or 'trials', but got {of!r}.")
        rows = []
        for name, row in self.test.items():
            low, high = self.score_interval(row)
            rows.append({**asdict(row), "low": low, "high": high, **self._minus(name)})
        return pd.DataFrame(rows).set_index("name")

    def _minus(self, name: str) -> dict[str, float | None]:
        """Return the difference of the pick and a system, with its interval."""
        difference = self.differences.get(name)
        if difference is None:
            return dict.fromkeys(("pick_minus", "pick_minus_low", "pick_minus_high"))
        return {
            "pick_minus": difference.estimate,
            "pick_minus_low": difference.low,
            "pick_minus_high": difference.high,
        }

    def _cells(self) -> list[list[str]]:
        """Return the table of the systems on test as texts, its header first."""
        table = [["system", "architecture", "test score", "pick minus row", "calls"]]
        for name, row in self.test.items():
            difference = self.differences.get(name)
            score = "not run" if row.score is None else f"{100 * row.score:.1f} %"
            low, high = self.score_interval(row)
            if row.score is not None and low is not None and high is not None:
                score += f" [{100 * low:.1f}, {100 * high:.1f}]"
            score += f" ({row.part})" if row.part else ""
            minus = "" if difference is None else f"{100 * difference.estimate:+.1f}"
            calls = "" if row.calls is None else f"{row.calls:.1f}"
            shown = "\n".join(mixture_lines(row.architecture or ""))
            table.append([name, shown, score, minus, calls])
        return table

    def __str__(self) -> str:
        table = [line for row in self._cells() for line in _lines(row)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        return "\n".join([*lines, "", self.verdict.text])

    def _repr_html_(self) -> str:
        head, *rows = [
            [escape(cell).replace("\n", "<br>") for cell in row] for row in self._cells()
        ]
        body = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows)
        return (
            f"<table><tr><th>{'</th><th>'.join(head)}</th></tr>{body}</table>"
            f"<p>{escape(self.verdict.text)}</p>"
        )

    def write(self, path: Path | str) -> None:
        """Write ``to_json`` to a file."""
        Path(path).write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n", "utf-8")


def _lines(cells: list[str]) -> list[list[str]]:
    """Return the lines of a table row whose cells may have several lines."""
    return [list(line) for line in zip_longest(*(cell.split("\n") for cell in cells), fillvalue="")]


def _cost_verdict(content: Mapping[str, Any]) -> CostVerdict:
    return CostVerdict(**{**content, "interval": Interval(**content["interval"])})


def _cost_verdicts(content: Mapping[str, Mapping[str, Any]]) -> dict[str, CostVerdict]:
    return {name: _cost_verdict(table) for name, table in content.items()}


ScoresAlone: TypeAlias = Mapping[tuple[str, str], float]
"""Scores by path of a mixture ("" if it is not part of a program) and agent."""


def scores_alone(trials: Sequence[TrialRecord]) -> ScoresAlone:
    """Return the score of each agent alone; in a program, of the best with this single agent."""
    scores: dict[tuple[str, str], float] = {}
    for trial in trials:
        mixtures = mixtures_in(trial.architecture)
        if trial.is_stopped_early or any(member.layers for member in mixtures.values()):
            continue
        for path, mixture in mixtures.items():
            place = (path, str(mixture))
            scores[place] = max(trial.score, scores.get(place, 0.0))
    return scores


def members_score(trial: TrialRecord, alone: ScoresAlone) -> float | None:
    """Return the mean score, alone, of the agents that the last steps read."""
    scores = [
        alone[path, name]
        for path, architecture in mixtures_in(trial.architecture).items()
        for name in (architecture.layers[-1] if architecture.layers else architecture.agents)
        if (path, name) in alone
    ]
    return round(fmean(scores), 6) if scores else None


def mixtures_in(text: str) -> dict[str, Architecture]:
    """Return the mixtures by path ("" for a single one); empty if this version cannot read it."""
    try:
        architecture = read_architecture(text)
    except ValueError:
        return {}
    return (
        dict(architecture.parts)
        if isinstance(architecture, ProgramArchitecture)
        else {"": architecture}
    )


def agent_effects(trials: Sequence[TrialRecord]) -> list[list[Any]]:
    """Return name, score alone, and mean score of mixtures with and without each agent.

    The means are over mixtures that were measured on all rows; None if there are none of a kind.
    In a program an agent has one entry for each mixture.
    """
    alone = scores_alone(trials)
    mixtures = [
        (path, set(mixture.agents), t.score)
        for t in trials
        if not t.is_stopped_early
        for path, mixture in mixtures_in(t.architecture).items()
        if mixture.layers
    ]
    effects: list[list[Any]] = []
    for path, name in sorted(alone, key=lambda place: -alone[place]):
        inside = [(agents, score) for where, agents, score in mixtures if where == path]
        with_it = [score for agents, score in inside if name in agents]
        without = [score for agents, score in inside if name not in agents]
        means = [round(fmean(part), 6) if part else None for part in (with_it, without)]
        label = f"{path}: {name}" if path else name
        effects.append([label, alone[path, name], *means, len(with_it)])
    return effects


PACKAGES = ("moa-dspy", "dspy", "optuna", "numpy", "scipy", "xllamacpp")


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that is installed."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed
