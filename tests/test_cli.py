"""The command line, end to end; models are a server of this process that answers by rule."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dspy
import pytest
from typer.testing import CliRunner, Result

from moa_dspy.adapters import PlainChat
from moa_dspy.cli import app
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.program_file import save_program

# Agent `good` knows every answer, `bad` none: the best single agent is never in doubt.
STUDY = """
name = "tiny"
seed = 1
pool = "pool.toml"
[task]
signature = "question -> answer"
adapter = "plain"
metric = "answer_match"
[data]
path = "rows.jsonl"
inputs = ["question"]
split_column = "split"
[space]
combines = ["synthesize"]
max_depth = 1
[search]
n_trials = 3
"""


class Rule(BaseHTTPRequestHandler):
    """Answers the number in the question, plus one if the model is `bad`."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"].split("Responses from models:")[0]
        number = int(question.split()[-1]) + (body["model"] == "bad")
        message = {"role": "assistant", "content": f"{number}"}
        reply = {
            "id": "1",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
        }
        payload = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Rule) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/v1"
        running.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with a pool called `local` and a study of the same agents."""
    agents = [
        f'[[agents]]\nname = "{name}"\nmodel = "openai/{name}"\napi_base = "{server}"\n'
        "temperature = 0.0\nusd_per_million_prompt_tokens = 1.0\n"
        for name in ("good", "bad")
    ]
    pools = tmp_path / "optimize" / "pools"
    pools.mkdir(parents=True)
    for path in (pools / "local.toml", tmp_path / "pool.toml"):
        path.write_text("\n".join(agents), "utf-8")
    rows = [
        {"split": split, "question": f"Repeat {split} {i}", "answer": str(i)}
        for split in ("train", "val", "test")
        for i in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "study.toml").write_text(STUDY, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def saved_mixture(folder: Path) -> Path:
    pool = Pool.read(folder / "pool.toml")
    mixture = MixtureOfAgents(
        dspy.Signature("question, hint -> answer", "Repeat."),
        "bad + good > vote(good)",
        pool=pool,
        adapter=PlainChat(),
    )
    save_program(mixture, folder / "mixture.json")
    return folder / "mixture.json"


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'dspy', 'optuna', 'litellm', 'pydantic', 'sqlalchemy', 'numpy', 'rich', 'datasets'}"
    code = (
        "import sys; from moa_dspy.cli import app; app(['--help'], standalone_mode=False); "
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "optimize" in out.stdout
    assert out.stdout.splitlines()[-1] == "[]"


def test_version_is_one_line() -> None:
    assert run("--version").stdout.startswith("moa-dspy ")


def test_a_study_prints_its_table_and_writes_a_program_that_answers(folder: Path) -> None:
    done = run("optimize", "study.toml", "--out", "out")
    assert done.exit_code == 0, done.stderr
    assert "best_single  good " in done.stdout
    assert [f"wrote out/{name}.json" for name in ("program", "result")] == [
        line for line in done.stdout.splitlines() if line.startswith("wrote")
    ]
    assert "single agents" in done.stderr
    assert "search" in done.stderr

    answer = run("ask", "out/program.json", "Repeat this: 42")
    assert (answer.exit_code, answer.stdout) == (0, "42\n")


def test_json_is_the_only_thing_on_standard_output(folder: Path) -> None:
    done = run("optimize", "study.toml", "--out", "out", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((folder / "out" / "result.json").read_text())
    assert json.loads(done.stdout)["test"]["best_single"]["score"] == 1.0


METRIC = """
from pathlib import Path

def metric(example, prediction, trace=None):
    if Path("stop").exists():
        raise KeyboardInterrupt
    return float(prediction.answer == example.answer)
"""


def test_an_interrupted_study_goes_on_with_resume(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "interrupting_metric.py").write_text(METRIC, "utf-8")
    monkeypatch.syspath_prepend(folder)
    study = STUDY.replace("answer_match", "interrupting_metric:metric")
    (folder / "study.toml").write_text(study, "utf-8")
    (folder / "stop").touch()
    stopped = run("optimize", "study.toml", "--out", "out")
    assert stopped.exit_code == 130
    assert stopped.stderr.endswith("the same command with --resume goes on.\n")
    (folder / "stop").unlink()
    assert run("optimize", "study.toml", "--out", "out", "--resume").exit_code == 0


def test_ask_reports_each_agent(folder: Path) -> None:
    path = saved_mixture(folder)
    done = run("ask", str(path), "Repeat", "--input", "hint=this: 42", "--json")
    content = json.loads(done.stdout)
    assert content["architecture"] == "bad + good > vote(good)"
    assert {r["agent"]: r["text"] for r in content["responses"]} == {"bad": "43", "good": "42"}
    # A tie of 42 and 43 goes to `good`; 2 calls of 3 prompt tokens at 1 usd per million.
    assert (content["answer"], content["outputs"]) == ("42", {"answer": "42"})
    assert content["usd"] == pytest.approx(6e-6)
    assert content["failures"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pool", "nowhere"], "error: Unknown pool 'nowhere'; in optimize/pools there is local."),
        (["--pool", "nowhere.toml"], "error: nowhere.toml cannot be read"),
        (["--pool", "./pool"], "error: pool cannot be read"),
        ([], "The program also needs hint."),
        (["--input", "hint"], "must be NAME=VALUE with a NAME of: hint."),
        (["--input", "hnt=x"], "must be NAME=VALUE with a NAME of: hint."),
        (["--input", "question=x"], "must be NAME=VALUE with a NAME of: hint."),
    ],
)
def test_a_wrong_way_to_ask_is_explained(folder: Path, arguments: list[str], message: str) -> None:
    done = run("ask", str(saved_mixture(folder)), "Repeat", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


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
def test_a_mistake_is_one_line_and_exit_code_2(folder: Path, arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_usage_errors_exit_with_2() -> None:
    assert run("optimise").exit_code == 2
    assert run("optimize").exit_code == 2


def test_models_are_listed_and_none_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOA_DSPY_WEIGHTS", str(tmp_path))
    listed = run("models", "list")
    assert "smollm2-135m-instruct" in listed.stdout
    assert f"folder: {tmp_path}" in listed.stdout
    assert run("models", "check").exit_code == 0
    (tmp_path / "smollm2-135m-instruct.gguf").write_bytes(b"GGUF")
    assert run("models", "check").exit_code == 2
