from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.errors import DataError, MetricError, MoaError, PoolError, StoreError, StudyError
from moa_dspy.optimize import run_study

Make = Callable[..., Any]

METRICS = """
def raises(example, prediction, trace=None):
    raise KeyError("gold")

def nan(example, prediction, trace=None):
    return float("nan")

def percent(example, prediction, trace=None):
    return 100
"""


def refused(study: Path, out: Path, *, by: type[MoaError], match: str) -> None:
    """Expect one line that matches, and no folder."""
    with pytest.raises(by, match=match) as caught:
        run_study(study, out=out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "by", "message"),
    [
        (
            ("n_trials = 8", "n_trails = 8"),
            StudyError,
            r"search\.n_trails: unknown key; .*n_trials.* Did you mean 'n_trials'",
        ),
        (("n_trials = 8", "n_trials = 0"), StudyError, r"`n_trials` and .* at least 1 .* got 0,"),
        (
            ("[space]", '[space]\nagents = ["e0", "e9"]'),
            StudyError,
            r"`space\.agents`: unknown agent 'e9'; the pool has e0, e1, e2",
        ),
        (
            ('"vote", ', '"sum", '),
            StudyError,
            r"`space\.combines`: unknown 'sum'; known ones are .*vote",
        ),
        (
            ("[space]", '[space]\nlisted = ["e0 + e9 > vote"]'),
            StudyError,
            "unknown agent 'e9'; it has e0, e1, e2",
        ),
        (
            ('"answer_match"', '"aswer"'),
            StudyError,
            r"`task\.metric`: unknown 'aswer'; known ones are answer_match, .*package\.module:name",
        ),
        (
            ('"answer_match"', '"os:path"'),
            StudyError,
            r"`task\.metric`: 'os:path' must be a function, but is a module",
        ),
        (
            ('"answer_match"', '"no_such_module:metric"'),
            StudyError,
            r"`task\.metric`: 'no_such_module:metric' cannot be imported",
        ),
        (
            ("[search]", '[search]\nsampler = "grid"'),
            StudyError,
            r"`search\.sampler`: unknown 'grid'; known ones are gp, nsga2, random, tpe, package",
        ),
        (
            ("[search]", '[search]\nsampler = "optuna.samplers:GridSampler"'),
            StudyError,
            r"`search\.sampler`: 'optuna\.samplers:GridSampler'\(\) raised TypeError",
        ),
        (
            ('"plain"', '"plane"'),
            StudyError,
            r"`task\.adapter`: unknown 'plane'; known ones are .*plain",
        ),
        (
            ("[search]", '[search]\nobjectives = ["beauty"]'),
            StudyError,
            r"`search\.objectives`: unknown 'beauty'; known ones are calls, ",
        ),
        (
            ("question -> answer", "question -> an wer"),
            StudyError,
            r"`task\.signature`: 'question -> an wer' is not a signature such as",
        ),
        (
            ("seed = 1", "seed = 4294967296"),
            StudyError,
            r"`seed` must be a whole number in \[0, 4294967295\], but",
        ),
        (
            ('"toy"', '".."'),
            StudyError,
            r"`name` must be a plain word .* begin with a dot, .*'\.\.'",
        ),
        (
            ("[search]", "[search]\ngain = 0.1"),
            StudyError,
            r"search\.gain: this key is now called `search\.min_gain`",
        ),
        (
            ('adapter = "plain"', 'adapter = "plain"\nagent = "predict"'),
            StudyError,
            r"task\.agent: this key is now called `task\.module`",
        ),
        (
            ("question -> answer", "query -> answer"),
            DataError,
            r"has the input 'query', but row 'train-0' of train has only question",
        ),
        (("rows.jsonl", "none.jsonl"), DataError, r"none\.jsonl does not exist"),
        (
            ('"split"', '"part"'),
            DataError,
            r"column 'part' has no value; choices are train, val, test|no field 'part'",
        ),
        (('["question"]', '["prompt"]'), DataError, "no field 'prompt'; the row has answer, id, "),
    ],
)
def test_a_study_file_that_does_not_fit_is_refused_and_nothing_is_written(
    server: Any,
    write_study: Make,
    tmp_path: Path,
    change: tuple[str, str],
    by: type[MoaError],
    message: str,
) -> None:
    refused(write_study(change), tmp_path / "out", by=by, match=message)
    assert not server.asked


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is here")
def test_a_gp_sampler_without_torch_is_refused_and_nothing_is_written(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    study = write_study(("[search]", '[search]\nsampler = "gp"'))
    message = r"`sampler`: GPSampler cannot be used in this search: .*torch"
    refused(study, tmp_path / "out", by=StudyError, match=message)
    assert not server.asked


def without(data: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [row for row in data if row["split"] != split]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda data: without(data, "val"), "Split 'val' is empty"),
        (lambda data: without(data, "test"), "Split 'test' is empty"),
        (lambda data: [*data, data[0]], r"id 'train-0' is on line 1 and again on line 32"),
        (
            # The last row of test asks, in capitals, what the first one of val asks.
            lambda data: [*data[:-1], {**data[-1], "question": "VAL  0"}],
            r"Splits overlap: val \('val-0'\) and test \('test-14'\) have the same inputs",
        ),
        (
            lambda data: [*data[:-1], {**data[-1], "split": "other"}],
            "'other'; choices are train, val",
        ),
        (lambda data: [*data[:-1], {**data[-1], "question": None}], "field 'question' is null"),
        (lambda data: [], "has no rows"),
        (
            lambda data: [*data[:-2], {**data[-2], "answer": None}, {**data[-1], "answer": " "}],
            r"field 'answer' must have a value, but has none on line 30, line 31\.",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(
    server: Any,
    write_study: Make,
    tmp_path: Path,
    data: list[dict[str, Any]],
    changed: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    message: str,
) -> None:
    study = write_study(rows=changed(data))
    refused(study, tmp_path / "out", by=DataError, match=message)
    assert not server.asked


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "caf\xe9"}', r"rows\.jsonl is not UTF-8: byte 0xe9 at offset 17"),
        (b'{"question": ', r"rows\.jsonl, line 1 is not JSON"),
    ],
)
def test_a_data_file_that_cannot_be_read_is_refused(
    write_study: Make, tmp_path: Path, content: bytes, message: str
) -> None:
    study = write_study()
    (tmp_path / "rows.jsonl").write_bytes(content)
    refused(study, tmp_path / "out", by=DataError, match=message)


