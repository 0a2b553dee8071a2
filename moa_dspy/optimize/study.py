"""A study shared by several processes: its parsed file and its row in the database."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import dspy
from pydantic import BaseModel

from moa_dspy.adapters.guard import without_closing, without_thought
from moa_dspy.agent import Agent
from moa_dspy.calls.budget import Ledger
from moa_dspy.calls.call import WritableBackend, canonical_json
from moa_dspy.calls.calls import Calls
from moa_dspy.calls.store.schema import Recording
from moa_dspy.calls.store.store import CallStore
from moa_dspy.data import (
    RecordedResponses,
    Splits,
    check_outputs,
    fields_read,
    fingerprint,
    read_answers,
)
from moa_dspy.data.discover import TableFaults
from moa_dspy.errors import DataError, PoolError, StudyError
from moa_dspy.optimize.evaluate import mixtures_of
from moa_dspy.optimize.metric import CheckedMetric, check_metric
from moa_dspy.optimize.prompts.joint import with_prompts
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.study_file import StudyFile, read_study
from moa_dspy.pool import Pool
from moa_dspy.testing import recorded_pool


@dataclass(frozen=True)
class PreparedStudy:
    """A study file, and all files that it names, read and checked before any call or write.

    Attributes:
        study: The file.
        splits: Its rows, each with an id.
        metric: The metric of an answer.
        agents: Agents that can be called on this machine.
        notes: Notes on agents and questions that are left out.
        recording: Answers that were recorded elsewhere.
        recorded: The agents' answers, if the rows are a table of answers.
    """

    study: StudyFile
    splits: Splits
    metric: Any
    agents: tuple[Agent, ...]
    notes: tuple[str, ...]
    recording: Recording | None
    recorded: RecordedResponses | None = None

    @classmethod
    def read(cls, path: Path | str) -> PreparedStudy:
        """Read the study of a file.

        Raises:
            MoaError: If anything in the file, or in the files that it names, is invalid.
        """
        path = Path(path)
        study = read_study(path)
        splits, metric = study.make_splits().with_ids(), study.make_metric()
        if study.data.reader is not None:
            return cls._of_answers(study, splits, metric)
        if study.task.program is None and study.task.turns is None:
            splits = _typed(splits, study.signature, folder=(study.data.path or path).parent)
        agents, notes = study.make_agents()
        source = study.calls.recording
        recording = Recording.read(source) if source is not None else None
        prepared = cls(study, splits, metric, agents, notes, recording)
        prepared.check()
        return prepared

    @classmethod
    def _of_answers(cls, study: StudyFile, splits: Splits, metric: Any) -> PreparedStudy:
        """Return the study of a table of answers, whose agents are the pool."""
        checked, path, has_scores = CheckedMetric.of(metric), study.data.path or Path(), True

        def matches(gold: Any, answer: str) -> float:
            nonlocal has_scores
            has_scores = False
            row = dspy.Example(id=gold, answer=gold, gold=gold).with_inputs()
            # What the agent returns of it: no thought and no end token.
            returned = without_closing(without_thought(study.signature, answer)).strip() or answer
            return checked.score(row, dspy.Prediction(answer=returned))

        recorded = read_answers(path, columns=study.data.columns, matches=matches)
        limits, named = asdict(study.limits), study.search.get("objectives", ())
        for cost in ("usd", "seconds"):
            is_aim = cost in named or limits[cost] is not None
            is_budget = cost == "usd" and study.budget.usd is not None
            if (is_aim or is_budget) and not recorded.knows(cost):
                n = sum(getattr(record, cost) is None for record in recorded.costs.values())
                reason = f"name its column in `data.columns.{cost}`"
                if 0 < n < len(recorded.costs):
                    reason = f"it is blank for {n} answers"
                raise StudyError(
                    f"{cost} is {'an objective or a limit' if is_aim else 'limited by `budget`'}, "
                    f"but {path} does not have it for every answer: {reason}."
                )
        if has_scores and study.task.metric != "answer_match":
            raise StudyError(
                f"`task.metric` is {study.task.metric!r}, but {path} has scores, which are used as "
                "they are: leave out the metric, or the column."
            )
        agents = tuple(recorded_pool(recorded).values())
        _check_no_reader(study.make_space(agents))
        complete = set.intersection(*map(set, recorded.responses.values()))
        n = (total := len(recorded.questions)) - len(complete)
        note = f"Questions left out, as not every agent has an answer to them: {n} of {total}."
        prepared = cls(study, splits, recorded.metric(), agents, (note,) * (n > 0), None, recorded)
        prepared.check()
        return prepared

    def check(self) -> None:
        """Construct all objects of the study once, without sending calls, to find mistakes early.

        Raises:
            MoaError: If parts of the file contradict each other, or do not work on this machine.
        """
        study, pool = self.study, self.make_pool(None, Ledger())
        student = study.make_student(pool)
        signature, is_asked_once = study.signature, study.task.turns is None
        options = study.make_search(pool, self.metric).options
        options.make_judging(self.splits)
        if study.task.program is not None:
            _check_program_inputs(student, self.splits.val[0])
        if is_asked_once:
            self.splits.check_inputs(tuple(signature.input_fields), of="`task.signature`")
        for split in ("train", "val", "test"):
            rows = getattr(self.splits, split)
            if split != "train" or study.prompts is not None:
                fields = () if self.metric is None else fields_read(self.metric)
                check_outputs(rows, fields, where=f"Split {split!r}")
        other = set(study.data.inputs) - set(signature.input_fields)
        if other and is_asked_once and study.task.program is None:
            raise StudyError(
                f"`data.inputs` has {min(other)!r}, which is no input of `task.signature`; its "
                f"inputs are {', '.join(signature.input_fields)}. Outputs go into `data.outputs`."
            )
        # Recorded answers have recorded scores; a made-up prediction has no score.
        if self.metric is not None and self.recorded is None and is_asked_once:
            check_metric(self.metric, signature, self.splits)
        with_prompts(options, student, self.splits.train)
        judges = () if study.judge is None else study.judge.own_agents().values()
        for agent in () if study.calls.replay_only else (*self.agents, *judges):
            if agent.missing_variables:
                raise PoolError(
                    f"Agent {agent.name!r}: the environment has no variable "
                    f"{agent.missing_variables[0]} (`weights` or `api_key_env`)."
                )

    def rows_notes(self) -> Iterator[str]:
        """Yield warnings about the rows, with counts."""
        data = self.study.data
        n_left_out, is_own = self.splits.n_left_out, data.reader is None and data.benchmark is None
        if n_left_out and is_own and data.sizes is not None:
            n = n_left_out + sum(data.sizes.model_dump(exclude_none=True).values())
            yield f"Rows that `data.sizes` leaves out of all splits: {n_left_out} of {n}."
        fields = () if self.metric is None else fields_read(self.metric)
        rows = [*self.splits.val, *self.splits.test]
        if fields:
            outputs = [{name: row.get(name, None) for name in fields} for row in rows]
            yield from TableFaults.of([dict(row.inputs()) for row in rows], outputs).lines()

    def program_notes(self, program: dspy.Module) -> Iterator[str]:
        """Yield warnings about a program of the user's own that holds the mixture."""
        if self.study.task.program is None:
            return
        yield (
            "The estimate counts the tokens of the rows only: what the program adds to the "
            "predictor's prompt, and the calls of its other modules, are not known before it "
            "runs."
        )
        mixtures = mixtures_of(program, with_frozen=True)
        places = tuple(f"{path.removeprefix('self.')}." for path in mixtures)
        alone = [
            n
            for n, p in program.named_predictors()
            if p.lm is None and not f"{n}.".startswith(places)
        ]
        if alone and dspy.settings.lm is None:
            yield (
                f"No LM is configured for {', '.join(alone)}: the program fails unless it sets one "
                "itself. Its module may call `dspy.configure(lm=...)`, or set the predictor's `lm`."
            )

    @cached_property
    def digests(self) -> dict[str, str]:
        """A digest of every part that affects the result of the study, by name."""
        public = [{**asdict(a), "weights": None, "identity": a.identity} for a in self.agents]
        parts = {**self.study.parts, "data": fingerprint(self.splits), "agents": public}
        if self.study.judge is not None:
            parts["judge"] = self.study.judge.digest(beside=self.study.folder)
        if self.recorded is not None:
            tables = (self.recorded.responses, self.recorded.scores, self.recorded.costs)
            parts["answers"] = [sorted(map(repr, table.items())) for table in tables]
        return {name: digest_of(value) for name, value in parts.items()}

    @property
    def public(self) -> dict[str, Any]:
        """All settings needed to repeat the study, without endpoints, keys and local paths."""
        names = ("name", "model", "temperature", "top_p", "max_tokens", "sha256")
        prices = ("usd_per_million_prompt_tokens", "usd_per_million_completion_tokens")
        return {
            "name": self.study.name,
            "digests": self.digests,
            "parts": self.study.parts,
            "budget": {name: value for name, value in self.budget.items() if value is not None},
            "agents": [{n: getattr(a, n) for n in (*names, *prices)} for a in self.agents],
            "n_rows": {n: len(getattr(self.splits, n)) for n in ("train", "val", "test")},
        }

    @property
    def budget(self) -> dict[str, Any]:
        """The limits of the budget by name."""
        return asdict(self.study.budget)

    def make_pool(self, store: WritableBackend | None, ledger: Ledger) -> Pool:
        """Return the agents, whose calls go to ``store``."""
        replay_only = self.study.calls.replay_only
        calls = Calls(store, recording=self.recording, replay_only=replay_only, ledger=ledger)
        if self.recorded is not None:
            return recorded_pool(self.recorded, calls=calls)
        return Pool(self.agents, calls=calls)


