"""The command ``init``, which writes a pool and a study for a table and the models found here.

Only servers at loopback addresses are asked for their models, for half a second each. Keys are
looked up by the name of their variable and never read.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import sys
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from moa_dspy.errors import DataError, PoolError, StudyError
from moa_dspy.vendors import KEYS, SERVERS, is_loopback

if TYPE_CHECKING:
    from moa_dspy.data.discover import AnswerKind, TableFaults, TableProfile

_SECONDS: Final = 0.5
_MOST_AGENTS: Final = 6
_SMALLEST: Final = "smollm2-135m-instruct"
_NO_CHAT: Final = re.compile(r"embed|rerank|whisper|tts|clip|bge-|e5-", re.IGNORECASE)
"""Names of models that do not answer questions."""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model that can be used here: its name in a pool file, and where it was found.

    Without an ``api_base`` the URL is the vendor's; without an ``api_key_env`` no key is needed.
    """

    model: str
    origin: str
    api_base: str | None = None
    api_key_env: str | None = None

    @property
    def is_here(self) -> bool:
        """True if the model runs on this machine."""
        return self.api_base is not None or self.model.startswith("local/")

    @property
    def name(self) -> str:
        """A plain word for the agent's name."""
        last = self.model.rpartition("/")[2].removesuffix("-instruct").removesuffix(":latest")
        return re.sub(r"[^\w.-]+", "-", last).strip("-.") or "model"


