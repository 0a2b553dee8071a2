from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Run = Callable[..., Result]


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'dspy', 'optuna', 'litellm', 'pydantic', 'sqlalchemy', 'numpy', 'rich', 'datasets'}"
    code = (
        "import sys; from moa_dspy.cli import app; app(['--help'], standalone_mode=False); "
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "optimize" in out.stdout
    assert out.stdout.splitlines()[-1] == "[]"


def test_version_is_one_line(run: Run) -> None:
    assert run("--version").stdout.startswith("moa-dspy ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["optimize", "absent.toml"],
        ["optimize", "absent.toml", "--json"],
        ["ask", "absent.json", "Who?"],
        ["models", "check", "no-such-model"],
        ["models", "pull", "no-such-model"],
        ["optimize", "study.toml", "--out", "out", "--resume"],
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    run: Run, folder: Path, arguments: list[str]
) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_usage_errors_exit_with_2(run: Run) -> None:
    assert run("optimise").exit_code == 2
    assert run("optimize").exit_code == 2


def test_models_are_listed_and_none_is_broken(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOA_DSPY_WEIGHTS", str(tmp_path))
    listed = run("models", "list")
    assert "smollm2-135m-instruct" in listed.stdout
    assert f"folder: {tmp_path}" in listed.stdout
    assert run("models", "check").exit_code == 0
    (tmp_path / "smollm2-135m-instruct.gguf").write_bytes(b"GGUF")
    assert run("models", "check").exit_code == 2