def _typed(splits: Splits, signature: Any, *, folder: Path) -> Splits:
    """Return the rows with images, conversations and other objects made of what a file can hold.

    Raises:
        DataError: If an input cannot be made of the value of a row.
    """
    kinds = {name: field.annotation for name, field in signature.input_fields.items()}
    kinds = {n: k for n, k in kinds.items() if isinstance(k, type) and issubclass(k, BaseModel)}

    def typed(row: dspy.Example) -> dspy.Example:
        made: dict[str, Any] = {}
        for name in row.inputs().keys() & kinds.keys():
            try:
                made[name] = _made(kinds[name], row[name], folder)
            except (TypeError, ValueError, OSError) as error:
                kind = kinds[name].__name__
                raise DataError(
                    f"Row {row.id!r}: no {kind} can be made of `{name}`: {error}"
                ) from error
        return row.copy(**made)

    if not kinds:
        return splits
    train, val, test = (tuple(map(typed, rows)) for rows in (splits.train, splits.val, splits.test))
    return replace(splits, train=train, val=val, test=test)


def _made(kind: Any, value: Any, folder: Path) -> Any:
    """Return an object of this kind; an image also of a file in the ``folder`` of the rows."""
    if kind is dspy.Image and isinstance(value, str):
        # Path.is_file raises an error at a long text, such as an image in base64.
        place = os.path.realpath(folder / value)
        if os.path.isfile(place) and Path(place).is_relative_to(folder.resolve()):
            return dspy.Image.from_path(place)
    return kind.model_validate(value) if isinstance(value, dict) else kind(value)