def init(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="CSV, TSV, JSONL, JSON, Parquet, or a hub name.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of pool.toml and study.toml.")] = Path(),
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="COLUMN", help="A column that is an input."),
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option("--output", metavar="COLUMN", help="A column with right answers."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "train",
    server: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A server on this machine at an unusual port."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> None:
    """Write a pool and a study for your own data, with the models that are found here."""
    from moa_dspy.files import replace_file

    pool, study, copy = (out / name for name in ("pool.toml", "study.toml", "rows.jsonl"))
    for file in (pool, study):
        _check_free(file, is_forced=force)
    profile, path = _read(data, split)
    if (flat := profile.flat([*(inputs or ()), *(outputs or ())])) is not None:
        profile, path = flat, None
    texts: dict[Path, str] = {}
    if path is None:
        _check_free(copy, is_forced=force, source=Path(data))
        path, (profile, texts[copy]) = copy, profile.as_json_lines()
    in_names, out_names = _roles(profile, inputs or [], outputs or [])
    models = list(found_models(server or []))
    relative = Path(os.path.relpath(path, out)).as_posix()
    draft = StudyDraft(profile, in_names, out_names, relative, models)
    name = re.sub(r"[^\w-]+", "-", Path(data).stem).strip("-") or "study"
    texts |= {pool: _pool(models, draft.is_short), study: draft.text(name)}
    # Only now, as an error above must leave no file behind.
    for file, text in texts.items():
        replace_file(file, text, error=StudyError)
    typer.echo(f"{data}: {profile.n_rows} rows; {_in_line(in_names)} -> {_in_line(out_names)}")
    found = [f"found {model.model} ({model.origin})" for model in models]
    notes = [f"note: {note}" for note in draft.notes()]
    typer.echo("\n".join([*notes, *found, *(f"wrote {file}" for file in texts)]))
    shown = shlex.quote(str(study))
    typer.echo(f"next: moa-dspy check {shown} --probe\nthen: moa-dspy optimize {shown}")


def _check_free(file: Path, *, is_forced: bool, source: Path | None = None) -> None:
    """Check that a file may be written: it is new, or is forced and not in the ``source``."""
    if not file.exists():
        return
    places = (file, *file.resolve().parents)
    if source is not None and source.exists() and any(map(source.samefile, places)):
        raise DataError(
            f"{file} holds the data, which a copy would replace: choose another folder with --out."
        )
    if not is_forced:
        raise PoolError(
            f"{file} exists: choose another folder with --out, or replace it with --force."
        )


def _in_line(columns: Iterable[str]) -> str:
    """Return the names of columns in one line, as a name may hold line ends."""
    return ", ".join(" ".join(name.split()) for name in columns)


def _read(data: str, split: str) -> tuple[TableProfile, Path | None]:
    """Return the table's profile, and its file; None if a study needs a copy of the rows."""
    from moa_dspy.data.discover import TableProfile
    from moa_dspy.data.rows import hub_records
    from moa_dspy.data.tables import FORMATS, read_records, records_of

    path = Path(data)
    if path.suffix.lower() in FORMATS and not path.is_dir():
        return TableProfile.of(list(read_records(path)), data), path
    if path.suffix.lower() == ".json" and path.is_file():
        return TableProfile.of(list(records_of(path)), data), None
    if path.is_dir() or (not path.suffix and data.count("/") == 1):
        return TableProfile.of(list(hub_records(data, split=split)), data), None
    types = ", ".join(sorted([*FORMATS, ".json"]))
    raise DataError(
        f"{data} is neither a file of a known format ({types}) nor the owner/name of a hub "
        "data set."
    )


def _roles(
    profile: TableProfile, inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the input columns and those with right answers; ask the user if unclear."""
    from moa_dspy.data.recorded import NEEDED

    profile.check_columns(inputs, "--input")
    profile.check_columns(outputs, "--output")
    if not outputs and set(NEEDED) <= set(profile.columns):
        how = 'write a study with `reader = "recorded"` (docs/guides/recorded_table.md)'
        raise DataError(f"{profile.source} has answers of several agents: {how}, or give --output.")
    out_names = list(outputs)
    if not out_names:
        guess = profile.guess_output()
        if guess is None or guess in inputs:
            guess = _ask(profile, "Which column holds the right answer?", "--output")
        out_names = [guess]
    in_names = list(inputs) or list(profile.guess_inputs(out_names))
    if not in_names:
        answer = _ask(profile, "Which columns are the inputs (a, b)?", "--input", several=True)
        in_names = [name.strip() for name in answer.split(",")]
        profile.check_columns(in_names, "--input")
    if both := sorted(set(in_names) & set(out_names)):
        raise DataError(f"Column {both[0]!r} cannot be both --input and --output.")
    return in_names, out_names


def _ask(profile: TableProfile, question: str, option: str, *, several: bool = False) -> str:
    from moa_dspy.data.discover import shown_cell

    names = profile.candidates
    if len(names) < 2:
        raise DataError(
            f"{profile.source}: at least two columns with values are needed, one with questions "
            f"and one with right answers, but there is {_in_line(names) or 'none'}."
        )
    if not sys.stdin.isatty():
        raise DataError(
            f"{profile.source}: it is not clear which column to use; give {option} with one of "
            f"{_in_line(names)}. Give it again for a further one."
        )
    for name in names:
        first = next((v for v in profile.values[name] if v not in (None, "")), "")
        typer.echo(f"  {_in_line([name])}: {shown_cell(first)}", err=True)
    while True:
        answer = str(typer.prompt(question, err=True))
        if several or answer in profile.columns:
            return answer
        typer.echo(f"There is no column {answer!r}.", err=True)


def found_models(servers: Sequence[str]) -> Iterator[FoundModel]:
    """Yield a few models that can be used on this machine.

    They are downloaded weights, models of servers on this machine (also at the URLs ``servers``),
    and vendors whose keys are in the environment; or else the smallest model of the catalogue.

    Raises:
        PoolError: If a server is not on this machine or does not answer, or nothing is found.
    """
    models = [*_of_servers(servers), *_of_weights(), *_of_keys()]
    if not models:
        if importlib.util.find_spec("xllamacpp") is None:
            raise PoolError(
                "No model was found: set the API key of a vendor, such as OPENAI_API_KEY, start "
                "a server such as Ollama, or install moa-dspy[local]."
            )
        models = [FoundModel(f"local/{_SMALLEST}", "98 MB, fetched at the first run")]
    yield from models[:_MOST_AGENTS]


def _of_servers(urls: Sequence[str]) -> Iterator[FoundModel]:
    for url in urls:
        base = _loopback(url)
        listed = _listed(base)
        if not listed:
            raise PoolError(f"--server {url}: no model is listed at {base}/models.")
        yield from (FoundModel(f"openai/{name}", f"at {base}", base) for name in listed)
    for server, port in SERVERS.items():
        base = f"http://127.0.0.1:{port}/v1"
        for name in _listed(base):
            yield FoundModel(f"openai/{name}", f"{server} at {base}", base)


def _loopback(url: str) -> str:
    """Return the base of a server's API, which must be on this machine, without a password."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.username or parts.password:
        raise PoolError("--server must not hold a user or password: pool.toml would hold them.")
    if not is_loopback(parts.hostname or ""):
        raise PoolError(
            f"--server {url!r} is not on this machine; write the agents of other servers into "
            "pool.toml, with `api_base`."
        )
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _listed(base: str) -> list[str]:
    """Return the models of a server; none if it does not answer as expected."""
    # Without a proxy, as the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{base}/models", timeout=_SECONDS) as reply:
            content = json.loads(reply.read(1_000_000))
        names = [str(model["id"]) for model in content["data"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in names if not _NO_CHAT.search(name)]


def _of_weights() -> Iterator[FoundModel]:
    if importlib.util.find_spec("xllamacpp") is None:
        return
    from moa_dspy.local.weights import models_table

    for status in models_table():
        if status.present:
            yield FoundModel(f"local/{status.name}", "weights on this machine")


def _of_keys() -> Iterator[FoundModel]:
    for variable, models in KEYS.items():
        if os.environ.get(variable):
            for model in models:
                yield FoundModel(model, f"{variable} is set", api_key_env=variable)


def _pool(models: Sequence[FoundModel], is_short: bool) -> str:
    lines = [
        "# The agents that the study may use: the same model at two temperatures is two agents.",
        "# Keys are in no file: `api_key_env` names the environment variable that holds one.",
        "# `moa-dspy models prices` on this file shows what the agents cost.",
        "",
    ]
    names: set[str] = set()
    for model in models:
        lines += [*_agent(model, _free(model.name, names), 0.0, is_short), ""]
    if len(models) < 3:
        lines += ["# Sampled, so that several answers of one model differ.", ""]
        for model in models:
            lines += [*_agent(model, _free(f"{model.name}-warm", names), 0.7, is_short), ""]
    return "\n".join(lines)


def _free(name: str, taken: set[str]) -> str:
    number, free = 2, name
    while free in taken:
        number, free = number + 1, f"{name}-{number}"
    taken.add(free)
    return free


def _agent(model: FoundModel, name: str, temperature: float, is_short: bool) -> Iterator[str]:
    yield "[[agents]]"
    yield f"name = {_toml(name)}"
    yield f"model = {_toml(model.model)}    # {model.origin}"
    yield f"temperature = {temperature}"
    # A small model may not stop; a larger one may need tokens to think first.
    is_small = model.model.startswith("local/")
    yield f"max_tokens = {(32 if is_short else 256) if is_small else 1024}"
    if model.api_base is not None:
        yield f"api_base = {_toml(model.api_base)}"
        yield "usd_per_million_prompt_tokens = 0.0    # on this machine"
        yield "usd_per_million_completion_tokens = 0.0"
    if model.api_key_env is not None:
        yield f"api_key_env = {_toml(model.api_key_env)}"


@dataclass(frozen=True)
class StudyDraft:
    """A draft of the study file for a table with columns of inputs and of right answers."""

    profile: TableProfile
    inputs: Sequence[str]
    outputs: Sequence[str]
    path: str
    models: Sequence[FoundModel]

    @cached_property
    def faults(self) -> TableFaults:
        """Faults of the rows."""
        from moa_dspy.data.discover import TableFaults

        values, rows = self.profile.values, range(self.profile.n_rows)
        inputs, outputs = (
            [{c: values[c][row] for c in part} for row in rows]
            for part in (self.inputs, self.outputs)
        )
        return TableFaults.of(inputs, outputs)

    @property
    def is_short(self) -> bool:
        """True if right answers are a few words or a number."""
        return self._kind.metric in ("choice", "exact_match", "labels", "numeric_match")

    def text(self, name: str) -> str:
        """Return the content of the file; raise a `DataError` if it would have too few rows."""
        if (n := len(self.faults.usable)) < 3:
            raise DataError(f"{self.profile.source}: only {n} rows can be used.")
        head = [
            "# Which of your models should answer, alone or together?",
            "# optimize/README.md of moa-dspy describes every key.",
            f"name = {_toml(name)}",
            "seed = 0",
            'pool = "pool.toml"',
        ]
        parts = [head, self._task(), self._data(), self._search()]
        return "\n\n".join(map("\n".join, parts)) + "\n"

    @cached_property
    def _fields(self) -> dict[str, str]:
        from moa_dspy.data.discover import field_names

        # Under another name, faulty ids do not count as ids.
        ids = ["id"] if self.profile.id_fault and "id" not in self._roles else []
        return field_names([*self._roles, *ids])

    @property
    def _roles(self) -> list[str]:
        return [*self.inputs, *self.outputs]

    @cached_property
    def _split(self) -> tuple[str | None, str | None]:
        return self.profile.split_of_rows(self.faults.usable, self._roles)

    @cached_property
    def _kind(self) -> AnswerKind:
        from moa_dspy.data.discover import answer_kind

        return answer_kind({column: self.profile.values[column] for column in self.outputs})

    def _accepts_any(self, column: str) -> bool:
        from moa_dspy.data.discover import are_alternatives

        return are_alternatives(self.profile.values[column])

    def notes(self) -> Iterator[str]:
        """Yield a line for each fault of the rows and columns."""
        yield from self.faults.lines()
        for column in filter(self._accepts_any, self.outputs):
            yield f"Column {column!r} has lists, in some rows or in all: any item of one is right."
        if "id" in self._fields and "id" not in self._roles:
            yield f"Column 'id' {self.profile.id_fault}: the rows are numbered instead."
        if (note := self._split[1]) is not None:
            yield note
        if unused := [name for name in self.profile.candidates if name not in self._roles]:
            yield f"Columns that are not used: {_in_line(unused)}; --input adds one."

    def _task(self) -> Iterator[str]:
        fields, kind = self._fields, self._kind
        sides = (", ".join(fields[c] for c in part) for part in (self.inputs, self.outputs))
        yield "[task]"
        yield f"signature = {_toml(' -> '.join(sides))}"
        yield "# The task in a sentence or two: say here what a person would have to know."
        yield f"instructions = {_toml(kind.task(self.inputs, self.outputs))}"
        if len(self.outputs) == 1:
            yield 'adapter = "plain"    # one text in no format, which small models can follow'
        yield "# Or exact_match, contains, f1, numeric_match, choice, labels, json_match, file:name"
        yield f"metric = {_toml(kind.metric)}"
        if any(map(self._accepts_any, self.outputs)):
            yield "# Of a cell that is a list any item is right; json_match asks for all of it."
        yield "# When a vote takes two answers for equal: as whole texts, or by the last word."
        yield f"normalise = {_toml(kind.normalise)}"

    def _data(self) -> Iterator[str]:
        from moa_dspy.data.discover import split_sizes

        fields, faults = self._fields, self.faults
        renamed = [f"{f} = {_toml(c)}" for c, f in fields.items() if f != c]
        yield f"[data]\npath = {_toml(self.path)}"
        yield f"inputs = {_toml([fields[c] for c in self.inputs])}"
        yield f"outputs = {_toml([fields[c] for c in self.outputs])}"
        if renamed:
            yield f"columns = {{ {', '.join(renamed)} }}"
        if faults.n_blank or faults.n_unasked:
            yield "drops_incomplete = true    # rows without a question or a right answer"
        if faults.n_repeated:
            yield "drops_repeated = true    # rows that ask what an earlier one asks"
        if (column := self._split[0]) is not None:
            yield f"split_column = {_toml(column)}"
        else:
            sizes = ", ".join(f"{k} = {n}" for k, n in split_sizes(len(faults.usable)).items())
            yield "# The search looks at val; test is read once, at the end; [prompts] need train."
            yield f"sizes = {{ {sizes} }}"

    def _search(self) -> Iterator[str]:
        is_text = self._kind.metric in ("f1", "json_match")
        are_here, n_models = all(model.is_here for model in self.models), len(self.models)
        yield "[space]    # layers of proposers, and how the last step combines them"
        yield f"combines = {_toml(['synthesize'] if is_text else ['vote', 'synthesize'])}"
        yield f"max_depth = 1\nmax_width = 3\n\n[search]\nn_trials = {max(20, n_models + 10)}"
        yield f"num_threads = {4 if are_here else 8}    # questions at the same time"
        yield "\n# A budget is never exceeded; `moa-dspy check` tells the smallest that works."
        yield "# [budget]\n# seconds = 3600" if are_here else "[budget]\ncalls = 20000"


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
