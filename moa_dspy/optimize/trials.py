"""The trials of a search as an Optuna study: proposed, measured elsewhere, told and stored."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import optuna
import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import event, exc

from moa_dspy.architecture import Architecture
from moa_dspy.calls.store.database import database_url, reason_of, shown_url
from moa_dspy.errors import StoreError
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.sampler import (
    ARCHITECTURE,
    ROW_SCORES,
    GivenChoices,
    PerformanceDiversitySampler,
    SearchStudy,
)
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.space.programs import kinds_of_mixtures
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.surrogate.acquisition import MOST_DRAWS

_MOST_REPEATS = 4
"""Known architectures in a row after which a new one is drawn: an ask takes 10 ms, or 40 late."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """An architecture to measure next.

    Attributes:
        architecture: In its canonical form, not measured before.
        origin: ``single``, ``baseline``, ``votes``, ``listed``, ``sampler``, ``model``,
            ``random`` or ``prompt``.
        trial: Of Optuna; None until it starts, where the sampler was not asked.
        params: Optuna's, where the sampler was not asked; None outside of the space.
    """

    architecture: Architecture
    origin: str
    trial: optuna.Trial | None = None
    params: dict[str, Any] | None = None


@dataclass(slots=True)
class Trials:
    """Proposes architectures, each once, and keeps the record of each in the order of measuring.

    Args:
        study: Made by ``make_study``.
        space: The architectures that may be proposed.
        ranking: Single agents, best first; it repairs layers that are too narrow or wide.
        canonical: Gives an architecture its final form: decider of ties, name of the prompt.
        seed: Of the draws that follow when the sampler only repeats itself.
        limits: On the costs of a question: the constraints of every trial.
        records: By architecture.
    """

    study: SearchStudy
    space: SearchSpace
    ranking: Sequence[str]
    canonical: Callable[[Architecture], Architecture]
    seed: int
    limits: Limits = field(default_factory=Limits)
    records: dict[Architecture, TrialRecord] = field(default_factory=dict)
    _rng: random.Random = field(init=False)
    _n_repeats: int = 0
    _n_held: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(f"trials-{self.seed}")

    def fresh(self, architectures: Iterable[Architecture], *, origin: str) -> list[Proposal]:
        """Return the given architectures that are not measured yet, inside the space or not."""
        found: dict[Architecture, Proposal] = {}
        for one in architectures:
            form = self.canonical(one)
            if form not in self.records and form not in found:
                found[form] = Proposal(form, origin, params=self.space.params(one))
        return list(found.values())

    def draw(self) -> Proposal | None:
        """Return a random architecture that is not measured yet; None if none is left."""
        for _ in range(MOST_DRAWS):
            drawn = self.canonical(self.space.draw(self._rng))
            if fresh := self.fresh([drawn], origin="random"):
                return fresh[0]
        return None

    def ask(self) -> Proposal | None:
        """Return what the study's sampler proposes, or a draw where it only repeats itself.

        None if all of the space is measured. Trials that a callback enqueued come first.
        """
        if self.space.size is not None and self._n_held >= self.space.size:
            return None
        is_ours = isinstance(self.study.sampler, PerformanceDiversitySampler)
        while self._n_repeats < _MOST_REPEATS:
            is_enqueued = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            trial = self.study.ask()
            architecture = self.canonical(self.space.suggest(trial, self.ranking))
            if architecture not in self.records:
                self._n_repeats = 0
                origin = "listed" if is_enqueued else "model" if is_ours else "sampler"
                return Proposal(architecture, origin, trial)
            # What is known was told already: told again it would weigh more, and slow the next.
            number = self.records[architecture].number
            self.fail(trial, f"{architecture} was measured before, as number {number}.")
            if not is_enqueued:
                # Ours repeats itself only where nothing is left.
                self._n_repeats = _MOST_REPEATS if is_ours else self._n_repeats + 1
        self._n_repeats = 0
        return self.draw()

    def start(self, proposal: Proposal) -> optuna.Trial:
        """Return the running trial of a proposal, which the storage shows as running."""
        trial = proposal.trial or self._with_params(proposal.params)
        trial.set_user_attr(ARCHITECTURE, str(proposal.architecture))
        trial.set_user_attr("origin", proposal.origin)
        _publish(trial)
        return trial

    def _with_params(self, params: Mapping[str, Any] | None) -> optuna.Trial:
        """Return a running trial of these choices; it stands in no queue behind a user's own."""
        # All that a baseline outside of the space shares with others: some samplers learn only
        # from a choice that every trial made.
        given = GivenChoices(params or kinds_of_mixtures(self.space))
        suggest: Callable[..., Any] = self.space.suggest if params else self.space.suggest_kind
        suggest(given)
        params, state = {n: given.params[n] for n in given.distributions}, TrialState.RUNNING
        fixed = {"fixed_params": params}  # As Optuna notes it: samplers leave such a trial alone.
        more: Any = {"params": params, "distributions": given.distributions}
        self.study.add_trial(create_trial(state=state, system_attrs=fixed, **more))
        added = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))[-1]
        return optuna.Trial(self.study, added._trial_id)

    def report(self, trial: optuna.Trial, n_rows: int, values: Sequence[float]) -> None:
        """Tell Optuna the objective values on the first rows.

        With several objectives Optuna has no intermediate values, and its samplers fail at
        them: they are an attribute of the trial.
        """
        if len(values) == 1:
            trial.report(values[0], step=n_rows)
            return
        known = trial.user_attrs.get("values_by_rows", {})
        trial.set_user_attr("values_by_rows", {**known, str(n_rows): list(values)})
        _publish(trial)

    def tell(
        self,
        proposal: Proposal,
        trial: optuna.Trial,
        record: TrialRecord,
        values: Sequence[float],
        *,
        row_scores: Sequence[float] = (),
    ) -> FrozenTrial:
        """Keep the record of a measured proposal and tell the study its objective values.

        A trial that a race stopped is pruned, and its values are those of its last report.
        """
        self.records[proposal.architecture] = record
        self._n_held += self.space.holds(proposal.architecture)
        for name in ("rows", "score", "calls", "usd", "seconds"):
            if (value := getattr(record, name)) is not None:
                trial.set_user_attr(name, value)
        if row_scores:
            trial.set_user_attr(ROW_SCORES, list(row_scores))
        for name in ("calls", "usd", "seconds"):
            if (limit := getattr(self.limits, name)) is not None:
                trial.set_constraint(name, getattr(record, name) - limit)
        if record.is_stopped_early:
            return self.study.tell(trial, state=TrialState.PRUNED)
        return self.study.tell(trial, list(values))

    def fail(self, trial: optuna.Trial, reason: str) -> FrozenTrial:
        """Tell the study that a trial was not measured, and why."""
        trial.set_user_attr("reason", reason)
        return self.study.tell(trial, state=TrialState.FAIL)