def _check_no_reader(space: SearchSpace) -> None:
    """Refuse a space in which an agent reads answers, which no recorded agent can."""
    readers = [a for a in space.listed if a.depth > 1 or a.aggregator_calls_a_model]
    wrong = [f"{a} in `space.listed`" for a in readers]
    wrong += [f"`space.max_depth` = {space.max_depth}"] if space.max_depth > 1 else []
    wrong += ["`space.rankers`"] if space.rankers else []
    if wrong:
        raise StudyError(
            f"{wrong[0]} cannot be set for recorded answers: no agent can read the others."
        )


def _check_program_inputs(program: Any, row: dspy.Example) -> None:
    # The class is inspected, as DSPy warns on any access to an object's `forward`.
    kind = type(program)
    name = "forward" if hasattr(kind, "forward") else "aforward"
    takes = inspect.signature(getattr(kind, name))
    inputs = dict(row.inputs())
    try:
        takes.bind(program, **inputs)
    except TypeError as error:
        raise StudyError(
            f"`task.program`: {kind.__name__}.{name} takes {takes}, but a row has the "
            f"inputs {', '.join(inputs)}: {error}."
        ) from error


def digest_of(value: Any) -> str:
    """Return 16 hexadecimal digits that name plain data by its content."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class FinishedStudy:
    """The end of a study.

    Attributes:
        result: ``StudyResult.to_json``, as text.
        program: Content of the program's file.
        place: Machine and folder of the coordinator's files.
    """

    result: str
    program: str
    place: str


class SharedStudy:
    """The row of a study in a database; all processes on it have the same parts and budget.

    Args:
        store: The database.
        key: Key of the row.
        parts: A digest of every part by name.
        budget: The limits by name.
        folder: The folder of the database, in which a study may replace another one; None for a
            database of several studies.
    """

    def __init__(
        self,
        store: CallStore,
        key: str,
        *,
        parts: Mapping[str, str],
        budget: Mapping[str, Any],
        folder: Path | None = None,
    ) -> None:
        self.key, self._store, self._folder = key, store, folder
        self._database = store.database
        self._parts, self._budget = dict(parts), dict(budget)

    @property
    def claim(self) -> str:
        """The claim of the process that coordinates."""
        return f"coordinator:{self.key}"

    def join(self, *, must_exist: bool, may_set_budget: bool) -> bool:
        """Begin the study, or check that it is the one in the database.

        Args:
            must_exist: Whether the study must have begun.
            may_set_budget: Whether another budget reopens the study, instead of being an error.

        Returns:
            Whether it replaces another study.

        Raises:
            StudyError: If there is another study, naming the changed parts, or no study.
        """
        insert = (
            "INSERT INTO shared_studies (study, parts, budget) VALUES (?, ?, ?) "
            "ON CONFLICT (study) DO NOTHING"
        )
        values = (self.key, json.dumps(self._parts), json.dumps(self._budget))
        if not must_exist:
            self._database.transact(lambda session: session.execute(insert, values))
        query = "SELECT parts, budget FROM shared_studies WHERE study = ?"
        rows = self._database.rows(query, (self.key,))
        if not rows:
            raise StudyError(
                f"There is nothing to resume: {self._database.name} has no study {self.key!r}."
            )
        parts, budget = map(json.loads, rows[0])
        names = self._parts.keys() | parts.keys()
        changed = sorted(name for name in names if self._parts.get(name) != parts.get(name))
        if budget != self._budget and not may_set_budget:
            changed.append("budget")
        if changed and (must_exist or self._folder is None):
            raise StudyError(self._other_study(changed))
        if parts.get("name") not in (None, self._parts.get("name")):
            raise StudyError(
                f"{self._folder} holds the program and the report of a study of another name. "
                "Choose another folder with --out, or remove this one."
            )
        if changed:
            self._replace(changed)
        elif budget != self._budget:
            self._reset()
        return bool(changed)

    def _other_study(self, changed: list[str]) -> str:
        note = f"{', '.join(changed)} changed since."
        if self._folder is not None:
            return (
                f"{self._folder} holds another study: {note} Run without --resume, or with "
                "another --out."
            )
        return (
            f"{self._database.name} holds another study {self.key!r}: {note} Give this one another "
            "`name`, or another --storage."
        )

    def _replace(self, changed: list[str]) -> None:
        if not self._store.claim(self.claim):
            raise StudyError(
                f"{self._folder} is in use by another process, for another study: "
                f"{', '.join(changed)} changed since. Wait until it ends, or choose another "
                "--out."
            )
        try:
            self._reset()
        finally:
            self._store.release(self.claim)

    def _reset(self) -> None:
        def work(session: Any) -> None:
            session.execute("DELETE FROM tasks WHERE study = ?", (self.key,))
            session.execute(
                "UPDATE shared_studies SET parts = ?, budget = ?, result = NULL, program = NULL "
                "WHERE study = ?",
                (json.dumps(self._parts), json.dumps(self._budget), self.key),
            )

        self._database.transact(work)

    def finished(self) -> FinishedStudy | None:
        """Return the end of the study; None while it runs."""
        query = "SELECT result, program, place FROM shared_studies WHERE study = ?"
        rows = self._database.rows(query, (self.key,))
        return FinishedStudy(*rows[0]) if rows and rows[0][0] is not None else None

    def finish(self, finished: FinishedStudy) -> None:
        """Write the end of the study, at which all processes stop."""
        update = "UPDATE shared_studies SET result = ?, program = ?, place = ? WHERE study = ?"
        values = (finished.result, finished.program, finished.place, self.key)
        self._database.transact(lambda session: session.execute(update, values))

    @property
    def has_others(self) -> bool:
        """True if another process has the database open."""
        query = "SELECT 1 FROM owners WHERE owner <> ? LIMIT 1"
        return bool(self._database.rows(query, (self._store.owner.id,)))
