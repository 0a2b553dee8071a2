"""The command ``init``, which writes a pool and a study for a table and the models found here.

Only servers at loopback addresses are asked for their models, for half a second each. Keys are
looked up by the name of their variable and never read.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
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
    """A model that can be used on this machine.

    Attributes:
        model: Name of the model in a pool file.
        origin: Where it was found, for display.
        api_base: URL of a server on this machine; None is that of the vendor.
        api_key_env: Environment variable of the key; None if no key is needed.
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
    files = {name: out / name for name in ("pool.toml", "study.toml")}
    taken = [str(path) for path in files.values() if path.exists()]
    if taken and not force:
        raise PoolError(
            f"{taken[0]} exists: choose another folder with --out, or replace it with --force."
        )
    from moa_dspy.files import replace_file

    profile, path = _read(data, split, out)
    if (flat := profile.flat([*(inputs or ()), *(outputs or ())])) is not None:
        profile, path = _copied(flat.rows(), data, out)
    in_names, out_names = _roles(profile, inputs or [], outputs or [])
    models = list(found_models(server or []))
    relative = Path(os.path.relpath(path, out)).as_posix()
    draft = StudyDraft(profile, in_names, out_names, relative, models)
    text = draft.text(_name_of(data))
    replace_file(files["pool.toml"], _pool(models, draft.is_short), error=PoolError)
    replace_file(files["study.toml"], text, error=StudyError)
    typer.echo(f"{data}: {profile.n_rows} rows; {', '.join(in_names)} -> {', '.join(out_names)}")
    notes = [f"note: {note}" for note in draft.faults.lines()]
    model_lines = [f"found {model.model} ({model.origin})" for model in models]
    if unused := [name for name in profile.candidates if name not in {*in_names, *out_names}]:
        notes.append(f"note: Columns that are not used: {', '.join(unused)}; --input adds one.")
    for line in [*notes, *model_lines, *(f"wrote {file}" for file in files.values())]:
        typer.echo(line)
    typer.echo(f"next: moa-dspy check {files['study.toml']} --probe")
    typer.echo(f"then: moa-dspy optimize {files['study.toml']}")


def _name_of(data: str) -> str:
    return re.sub(r"[^\w-]+", "-", Path(data).stem).strip("-") or "study"


def _read(data: str, split: str, out: Path) -> tuple[TableProfile, Path]:
    """Return the table's profile, and the file that the study will read."""
    from moa_dspy.data.discover import TableProfile
    from moa_dspy.data.rows import hub_records
    from moa_dspy.data.tables import FORMATS, read_records, records_of

    path = Path(data)
    if path.suffix.lower() in FORMATS and not path.is_dir():
        return TableProfile.of(list(read_records(path)), data), path
    if path.suffix.lower() == ".json" and path.is_file():
        records = list(records_of(path))
    elif path.is_dir() or (not path.suffix and data.count("/") == 1):
        records = list(hub_records(data, split=split))
    else:
        types = ", ".join(sorted([*FORMATS, ".json"]))
        raise DataError(
            f"{data} is neither a file of a known format ({types}) nor the owner/name of a hub "
            "data set."
        )
    return _copied((row for _, row in records), data, out)


def _copied(rows: Iterable[Any], data: str, out: Path) -> tuple[TableProfile, Path]:
    from moa_dspy.data.discover import TableProfile
    from moa_dspy.data.tables import read_records
    from moa_dspy.files import replace_file

    copy = out / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
    replace_file(copy, "\n".join(lines) + "\n", error=DataError)
    return TableProfile.of(list(read_records(copy)), data), copy


