"""``check`` is free, finds what would fail later, and names the smallest budget."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from moa_dspy.optimize.study import PreparedStudy

Run = Callable[..., Result]


def change(folder: Path, *pairs: tuple[str, str]) -> None:
    path = folder / "study.toml"
    text = path.read_text("utf-8")
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, "utf-8")


def test_calls_by_stage_and_the_smallest_budget(run: Run, folder: Path) -> None:
    found = json.loads(run("check", "study.toml", "--json").stdout)
    assert found["rows"] == {"train": 8, "val": 8, "test": 8}
    assert found["stages"]["single agents"]["high"]["calls"] == 2 * 8
    # Both agents on val, and two of them on test.
    assert found["smallest_budget"]["calls"] == 16 + 16
    assert run("optimize", "study.toml", "--dry-run", "--json").stdout == (
        run("check", "study.toml", "--json").stdout
    )
    assert not (folder / "runs").exists()


def test_rows_that_no_split_takes_are_counted(run: Run, folder: Path) -> None:
    change(folder, ('split_column = "split"', "sizes = { val = 8, test = 12 }"))
    assert "note: Rows that `data.sizes` leaves out of all splits: 4 of 24." in (
        run("check", "study.toml").stdout
    )
    change(folder, ("test = 12", "test = 16"))
    assert "leaves out" not in run("check", "study.toml").stdout


def test_the_rows_are_read_once(run: Run, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = folder / "rows.jsonl"
    text = table.read_text("utf-8")
    table.write_text(f"{text}\n{text.splitlines()[0]}", "utf-8")
    change(
        folder,
        ('split_column = "split"', "sizes = { val = 8, test = 12 }\ndrops_repeated = true"),
    )
    found = run("check", "study.toml")
    assert "note: Rows that `data.sizes` leaves out of all splits: 4 of 24." in found.stdout
    assert caplog.messages == [
        "rows.jsonl: 1 of 25 rows are left out, because an earlier row has the same inputs."
    ]


def test_prompts_are_counted_as_they_would_be_sent(run: Run, folder: Path) -> None:
    plain = json.loads(run("check", "study.toml", "--json").stdout)["agents"][0]
    change(folder, ('adapter = "plain"\n', ""))
    chat = json.loads(run("check", "study.toml", "--json").stdout)["agents"][0]
    # DSPy's chat format explains its fields, some 100 tokens.
    assert plain["prompt_tokens"]["high"] < 40
    assert chat["prompt_tokens"]["high"] > 80


def test_a_budget_without_verdict_is_refused(run: Run, folder: Path) -> None:
    change(folder, ("[search]", "[budget]\ncalls = 30\n[search]"))
    refused = run("check", "study.toml")
    assert refused.exit_code == 2
    assert "`budget.calls` is 30, but a verdict needs about 32 at least." in refused.stderr


def test_a_probe_asks_each_agent_once(run: Run, folder: Path) -> None:
    found = json.loads(run("check", "study.toml", "--probe", "--json").stdout)
    assert [agent["reply"] for agent in found["agents"]] == ["0", "1"]
    # The server counts 3 tokens of prompt.
    assert found["agents"][0]["prompt_tokens"]["likely"] == 3
    assert found["stages"]["all"]["likely"]["seconds"] > 0


def test_an_agent_that_does_not_answer_the_probe_is_named(run: Run, folder: Path) -> None:
    text = (folder / "pool.toml").read_text("utf-8")
    dead = text.replace('name = "bad"', 'name = "dead"\nnum_retries = 0').split("api_base")
    dead[2] = ' = "http://127.0.0.1:9/v1"\ntemperature = 0.0\n'
    (folder / "pool.toml").write_text("api_base".join(dead), "utf-8")
    probed = run("check", "study.toml", "--probe")
    assert probed.exit_code == 2
    # Nothing is said of a mixture, which the user has not asked for.
    assert "error: Agent 'dead' does not answer: LMTransportError: [agent/dead]" in probed.stderr
    assert "unknown" in probed.stdout


def test_an_output_that_is_no_column_is_found_for_free(run: Run, folder: Path) -> None:
    change(folder, ("question -> answer", "question -> label"))
    refused = run("check", "study.toml")
    assert refused.exit_code == 2
    assert "cannot score a made-up prediction of `task.signature`, whose outputs are label" in (
        refused.stderr
    )
    change(folder, ('"answer_match"', '"exact_match"'))
    refused = run("optimize", "study.toml")
    assert "8 of 8 rows have no value in 'label', which the metric reads" in refused.stderr


def test_a_module_beside_the_study_needs_no_path(run: Run, folder: Path) -> None:
    for name, value in (("one", 0.25), ("two", 0.5)):
        (folder / name).mkdir()
        study = (folder / "study.toml").read_text("utf-8")
        for file in ("pool.toml", "rows.jsonl"):
            study = study.replace(f'"{file}"', f'"../{file}"')
        study = study.replace("answer_match", "metric_beside:metric")
        (folder / name / "study.toml").write_text(study, "utf-8")
        code = "from helper_beside import VALUE\ndef metric(example, prediction):\n    return VALUE"
        (folder / name / "metric_beside.py").write_text(code, "utf-8")
        (folder / name / "helper_beside.py").write_text(f"VALUE = {value}\n", "utf-8")
        checked = run("check", f"{name}/study.toml")
        assert checked.exit_code == 0, checked.stderr
    from moa_dspy.optimize.study_file import read_study

    # Each study has its own, though both modules have one name.
    assert read_study(folder / "one" / "study.toml").make_metric()(None, None) == 0.25
    assert read_study(folder / "two" / "study.toml").make_metric()(None, None) == 0.5


MODULE_BESIDE = """
from dspy.teleprompt import LabeledFewShot