def _publish(trial: optuna.Trial) -> None:
    if isinstance(trial.storage, LiveStorage):
        trial.storage.publish(trial.number)


_TRIALS: Final[sa.Table] = models.TrialModel.__table__
_TABLES: Final[dict[Any, tuple[str, ...]]] = {
    models.TrialParamModel: ("param_name", "param_value", "distribution_json"),
    models.TrialUserAttributeModel: ("key", "value_json"),
    models.TrialSystemAttributeModel: ("key", "value_json"),
    models.TrialValueModel: ("objective", "value", "value_type"),
    models.TrialIntermediateValueModel: ("step", "intermediate_value", "intermediate_value_type"),
}
"""Optuna's tables of rows of a trial, with their columns; the first tells the rows apart."""
_Part = Mapping[Any, tuple[Any, ...]]  # By first column: the others of a row.
_Rows = dict[Any, _Part]  # By table.


class LiveStorage(optuna.storages.InMemoryStorage):
    """Trials in memory, and a copy of each in a database from its start to its end.

    A sampler reads all trials for every proposal, and an objective writes some thirty values of
    a trial: here they are read from memory, and written in one transaction when it starts, one
    per report and one when it ends. Then it outlives the process; SQLite does not wait for the
    disk, so a power cut may take the last trials. The copy is an Optuna study as any other.

    Args:
        place: A file that holds nothing else, or the URL of a database, which may hold calls
            and other studies as well.
        study_name: Of the study there, which replaces an older one; None lets Optuna give one.
    """

    def __init__(self, place: Path | str, study_name: str | None = None) -> None:
        super().__init__()
        self.study_name = study_name
        self._place, self._url = place, database_url(place)
        self._copy: Any = None
        self._study = -1
        self._ids: list[int] = []
        self._written: dict[int, _Rows] = {}

    def open(self) -> None:
        """Connect to the database, which is made if there is none."""
        if self._copy is None:
            with self._plain_errors():
                self._copy = _opened(self._url, self._place)

    def create_new_study(
        self, directions: Sequence[optuna.study.StudyDirection], study_name: str | None = None
    ) -> int:
        """Begin the study here and in the database, where an older one of its name is deleted."""
        self._study = super().create_new_study(directions, study_name)
        name = self.get_study_name_from_id(self._study)
        self.open()
        with self._plain_errors():
            _delete(self._copy, name)
            self._copied_study = self._copy.create_new_study(directions, name)
        return self._study

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set it here and in the database."""
        super().set_study_user_attr(study_id, key, value)
        with self._plain_errors():
            self._copy.set_study_user_attr(self._copied_study, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set it here and in the database."""
        super().set_study_system_attr(study_id, key, value)
        with self._plain_errors():
            self._copy.set_study_system_attr(self._copied_study, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create the trial here, and in the database if it is more than a number yet."""
        trial_id = super().create_new_trial(study_id, template_trial)
        if template_trial is not None:
            self._write(trial_id)
        return trial_id

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Set it here and in the database."""
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._write(trial_id)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Change the state here, and in the database when the trial ends."""
        is_changed: bool = super().set_trial_state_values(trial_id, state, values)
        if state.is_finished():
            self._write(trial_id)
        return is_changed

    def publish(self, number: int) -> None:
        """Write what is known of the trial of this number up to now."""
        self._write(self.get_trial_id_from_study_id_trial_number(self._study, number))

    def close(self) -> None:
        """Let go of the database."""
        if self._copy is not None:
            self._copy.engine.dispose()

    def _write(self, trial_id: int) -> None:
        """Write in one transaction what is new or changed of a trial."""
        with self._lock, self._plain_errors():
            trial = self.get_trial(trial_id)
            written, rows = self._written.get(trial_id, {}), _rows_of(trial)
            with self._copy.engine.begin() as connection:
                # Both count trials as they come: one that is only a number is written now.
                more = range(len(self._ids), trial.number + 1)
                added = [self._insert(connection, number) for number in more]
                copied = [*self._ids, *added][trial.number]
                for model, found in rows.items():
                    _replace(connection, model, copied, found, written.get(model, {}))
                is_same = _TRIALS.c.trial_id == copied
                connection.execute(sa.update(_TRIALS).where(is_same).values(_state_of(trial)))
            self._ids.extend(added)
            self._written[trial_id] = {} if trial.state.is_finished() else rows

    def _insert(self, connection: sa.Connection, number: int) -> int:
        """Return the key of a new row, whose number is the count of those before, as Optuna's."""
        study, trial = self._copied_study, self._studies[self._study].trials[number]
        counted = sa.select(sa.func.count(_TRIALS.c.trial_id)).where(_TRIALS.c.study_id == study)
        values = {"number": counted.scalar_subquery(), "study_id": study, **_state_of(trial)}
        result: Any = connection.execute(sa.insert(_TRIALS).values(values))
        return int(result.inserted_primary_key[0])

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except (exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
            cause = error.__cause__ or error
            # Of a server not what the error says, nor from it: both may show the password.
            is_file = self._url.get_backend_name() == "sqlite"
            why = reason_of(getattr(cause, "orig", cause)) if is_file else type(cause).__name__
            raise StoreError(f"{shown_url(self._url)} cannot be used: {why}") from None


@contextmanager
def opened_storage(storage: Any) -> Iterator[optuna.storages.BaseStorage | None]:
    """Yield the storage that ``optuna.create_study`` would use; StoreError if it cannot be."""
    if not isinstance(storage, str):
        yield storage
    elif storage.startswith(("sqlite:///", "postgres:", "postgresql:", "postgresql+psycopg:")):
        with closing(LiveStorage(storage)) as live:
            live.open()
            yield live
    else:
        try:
            made = optuna.storages.get_storage(storage)
        except Exception as error:
            # Neither the text nor the error is shown: they may quote a password.
            raise StoreError(
                "`storage` must be a URL such as sqlite:///FILE or postgresql://HOST/NAME, or "
                f"another that Optuna opens; it raises {type(error).__name__} at this one."
            ) from None
        yield made


def _rows_of(trial: FrozenTrial) -> _Rows:
    """Return what the database holds of a trial beside its state."""
    kinds, reports = trial.distributions, trial.intermediate_values.items()
    stored = models.TrialValueModel.value_to_stored_repr
    reported = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
    return {
        models.TrialParamModel: {
            name: (kinds[name].to_internal_repr(value), distribution_to_json(kinds[name]))
            for name, value in trial.params.items()
        },
        models.TrialUserAttributeModel: _as_json(trial.user_attrs),
        models.TrialSystemAttributeModel: _as_json(trial.system_attrs),
        models.TrialValueModel: dict(enumerate(map(stored, trial.values or ()))),
        models.TrialIntermediateValueModel: {step: reported(value) for step, value in reports},
    }


def _as_json(attributes: Mapping[str, Any]) -> _Part:
    return {name: (json.dumps(value),) for name, value in attributes.items()}


def _replace(
    connection: sa.Connection, model: Any, trial_id: int, rows: _Part, written: _Part
) -> None:
    """Write the rows of a trial that are not written yet, or were written otherwise."""
    new = {key: row for key, row in rows.items() if written.get(key) != row}
    if not new:
        return
    table, columns = model.__table__, ("trial_id", *_TABLES[model])
    if changed := [key for key in new if key in written]:
        is_same = (table.c.trial_id == trial_id) & table.c[columns[1]].in_(changed)
        connection.execute(sa.delete(table).where(is_same))
    found = [dict(zip(columns, (trial_id, key, *row), strict=True)) for key, row in new.items()]
    connection.execute(sa.insert(table), found)


def _state_of(trial: FrozenTrial) -> dict[str, Any]:
    start, end = trial.datetime_start, trial.datetime_complete
    # Optuna's own conversion: its database has another time zone than its trials.
    row: Any = models.TrialModel(datetime_start=start, datetime_complete=end)
    start, end = row._datetime_start_utc, row._datetime_complete_utc
    return {"state": trial.state, "datetime_start": start, "datetime_complete": end}


def _opened(url: sa.URL, place: Path | str) -> Any:
    text = url.render_as_string(hide_password=False)
    try:
        storage = optuna.storages.RDBStorage(text)
        _check_columns(storage.engine)
    except exc.DatabaseError as error:
        # One that is locked or damaged may be mended.
        is_other_kind = getattr(error.orig, "sqlite_errorname", None) == "SQLITE_NOTADB"
        if not (isinstance(place, Path) and is_other_kind):
            raise
        place.unlink()
        storage = optuna.storages.RDBStorage(text)
    except RuntimeError:
        # It may hold what an older version of Optuna can still read.
        raise StoreError(
            f"{shown_url(url)} was written by another version of Optuna, or by another program. "
            "Move it away, or choose another folder."
        ) from None
    if storage.engine.name == "sqlite":
        event.listen(storage.engine, "connect", _let_others_read)
        storage.engine.dispose()
    return storage


def _check_columns(engine: sa.Engine) -> None:
    found = sa.inspect(engine)
    for table in models.BaseModel.metadata.sorted_tables:
        if set(table.c.keys()) - {column["name"] for column in found.get_columns(table.name)}:
            raise RuntimeError(table.name)


def _let_others_read(connection: Any, _: Any) -> None:
    """Have SQLite let a dashboard read while it writes, and not wait for the disk each time."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _delete(storage: Any, name: str) -> None:
    """Delete a study; its trials table by table, as Optuna would take seconds for a thousand."""
    try:
        study = storage.get_study_id_from_name(name)
    except KeyError:
        return
    is_mine = _TRIALS.c.study_id == study
    mine = sa.select(_TRIALS.c.trial_id).where(is_mine)
    with storage.engine.begin() as connection:
        for model in (*_TABLES, models.TrialHeartbeatModel):
            connection.execute(sa.delete(model).where(model.trial_id.in_(mine)))
        connection.execute(sa.delete(_TRIALS).where(is_mine))
    storage.delete_study(study)