def _roles(
    profile: TableProfile, inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the input columns and those with right answers; ask the user if unclear."""
    profile.check_columns(inputs, "--input")
    profile.check_columns(outputs, "--output")
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
    if not sys.stdin.isatty():
        raise DataError(
            f"{profile.source}: it is not clear which column to use; give {option} with one of "
            f"{', '.join(names)}. Give it again for a further one."
        )
    for name in names:
        first = next((v for v in profile.values[name] if v not in (None, "")), "")
        typer.echo(f"  {name}: {shown_cell(first)}", err=True)
    while True:
        answer = str(typer.prompt(question, err=True))
        if several or answer in profile.columns:
            return answer
        typer.echo(f"There is no column {answer!r}.", err=True)


def found_models(servers: Sequence[str]) -> Iterator[FoundModel]:
    """Yield a few models that can be used on this machine.

    They are downloaded weights, models of servers on this machine, and vendors whose keys are in
    the environment; or else the smallest model of the catalogue, which the first run downloads.

    Args:
        servers: URLs of further servers on this machine.

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
    """Return the base of a server's API.

    Raises:
        PoolError: If its host is not this machine, or it holds a user or password.
    """
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
    """A draft of the study file for a table.

    Attributes:
        profile: The table.
        inputs: Input columns.
        outputs: Columns with right answers.
        path: Path of the table in the study file.
        models: Models that were found.
    """

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
        return TableFaults.of(
            [{c: values[c][row] for c in self.inputs} for row in rows],
            [{c: values[c][row] for c in self.outputs} for row in rows],
        )

    @property
    def is_short(self) -> bool:
        """True if right answers are a few words or a number."""
        return self._kind.metric in ("choice", "exact_match", "labels", "numeric_match")

    def text(self, name: str) -> str:
        """Return the content of the file.

        Raises:
            DataError: If fewer than three rows can be used.
        """
        if (n := self.faults.n_usable) < 3:
            raise DataError(f"{self.profile.source}: only {n} rows can be used.")
        lines = [
            f"# Which of your models should answer {', '.join(self.outputs)}, alone or together?",
            "# optimize/README.md of moa-dspy describes every key.",
            f"name = {_toml(name)}",
            "seed = 0",
            'pool = "pool.toml"',
            "",
            *self._task(),
            "",
            *self._data(),
            "",
            *self._search(),
            "",
        ]
        return "\n".join(lines)

    @cached_property
    def _fields(self) -> dict[str, str]:
        from moa_dspy.data.discover import field_names

        return field_names([*self.inputs, *self.outputs])

    @cached_property
    def _kind(self) -> AnswerKind:
        from moa_dspy.data.discover import AnswerKind, answer_kind

        kinds = {answer_kind(self.profile.values[column]) for column in self.outputs}
        mixed = AnswerKind("exact_match", "text", "Reply with the answers only.")
        return kinds.pop() if len(kinds) == 1 else mixed

    def _task(self) -> Iterator[str]:
        from moa_dspy.data.discover import are_alternatives

        fields, kind = self._fields, self._kind
        input_names, output_names = (
            ", ".join(fields[c] for c in part) for part in (self.inputs, self.outputs)
        )
        yield "[task]"
        yield f"signature = {_toml(f'{input_names} -> {output_names}')}"
        yield "# The task in a sentence or two: say here what a person would have to know."
        yield f"instructions = {_toml(kind.task(self.inputs, self.outputs))}"
        if len(self.outputs) == 1:
            yield 'adapter = "plain"    # one text in no format, which small models can follow'
        yield "# Or exact_match, contains, f1, numeric_match, choice, labels, json_match, file:name"
        yield f"metric = {_toml(kind.metric)}"
        if any(are_alternatives(self.profile.values[column]) for column in self.outputs):
            yield "# Of a cell that is a list any item is right; json_match asks for all of it."
        yield "# When a vote takes two answers for equal: as whole texts, or by the last word."
        yield f"normalise = {_toml(kind.normalise)}"

    def _data(self) -> Iterator[str]:
        from moa_dspy.data.discover import split_sizes

        fields, faults = self._fields, self.faults
        renamed = [f"{f} = {_toml(c)}" for c, f in fields.items() if f != c]
        yield "[data]"
        yield f"path = {_toml(self.path)}"
        yield f"inputs = {_toml([fields[c] for c in self.inputs])}"
        yield f"outputs = {_toml([fields[c] for c in self.outputs])}"
        if renamed:
            yield f"columns = {{ {', '.join(renamed)} }}"
        if faults.n_blank:
            yield "drops_incomplete = true    # rows without a right answer"
        if faults.n_repeated:
            yield "drops_repeated = true    # rows that ask what an earlier one asks"
        if self.profile.split_column is not None:
            yield f"split_column = {_toml(self.profile.split_column)}"
        else:
            sizes = ", ".join(f"{k} = {n}" for k, n in split_sizes(faults.n_usable).items())
            yield "# The search looks at val; test is read once, at the end; [prompts] need train."
            yield f"sizes = {{ {sizes} }}"

    def _search(self) -> Iterator[str]:
        is_text = self._kind.metric in ("f1", "json_match")
        are_here = all(model.is_here for model in self.models)
        yield "[space]    # layers of proposers, and how the last step combines them"
        yield f"combines = {_toml(['synthesize'] if is_text else ['vote', 'synthesize'])}"
        yield "max_depth = 1"
        yield "max_width = 3"
        yield ""
        yield "[search]"
        yield "n_trials = 20"
        yield f"num_threads = {4 if are_here else 8}    # questions at the same time"
        yield ""
        yield "# A budget is never exceeded; `moa-dspy check` tells the smallest that works."
        yield "# [budget]" if are_here else "[budget]"
        yield "# seconds = 3600" if are_here else "calls = 20000"


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