class Judge:
    def compare(self, example, candidate, reference):
        raise NotImplementedError

def diversity(responses, /):
    return 0.5

class Optimizer(LabeledFewShot):
    pass
"""


@pytest.mark.parametrize(
    ("table", "key", "part"),
    [
        ("search", 'diversity = "module_beside:diversity"', "code"),
        ("prompts", 'optimizer = "module_beside:Optimizer"', "code"),
        ("judge", 'kind = "module_beside:Judge"\npicks = "metric"', "judge"),
    ],
)
def test_whatever_a_study_names_may_be_in_a_module_beside_it(
    run: Run, folder: Path, table: str, key: str, part: str
) -> None:
    study, module = folder / "study.toml", folder / "module_beside.py"
    module.write_text(MODULE_BESIDE, "utf-8")
    if table == "search":
        change(folder, ("[search]", f"[search]\n{key}"))
    else:
        change(folder, ("[space]", f"[{table}]\n{key}\n[space]"))
    checked = run("check", "study.toml")
    assert checked.exit_code == 0, checked.stderr
    first = PreparedStudy.read(study).digests
    # With another text it may do something else, so the study is another one.
    module.write_text(MODULE_BESIDE + "\n# changed\n", "utf-8")
    second = PreparedStudy.read(study).digests
    assert {name for name in first if first[name] != second[name]} == {part}


def on_a_terminal(folder: Path, *arguments: str, answer: str) -> tuple[int, str]:
    """Run the command on a terminal of its own and type an answer where it asks."""
    terminal, process_end = pty.openpty()
    command = [sys.executable, "-m", "moa_dspy", *arguments]
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=process_end,
        stdout=process_end,
        stderr=process_end,
        env=os.environ,
    ) as process:
        os.close(process_end)
        shown, has_answered = "", False
        while select.select([terminal], [], [], 60)[0]:
            try:
                shown += os.read(terminal, 4096).decode(errors="replace")
            except OSError:  # the other side has closed
                break
            if "Go on?" in shown and not has_answered:
                has_answered = True
                os.write(terminal, f"{answer}\n".encode())
    os.close(terminal)
    return process.returncode, shown


@pytest.mark.slow
def test_on_a_terminal_it_asks_above_a_cost(folder: Path) -> None:
    refused, shown = on_a_terminal(
        folder, "optimize", "study.toml", "--ask-above", "0.000001", answer="n"
    )
    assert (refused, "The study takes about" in shown) == (1, True)
    assert not (folder / "runs").exists()
    free, shown = on_a_terminal(folder, "optimize", "study.toml", answer="n")
    assert (free, "Go on?" in shown) == (0, False)
    done, shown = on_a_terminal(
        folder, "optimize", "study.toml", "--ask-above", "0.000001", "--yes", answer="n"
    )
    assert (done, "Go on?" in shown) == (0, False)


@pytest.mark.slow
def test_a_study_is_read_once_for_the_question_mlflow_and_its_run(folder: Path) -> None:
    pytest.importorskip("mlflow")
    change(folder, ("answer_match", "counting:metric"))
    counting = """
