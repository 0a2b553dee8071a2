from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moa_dspy.errors import PoolError

if TYPE_CHECKING:
    from moa_dspy.mixture import MixtureOfAgents

POOLS = Path("optimize/pools")


def ask(
    program: Annotated[Path, typer.Argument(metavar="PROGRAM.json", help="A saved program.")],
    question: Annotated[str | None, typer.Argument(help="The first input field.")] = None,
    pool: Annotated[str, typer.Option(help=f"A name in {POOLS}, or a TOML file.")] = "local",
    more: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=VALUE", help="Another input.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Answer a question with a saved program."""
    agents_file = _pool_file(pool)

    from moa_dspy.pool import Pool
    from moa_dspy.program_file import load_program

    mixture = load_program(program, pool=Pool.read(agents_file))
    inputs = _inputs(list(mixture.signature.input_fields), question, more or [])
    with redirect_stdout(sys.stderr):
        prediction = mixture(**inputs)
    typer.echo(_answer_json(mixture, prediction) if as_json else prediction.mixture.final.text)


def _answer_json(mixture: MixtureOfAgents, prediction: Any) -> str:
    answer = prediction.mixture
    content = {
        "answer": answer.final.text,
        "outputs": dict(answer.final.values),
        "architecture": str(mixture.architecture),
        "responses": [asdict(response) for response in answer.responses],
        "usd": answer.usd,
        "seconds": answer.seconds,
        "failures": [
            {"agent": failed.agent, "sample": failed.sample, "failure": failed.failure}
            for failed in answer.failures
        ],
    }
    return json.dumps(content, ensure_ascii=False, default=str)


def _pool_file(name: str) -> Path:
    if name.endswith(".toml") or "/" in name or os.sep in name:
        return Path(name)
    path = POOLS / f"{name}.toml"
    if not path.is_file():
        found = ", ".join(sorted(file.stem for file in POOLS.glob("*.toml"))) or "none"
        raise PoolError(f"Unknown pool {name!r}; in {POOLS} there is {found}. A path also works.")
    return path


def _inputs(fields: list[str], question: str | None, more: list[str]) -> dict[str, str]:
    inputs = {} if question is None else {fields[0]: question}
    for text in more:
        name, equals, value = text.partition("=")
        if not equals or name not in fields or name in inputs:
            known = ", ".join(field for field in fields if field not in inputs) or "none is left"
            raise typer.BadParameter(
                f"--input {text!r} must be NAME=VALUE with a NAME of: {known}."
            )
        inputs[name] = value
    if absent := [field for field in fields if field not in inputs]:
        raise typer.BadParameter(f"The program also needs {', '.join(absent)}.")
    return inputs