def test_a_study_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    refused(path, tmp_path / "out", by=StudyError, match=r"study\.toml cannot be read: No such")
    path.write_bytes(b'name = "\xe9"')
    refused(path, tmp_path / "out", by=StudyError, match=r"is not UTF-8: byte 8 cannot")
    path.write_bytes(b"name = ")
    refused(path, tmp_path / "out", by=StudyError, match="is not TOML")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("raises", "The metric raised KeyError on example 'val-0': 'gold'"),
        ("nan", r"must return a number in \[0, 1\], but gave nan on 'val-0'"),
        ("percent", r"must return a number in \[0, 1\], but gave 100.0 on 'val-0'"),
    ],
)
def test_a_metric_that_does_not_work_costs_nothing(
    server: Any,
    write_study: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    metric: str,
    message: str,
) -> None:
    (tmp_path / "refused_metrics.py").write_text(METRICS, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    study = write_study(("answer_match", f"refused_metrics:{metric}"))
    refused(study, tmp_path / "out", by=MetricError, match=message)
    assert server.asked == []


def test_a_metric_that_fails_later_says_that_the_answers_are_kept(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    # It is tried with right answers and one wrong one, so what a fourth one does is not known.
    code = """WRONG = set()
def metric(example, prediction):
    if prediction.answer != example.answer:
        WRONG.add(prediction.answer)
    return (prediction.answer == example.answer) / (len(WRONG) < 4)
"""
    (tmp_path / "later_metrics.py").write_text(code, "utf-8")
    study = write_study(("answer_match", "later_metrics:metric"))
    kept = "Every answer is kept: mend this, and run the study again without --resume"
    with pytest.raises(MetricError, match=f"The metric raised ZeroDivisionError .*{kept}"):
        run_study(study, out=tmp_path / "out")
    n_asked = len(server.asked)
    (tmp_path / "later_metrics.py").write_text(code.replace("< 4", "< 400"), "utf-8")
    del sys.modules["later_metrics"]
    assert run_study(study, out=tmp_path / "out").calls_reused >= n_asked > 0


def test_an_agent_that_never_answers_is_named_before_the_next_is_asked(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    # 400 is not tried again, unlike 500.
    server.refusals["e1"] = (400, "no such model")
    message = "Agent 'e1' does not answer: .*no such model"
    refused(write_study(), tmp_path / "out", by=PoolError, match=message)
    assert [model for model, _ in server.asked] == ["e0", "e1", "e1", "e1"]


def test_a_recording_that_is_none_is_refused(write_study: Make, tmp_path: Path) -> None:
    study = write_study(("[space]", '[calls]\nrecording = "rows.jsonl"\n[space]'))
    refused(study, tmp_path / "out", by=MoaError, match="cannot be read as a recording")


def test_a_folder_that_cannot_be_written_is_found_before_a_request(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=r"Results cannot be written to .*file/out: Not a direct"):
        run_study(write_study(), out=tmp_path / "file" / "out")
    assert not server.asked


@pytest.mark.parametrize(
    ("file", "make", "message"),
    [
        ("calls.sqlite", "text", r"calls\.sqlite cannot be used: file is not a database\. Move it"),
        (
            "calls.sqlite",
            "folder",
            r"calls\.sqlite cannot be used: unable to open .* must be a file",
        ),
        ("calls.sqlite", "version", r"calls\.sqlite has schema 99, but .* Move it away"),
        (
            "study.sqlite3",
            "folder",
            r"study\.sqlite3 cannot be used: unable to open .* must be a file",
        ),
        ("study.sqlite3", "table", r"study\.sqlite3 was written by .* another program\. Move it"),
        ("prompts.log", "folder", r"cannot be written to .*: prompts\.log is a folder there"),
        ("report.html", "folder", r"cannot be written to .*: report\.html is a folder there"),
    ],
)
def test_a_file_of_the_folder_that_cannot_be_used_is_found_before_a_request_and_stays(
    server: Any, write_study: Make, tmp_path: Path, file: str, make: str, message: str
) -> None:
    (out := tmp_path / "out").mkdir()
    if make == "folder":
        (out / file).mkdir()
    elif make == "text":
        (out / file).write_text("no database", "utf-8")
    else:
        sql = "PRAGMA user_version = 99" if make == "version" else "CREATE TABLE trials (a)"
        with closing(sqlite3.connect(out / file)) as database:
            database.execute(sql)
    with pytest.raises(MoaError, match=message) as caught:
        run_study(write_study(), out=out)
    assert "\n" not in str(caught.value)
    assert not server.asked
    assert [path.name for path in out.iterdir()] == [file]


@pytest.mark.slow
def test_what_is_read_only_in_the_folder_is_found_before_a_request(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_study(write_study(("n_trials = 8", "n_trials = 4")), out=out)
    (out / "prompts.log").touch()
    asks = ('adapter = "plain"', 'adapter = "plain"\ninstructions = "Say the number."')
    n_asked, other = len(server.asked), write_study(asks)
    for file, message in {
        ".": r"Results cannot be written to .*out: Read-only file system",
        "calls.sqlite": r"calls\.sqlite cannot be used: .*readonly database",
        "study.sqlite3": r"study\.sqlite3 cannot be used: .*readonly database",
        "prompts.log": r"Results cannot be written to .*out: Read-only file system",
    }.items():
        with read_only(out / file), pytest.raises(MoaError, match=message):
            run_study(other, out=out)
        assert len(server.asked) == n_asked


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Mount a file or folder over itself, read-only: root may write whatever its mode says."""
    try:
        for options in (["--bind", str(path)], ["-o", "remount,bind,ro"]):
            subprocess.run(["mount", *options, str(path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"NOT TESTED: nothing can be mounted here ({error})")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("megabytes", "some_are_paid"), [(1, False), (17, True)])
def test_a_disk_that_is_almost_full_ends_a_study_and_nothing_paid_is_lost(
    server: Any, write_study: Make, tmp_path: Path, megabytes: int, some_are_paid: bool
) -> None:
    study, out = write_study(), tmp_path / "out"
    with small_disk(out, megabytes=megabytes) as enlarge:
        with pytest.raises(
            StoreError, match=r"MB left\. Below .* MB no call is made, .* Free space"
        ):
            run_study(study, out=out)
        assert (len(server.answered) > 0) == some_are_paid
        enlarge()
        found = run_study(study, out=out, resume=some_are_paid)
        assert found.calls_made == len(server.asked) == len(set(server.asked))


@contextmanager
def small_disk(folder: Path, *, megabytes: int) -> Iterator[Callable[[], Any]]:
    """Mount a small disk as a folder, and yield what makes it large."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"NOT TESTED: no disk can be mounted here ({error})")
    try:
        yield partial(subprocess.run, ["mount", "-o", "remount,size=64m", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_key_in_a_field_of_an_agent_is_not_shown(write_study: Make, tmp_path: Path) -> None:
    study = write_study(agent='max_tokens = "sk-planted"')
    with pytest.raises(PoolError, match=r"agents\[0\]\.max_tokens: .* got a text of 10") as caught:
        run_study(study, out=tmp_path / "out")
    assert "sk-planted" not in str(caught.value)


@pytest.mark.slow
def test_the_smallest_budget_of_seconds_reaches_a_verdict(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    study = write_study(("[search]", "[budget]\nseconds = 0.5\n[search]"))
    with pytest.raises(StudyError, match=r"needs about [0-9.]+ at least") as refused:
        run_study(study, out=tmp_path / "one")
    (least,) = re.findall(r"about ([0-9.]+) at least", str(refused.value))
    study = write_study(("[search]", f"[budget]\nseconds = {least}\n[search]"))
    assert run_study(study, out=tmp_path / "two").verdict.n > 12  # rows of val
