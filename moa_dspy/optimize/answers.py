"""The answers behind a result: each test question with the answers of systems and agents.

A run keeps them in ``answers.json``, apart from ``result.json``, which stays small.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.calls.scope import CallTable
from moa_dspy.diversity.base import DiversityMetric
from moa_dspy.errors import StudyError
from moa_dspy.optimize.evaluate import Evaluator, Student
from moa_dspy.optimize.metric import Outcome
from moa_dspy.optimize.result import StudyResult
from moa_dspy.optimize.singles import SingleAgents
from moa_dspy.optimize.space.programs import read_architecture
from moa_dspy.presets import TurnByTurn

MOST_TEXT: Final = 2_000_000
"""Bytes of all texts together; a report of 500 questions is then small enough to be sent."""
_LONGEST, _SHORTEST = 4_000, 60


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """One test question.

    Attributes:
        id: Id of its row.
        text: Its inputs.
        expected: Its labels; empty where there are none.
    """

    id: str
    text: str
    expected: str


@dataclass(frozen=True, slots=True)
class SystemAnswers:
    """The answers of one system to the test questions, in the order of the questions.

    Attributes:
        names: Its names in the result (``pick``, ``best_single``, ...); none for an agent that is
            not a baseline.
        architecture: In text notation.
        scores: In [0, 1]; None where it was not asked.
        texts: Its answers; empty where it was not asked or did not answer.
        failures: Why it did not answer, by index of the question.
    """

    names: tuple[str, ...]
    architecture: str
    scores: tuple[float | None, ...]
    texts: tuple[str, ...]
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StudyAnswers:
    """Questions, answers and counts that a report shows beside the result.

    Attributes:
        questions: Questions of test.
        systems: The pick first, then baselines, then the other agents alone.
        distances: Mean diversity of the answers of two agents on val, (agents, agents).
        agents: In the order of ``distances``, best on val first.
        diversity: The metric of ``distances``.
        calls: Calls by stage and agent, as this process counted them: ``stage``, ``agent``,
            ``made``, ``reused``, ``failed``, ``tokens``, ``usd``.
        study: Facts that identify the study: name, file, digests, agents.
        n_cut: Texts that were shortened to keep the report small.
        agents_file: Path from the run's folder to the file that lists its agents; empty where
            that is not known.
    """

    questions: tuple[AskedQuestion, ...] = ()
    systems: tuple[SystemAnswers, ...] = ()
    distances: tuple[tuple[float, ...], ...] = ()
    agents: tuple[str, ...] = ()
    diversity: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    study: Mapping[str, Any] = field(default_factory=dict)
    n_cut: int = 0
    agents_file: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StudyAnswers:
        """Return the answers whose ``to_json`` was ``content``.

        Raises:
            StudyError: If the content has another form.
        """
        try:
            systems = [
                SystemAnswers(
                    **{
                        **system,
                        **{name: tuple(system[name]) for name in ("names", "scores", "texts")},
                    }
                )
                for system in content["systems"]
            ]
            return cls(
                questions=tuple(AskedQuestion(**question) for question in content["questions"]),
                systems=tuple(systems),
                distances=tuple(map(tuple, content["distances"])),
                agents=tuple(content["agents"]),
                diversity=content["diversity"],
                calls=tuple(content["calls"]),
                study=content["study"],
                n_cut=content["n_cut"],
                agents_file=content.get("agents_file", ""),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise StudyError(
                f"The stored answers cannot be read ({type(error).__name__}: {error}): they were "
                "written by another version of moa-dspy."
            ) from error


def study_answers(
    evaluator: Evaluator,
    rows: Sequence[dspy.Example],
    result: StudyResult,
    singles: SingleAgents,
    diversity: DiversityMetric,
) -> StudyAnswers:
    """Return all answers to the test rows; asks nothing.

    Args:
        evaluator: Knows the answers.
        rows: Rows of test.
        result: Names the systems.
        singles: The single agents on val.
        diversity: Compares their answers.
    """
    ranking, pair = singles.ranking, singles.pair(diversity)
    named: dict[Architecture, list[str]] = {}
    for name, score in result.test.items():
        if score.architecture is not None and score.score is not None:
            named.setdefault(read_architecture(score.architecture), []).append(name)
    for agent in ranking:
        named.setdefault(Architecture.single(agent), [])
    cut = _Cut(MOST_TEXT // max(1, len(rows) * (len(named) + 2)))
    return StudyAnswers(
        questions=tuple(_question(row, cut) for row in rows),
        systems=tuple(
            _answers_of(evaluator, architecture, names, rows, cut)
            for architecture, names in named.items()
        ),
        distances=tuple(tuple(round(pair(a, b), 6) for b in ranking) for a in ranking),
        agents=tuple(ranking),
        diversity=type(diversity).__name__,
        calls=calls_of(
            evaluator.node_cache.table, unpriced=Student.of(evaluator.student).mixture.pool.unpriced
        ),
        n_cut=cut.n,
    )


def calls_of(table: CallTable, *, unpriced: Container[str] = ()) -> tuple[Mapping[str, Any], ...]:
    """Return the counts of a table as plain data; usd of ``unpriced`` agents is None.

    A model that writes prompts and is no agent has no name here, and what it costs is unknown.
    """
    return tuple(
        {
            "stage": stage or "other",
            "agent": agent or "prompt model",
            **asdict(count),
            **({"usd": None} if not agent or agent in unpriced else {}),
        }
        for (stage, agent), count in table.counts.items()
    )


def with_study(answers: StudyAnswers, **facts: Any) -> StudyAnswers:
    """Return the answers with more facts that identify the study."""
    return replace(answers, study={**answers.study, **facts})


def write_answers(answers: StudyAnswers, path: Path) -> None:
    """Write ``to_json`` to a file."""
    path.write_text(json.dumps(answers.to_json(), allow_nan=False) + "\n", "utf-8")


def stored_answers(path: Path) -> StudyAnswers:
    """Read the answers of a run; they are empty for a run without such a file.

    Raises:
        StudyError: If the file holds no answers.
    """
    if not path.exists():
        return StudyAnswers()
    try:
        return StudyAnswers.from_json(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read as answers of a run: {error}.") from error


@dataclass(slots=True)
class _Cut:
    """Shortens texts to about ``n_bytes`` each, and counts those that were."""

    n_bytes: int
    n: int = 0

    def __call__(self, text: str) -> str:
        room = min(_LONGEST, max(_SHORTEST, self.n_bytes))
        # A lone surrogate, such as half of an emoji that a model cut, cannot be written to a file.
        raw = text.encode("utf-8", "replace")
        if len(raw) <= room:
            return raw.decode("utf-8")
        self.n += 1
        return raw[:room].decode("utf-8", "ignore") + " […]"


def _question(row: dspy.Example, cut: _Cut) -> AskedQuestion:
    inputs = dict(row.inputs())
    labels = {n: v for n, v in dict(row.labels()).items() if n not in ("id", "split")}
    return AskedQuestion(str(row.id), cut(_fields(inputs)), cut(_fields(labels)))


def _fields(values: Mapping[str, Any]) -> str:
    if len(values) == 1:
        return _shown(next(iter(values.values())))
    return "\n".join(f"{name}: {_shown(value)}" for name, value in values.items())


def _shown(value: Any) -> str:
    """Return a value as text, an image as its address; the turns of a conversation are numbered."""
    if isinstance(value, dspy.Type):
        return repr(value)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        return str(value)
    return "\n".join(f"[{number}] {text}" for number, text in enumerate(value, start=1))


def _answers_of(
    evaluator: Evaluator,
    architecture: Architecture,
    names: Sequence[str],
    rows: Sequence[dspy.Example],
    cut: _Cut,
) -> SystemAnswers:
    scores: list[float | None] = []
    texts: list[str] = []
    failures: dict[str, str] = {}
    for place, row in enumerate(rows):
        if not evaluator.knows(architecture, [row]):
            scores.append(None)
            texts.append("")
            continue
        (outcome,) = evaluator.measure(architecture, [row])
        scores.append(round(outcome.score, 6))
        texts.append(cut(_answer_text(evaluator, architecture, row, outcome)))
        if outcome.failure is not None:
            failures[str(place)] = cut(outcome.failure)
    return SystemAnswers(tuple(names), str(architecture), tuple(scores), tuple(texts), failures)


def _answer_text(
    evaluator: Evaluator, architecture: Architecture, row: dspy.Example, outcome: Outcome
) -> str:
    """Return the answer as text; for a conversation the answers to all turns."""
    program = Student.of(evaluator.student).program
    if not isinstance(program, TurnByTurn) or outcome.failure is not None:
        return outcome.answer
    # Every call was answered when the row was measured.
    return _shown(evaluator.ask(architecture, row)[program.output_field])