def match(example, prediction):
    return float(example.answer == prediction.answer)

def __getattr__(name):  # asked whenever a study's metric is read
    if name != "metric":
        raise AttributeError(name)
    with open("read.txt", "a") as log:
        log.write("once ")
    return match
"""
    (folder / "counting.py").write_text(counting, "utf-8")
    arguments = ("study.toml", "--mlflow", f"sqlite:///{folder / 'mlflow.db'}")
    ended, shown = on_a_terminal(
        folder, "optimize", *arguments, "--ask-above", "0.000001", answer="y"
    )
    assert (ended, "Go on?" in shown) == (0, True), shown
    # Once as the study is read, once for the digest of the metric's code.
    assert (folder / "read.txt").read_text("utf-8").split() == ["once", "once"]


def test_prices_are_listed_with_their_source(run: Run, folder: Path) -> None:
    more = '\n[[agents]]\nname = "mini"\nmodel = "openai/gpt-4.1-mini"\n'
    more += '\n[[agents]]\nname = "own"\nmodel = "openai/own"\n'
    more += '\n[[agents]]\nname = "here"\nmodel = "local/smollm2-135m-instruct"\n'
    with (folder / "pool.toml").open("a", encoding="utf-8") as file:
        file.write(more)
    lines = run("models", "prices", "pool.toml").stdout.splitlines()
    shown = {line.split()[0]: " ".join(line.split()[2:]) for line in lines}
    assert shown["good"] == "1 / 0 pool file"
    assert shown["mini"] == "0.4 / 1.6 LiteLLM's list"
    assert shown["own"] == "unknown set it in the pool file"
    assert shown["here"] == "free this machine"


def test_agents_of_a_table_of_answers_are_not_called_and_cost_nothing(
    run: Run, folder: Path
) -> None:
    rows = [
        {"question": n, "agent": name, "answer": name, "score": n % 2}
        for n in range(9)
        for name in "ab"
    ]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    text = 'name = "t"\n[data]\nreader = "recorded"\npath = "t.jsonl"\n'
    (folder / "t.toml").write_text(text + "sizes = { train = 1, val = 4, test = 4 }\n", "utf-8")
    shown = run("check", "t.toml").stdout
    assert shown.count("│ no call ") == shown.count("│ the table ") == 2
    assert "prompt" not in shown  # no tokens are assumed where nothing is asked
    assert "note: Costs that the table has for every answer: none.\n" in shown
    assert "Questions without an answer" not in shown
    # The table has no usd, which is no unknown price of a study.
    whole = json.loads(run("check", "t.toml", "--json").stdout)["stages"]["all"]
    assert whole["high"]["usd"] == 0


def test_what_a_table_of_answers_lacks_is_said_before_the_study(run: Run, folder: Path) -> None:
    rows = [
        {"question": n, "agent": name, "answer": "" if name == "a" and n < 3 else name,
         "score": n % 2, "usd": 0.1, "seconds": 1.0 if n else ""}
        for n in range(9)
        for name in "ab"
    ]  # fmt: skip
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    text = 'name = "t"\n[data]\nreader = "recorded"\npath = "t.jsonl"\n'
    (folder / "t.toml").write_text(text + "sizes = { train = 1, val = 4, test = 4 }\n", "utf-8")
    shown = run("check", "t.toml").stdout
    assert "note: Costs that the table has for every answer: usd.\n" in shown
    assert "note: Questions without an answer, which score 0: a 3 of 9.\n" in shown


def test_a_budget_that_ends_the_study_before_says_how_much_it_allows(
    run: Run, folder: Path
) -> None:
    assert "allows about" not in run("check", "study.toml").stdout
    assert json.loads(run("check", "study.toml", "--json").stdout)["budget_allows"] is None
    free = json.loads(run("check", "study.toml", "--json").stdout)
    change(folder, ("[search]", "[budget]\ncalls = 33\n[search]"))
    capped = json.loads(run("check", "study.toml", "--json").stdout)
    # What the study takes stays what it takes, whatever the budget.
    assert capped["stages"] == free["stages"]
    whole = free["stages"]["all"]["likely"]["calls"]
    allowed = capped["budget_allows"]
    assert (allowed["limit"], allowed["value"]) == ("calls", 33)
    assert allowed["share"] == pytest.approx(33 / whole, rel=0.03)  # calls are shown rounded
    share = f"{100 * allowed['share']:.0f}"
    assert f"budget.calls = 33 allows about {share} % of that" in run("check", "study.toml").stdout


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ("[budget]\nusd = 5\n[search]", "budget.usd"),
        ("[limits]\nusd = 5\n[search]", "limits.usd"),
        ('[search]\nobjectives = ["score", "usd"]', "objectives"),
    ],
)
def test_what_optimize_refuses_before_any_call_is_refused_by_check(
    run: Run, folder: Path, table: str, name: str
) -> None:
    pool = (folder / "pool.toml").read_text("utf-8").splitlines()
    unpriced = "\n".join(line for line in pool if not line.startswith("usd"))
    (folder / "pool.toml").write_text(unpriced, "utf-8")
    change(folder, ("[search]", table))
    message = f"`{name}` counts usd, but the price of good, bad is unknown"
    commands = (["check"], ["check", "--probe"], ["optimize", "--dry-run"], ["optimize"])
    refused = [run(*command, "study.toml") for command in commands]
    assert [one.exit_code for one in refused] == [2] * 4
    assert all(message in one.stderr for one in refused)


def test_limits_that_no_agent_can_keep_are_found_for_free(run: Run, folder: Path) -> None:
    # A prompt has more than 4 tokens at 1e-6 usd each, and a quarter of them is compared.
    change(folder, ("[search]", "[limits]\nusd = 1e-9\n[search]"))
    refused = run("check", "study.toml")
    assert refused.exit_code == 2
    assert "`limits` allow 1e-09 usd for a question, but no agent answers within that" in (
        refused.stderr
    )
    assert "good takes at least about" in refused.stderr
    change(folder, ("usd = 1e-9", "usd = 1e-3"))
    assert run("check", "study.toml").exit_code == 0


def change_last_answer(folder: Path, answer: object) -> None:
    *rows, last = (folder / "rows.jsonl").read_text("utf-8").splitlines()
    rows.append(json.dumps({**json.loads(last), "answer": answer}))
    (folder / "rows.jsonl").write_text("\n".join(rows), "utf-8")


@pytest.mark.parametrize(
    ("signature", "metric", "answer", "message"),
    [
        ("question -> answer", "numeric_match", "n/a", "must hold a number, but is 'n/a'"),
        ("question -> answer", "json_match", "{a:1}", "must be JSON, but is '{a:1}'"),
        (
            "question -> answer: Literal['0','1','2','3','4','5','6','7']",
            "choice",
            "8",
            "the right answer of 'answer' must be one of 0, 1, 2, 3, 4, 5, 6, 7, but is '8'",
        ),
    ],
)
def test_one_right_answer_that_cannot_be_scored_is_found_for_free(
    run: Run, folder: Path, signature: str, metric: str, answer: str, message: str
) -> None:
    change(folder, ('adapter = "plain"\n', ""), ("question -> answer", signature))
    change(folder, ('"answer_match"', f'"{metric}"'))
    assert run("check", "study.toml").exit_code == 0
    change_last_answer(folder, answer)
    for command in ("check", "optimize"):
        refused = run(command, "study.toml")
        assert refused.exit_code == 2
        assert message in refused.stderr
        assert re.search(r"Row '\S+' of test: ", refused.stderr)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("return float(1 / (7 - int(example.answer)) > 0)", "ZeroDivisionError"),
        ("return 1.0 if prediction.answer == example.answer else 7", "in [0, 1], but gave 7.0"),
    ],
)
def test_a_metric_of_ones_own_is_tried_on_all_rows_and_on_a_wrong_answer(
    run: Run, folder: Path, code: str, message: str
) -> None:
    name = f"metric_{abs(hash(code))}"
    (folder / f"{name}.py").write_text(f"def metric(example, prediction):\n    {code}\n", "utf-8")
    change(folder, ('"answer_match"', f'"{name}:metric"'))
    refused = run("check", "study.toml")
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert re.search(r"Row '\S+' of val has ", refused.stderr)


def test_a_slow_metric_of_ones_own_is_tried_on_one_row(run: Run, folder: Path) -> None:
    code = (
        "import time\n"
        "def metric(example, prediction):\n"
        "    print('scored', flush=True)\n"
        "    time.sleep(0.1)\n"
        "    return 1.0\n"
    )
    (folder / "slow_metric.py").write_text(code, "utf-8")
    change(folder, ('"answer_match"', '"slow_metric:metric"'))
    assert run("check", "study.toml").stderr.count("scored") == 1


def test_an_input_that_is_none_of_the_signature_is_refused(run: Run, folder: Path) -> None:
    change(folder, ('inputs = ["question"]', 'inputs = ["question", "answer"]'))
    refused = run("check", "study.toml")
    assert refused.exit_code == 2
    assert "`data.inputs` has 'answer', which is no input of `task.signature`" in refused.stderr


@pytest.mark.parametrize(
    ("module", "reason", "names_choices"),
    [
        ("def metric(:", "invalid syntax", False),
        ("import not_installed_here", "No module named 'not_installed_here'", False),
        ("other = 1", "has no attribute 'metric'", True),
        (None, "No module named 'broken_metric_3'", True),
    ],
)
def test_choices_are_named_only_where_the_name_is_not_understood(
    run: Run, folder: Path, module: str | None, reason: str, names_choices: bool
) -> None:
    name = f"broken_metric_{len(module or 'abc')}"
    if module is not None:
        (folder / f"{name}.py").write_text(module, "utf-8")
    change(folder, ('"answer_match"', f'"{name}:metric"'))
    refused = run("check", "study.toml")
    assert refused.exit_code == 2
    assert reason in refused.stderr
    assert ("; known ones are" in refused.stderr) == names_choices


def test_missing_agents_are_said_to_be_missing(run: Run, folder: Path) -> None:
    change(folder, ('pool = "pool.toml"\n', ""))
    assert "or `[[agents]]`, but this one has neither." in run("check", "study.toml").stderr


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "study",
            "n_trials = 3",
            "n_trials = true",
            "search.n_trials: must be a number",
        ),
        ("study", "seed = 1", 'seed = "1"', "study.toml.seed: must be a number, but got '1'"),
        ("study", "[search]", "[search]\nmin_gain = '0.1'", "min_gain: must be a number, but"),
        ("study", "[data]", "stop_early = 'no'\n[data]", "stop_early: must be true or false, but"),
        (
            "pool",
            "usd_per_million_prompt_tokens = 1.0",
            'usd_per_million_prompt_tokens = "1"',
            "[0].usd_per_million_prompt_tokens: must be a number, but got a text of 1 characters",
        ),
    ],
)
def test_texts_and_truth_values_are_no_numbers(
    run: Run, folder: Path, file: str, old: str, new: str, message: str
) -> None:
    path = folder / f"{file}.toml"
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    refused = run("check", "study.toml")
    assert refused.exit_code == 2
    assert message in refused.stderr
