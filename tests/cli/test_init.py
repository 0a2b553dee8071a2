"""``init`` writes a study that runs as it is, for any table; ``check`` foretells it for free."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets.config
import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import Result

from moa_dspy.cli.init import found_models
from moa_dspy.errors import PoolError
from moa_dspy.vendors import KEYS, listed_price
from tests.cli.conftest import by_rule
from tests.servers.chat import ChatServer, serving

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def models() -> Iterator[ChatServer]:
    with serving(by_rule, models=["good", "bad", "text-embed-3"]) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the keys and the weights of the machine that runs the tests."""
    for name in (*KEYS, "OPENAI_BASE_URL", "OPENAI_API_BASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MOA_DSPY_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)


def rows(n: int = 30) -> list[tuple[str, str]]:
    return [(f"Repeat number {i}", str(i)) for i in range(n)]


FORMS = {
    "comma.csv": "\ufeffquestion,answer\r\n" + "".join(f"{q},{a}\r\n" for q, a in rows()),
    "semicolon.csv": "question;answer\n" + "".join(f'"{q}";{a}\n' for q, a in rows()),
    "tab.tsv": "question\tanswer\n" + "".join(f"{q}\t{a}\n" for q, a in rows()),
    "lines.csv": "id,question,answer\n"
    + "".join(f'{n},"Look, a line.\n{q}",{a}\n' for n, (q, a) in enumerate(rows())),
    "rows.jsonl": "\n".join(json.dumps({"question": q, "answer": a}) for q, a in rows()),
    "rows.json": json.dumps([{"question": q, "answer": int(a)} for q, a in rows()]),
}


@pytest.mark.parametrize("name", FORMS)
def test_what_is_written_runs_as_it_is(
    name: str, run: Run, tmp_path: Path, models: ChatServer
) -> None:
    (tmp_path / name).write_bytes(FORMS[name].encode())
    made = run("init", name, "--out", "made", "--server", models.url)
    assert made.exit_code == 0, made.stderr
    assert "question -> answer" in made.stdout
    checked = run("check", "made/study.toml", "--json")
    assert checked.exit_code == 0, checked.stderr
    found = json.loads(checked.stdout)
    # 30 rows: two fifths for val, the rest for test.
    assert found["rows"] == {"train": 0, "val": 12, "test": 18}
    # Good and bad, each also at temperature 0.7.
    assert found["stages"]["single agents"]["likely"]["calls"] == 4 * 12
    assert found["stages"]["all"]["high"]["usd"] == 0
    assert found["stages"]["all"]["high"]["seconds"] is None


def test_parquet_keeps_its_types(run: Run, tmp_path: Path, models: ChatServer) -> None:
    table = pyarrow.table({"question": [q for q, _ in rows()], "answer": list(range(30))})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    made = run("init", "rows.parquet", "--server", models.url)
    assert made.exit_code == 0, made.stderr
    assert "rows.parquet: 30 rows; question -> answer" in made.stdout
    study = tomllib.loads((tmp_path / "study.toml").read_text("utf-8"))
    assert (study["data"]["path"], study["task"]["metric"]) == ("rows.parquet", "numeric_match")
    assert run("check", "study.toml").exit_code == 0


def test_a_hub_data_set_is_copied_beside_the_study(
    run: Run, tmp_path: Path, models: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `datasets` loads a folder of files as it loads a repository of the hub.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "owner" / "capitals").mkdir(parents=True)
    (tmp_path / "owner" / "capitals" / "train.jsonl").write_text(FORMS["rows.jsonl"], "utf-8")
    made = run("init", "owner/capitals", "--out", "made", "--server", models.url)
    assert made.exit_code == 0, made.stderr
    assert "owner/capitals: 30 rows; question -> answer" in made.stdout
    assert len((tmp_path / "made" / "rows.jsonl").read_text("utf-8").splitlines()) == 30
    assert run("check", "made/study.toml").exit_code == 0
    absent = run("init", "owner/capitals", "--split", "dev", "--out", "other")
    assert "split 'dev', cannot be loaded" in absent.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_the_written_study_reaches_a_verdict(run: Run, tmp_path: Path, models: ChatServer) -> None:
    (tmp_path / "t.csv").write_bytes(FORMS["semicolon.csv"].encode())
    assert run("init", "t.csv", "--server", models.url).exit_code == 0
    done = run("optimize", "study.toml", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["recommended"].startswith("good")


def test_names_that_cannot_be_fields_are_renamed_and_rows_are_counted(
    run: Run, tmp_path: Path, models: ChatServer
) -> None:
    lines = [f"{i};Message number {i};{'class a' if i % 2 else 'b'}" for i in range(40)]
    lines += ["40;Message number 1;b", "41;Message number 3;class a", "42;x;", "43;y; "]
    (tmp_path / "t.csv").write_text("id;Customer message;class\n" + "\n".join(lines), "utf-8")
    made = run("init", "t.csv", "--server", models.url)
    assert made.exit_code == 0, made.stderr
    assert "note: Rows without a right answer, which are left out: 2 of 44." in made.stdout
    assert "note: Rows that ask what an earlier row asks, which are left out: 2." in made.stdout
    assert "Of these, rows with another right answer than the earlier one: 1." in made.stdout
    assert "note: Rows that can be used: 40. This is few" in made.stdout
    study = tomllib.loads((tmp_path / "study.toml").read_text("utf-8"))
    assert study["task"]["signature"] == "customer_message -> class_text"
    assert study["task"]["metric"] == "choice"
    assert study["task"]["instructions"].endswith(": b or class a? Answer with one of these.")
    assert study["task"]["normalise"] == "answer"  # no two of them end alike
    assert study["data"]["columns"] == {
        "customer_message": "Customer message",
        "class_text": "class",
    }
    assert run("check", "study.toml").exit_code == 0


def test_one_label_is_said(run: Run, tmp_path: Path, models: ChatServer) -> None:
    text = "text,label\n" + "\n".join(f"Number {i},yes" for i in range(120))
    (tmp_path / "t.csv").write_text(text, "utf-8")
    made = run("init", "t.csv", "--server", models.url)
    assert "All 120 right answers are 'yes': nothing can be compared on such rows." in made.stdout


def test_keys_inside_of_objects_become_columns_of_a_copy(
    run: Run, tmp_path: Path, models: ChatServer
) -> None:
    tickets = [
        {"id": n, "ticket": {"subject": q, "lang": "en"}, "labels": {"category": a}}
        for n, (q, a) in enumerate(rows())
    ]
    (tmp_path / "tickets.jsonl").write_text("\n".join(map(json.dumps, tickets)), "utf-8")
    made = run("init", "tickets.jsonl", "--server", models.url)
    assert "tickets.jsonl: 30 rows; ticket.subject, ticket.lang -> labels.category" in made.stdout
    options = ("--input", "ticket.subject", "--output", "labels.category", "--force")
    made = run("init", "tickets.jsonl", "--server", models.url, *options)
    assert made.exit_code == 0, made.stderr
    study = tomllib.loads((tmp_path / "study.toml").read_text("utf-8"))
    assert study["data"]["path"] == "rows.jsonl"
    assert study["data"]["columns"]["labels_category"] == "labels.category"
    assert run("check", "study.toml").exit_code == 0


def test_an_object_that_is_the_answer_stays_whole(
    run: Run, tmp_path: Path, models: ChatServer
) -> None:
    given = [{"question": q, "answer": {"number": a}} for q, a in rows()]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, given)), "utf-8")
    made = run("init", "rows.jsonl", "--server", models.url)
    assert "question -> answer" in made.stdout
    study = tomllib.loads((tmp_path / "study.toml").read_text("utf-8"))
    assert study["task"]["metric"] == "json_match"


def test_a_list_of_right_answers_accepts_any_of_them(
    run: Run, tmp_path: Path, models: ChatServer
) -> None:
    answers = [[f"city {a}", f"CITY {a}"] for _, a in rows()]
    table = pyarrow.table({"question": [q for q, _ in rows()], "answers": answers})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    made = run("init", "rows.parquet", "--server", models.url)
    assert made.exit_code == 0, made.stderr
    text = (tmp_path / "study.toml").read_text("utf-8")
    assert tomllib.loads(text)["task"]["metric"] == "exact_match"
    assert "# Of a cell that is a list any item is right; json_match asks for all of it." in text
    assert run("check", "study.toml").exit_code == 0


def test_the_instructions_name_a_column_without_its_marks(
    run: Run, tmp_path: Path, models: ChatServer
) -> None:
    text = "Review Text (EN),Label?\n" + "\n".join(
        f"r {i},{['no', 'yes'][i % 2]}" for i in range(30)
    )
    (tmp_path / "t.csv").write_text(text, "utf-8")
    assert run("init", "t.csv", "--server", models.url).exit_code == 0
    task = tomllib.loads((tmp_path / "study.toml").read_text("utf-8"))["task"]
    assert task["instructions"] == (
        "What is the Label of the Review Text (EN): no or yes? Answer with one of these."
    )


def test_unclear_columns_are_asked_for_by_option(
    run: Run, tmp_path: Path, models: ChatServer
) -> None:
    text = "first,second,third\n" + "\n".join(f"a {i},b {i},{i}" for i in range(20))
    (tmp_path / "t.csv").write_text(text, "utf-8")
    unclear = run("init", "t.csv", "--server", models.url)
    assert unclear.exit_code == 2
    assert "give --output with one of first, second, third." in unclear.stderr
    unclear = run("init", "t.csv", "--server", models.url, "--output", "third")
    assert "give --input with one of first, second, third." in unclear.stderr
    wrong = run("init", "t.csv", "--output", "forth", "--server", models.url)
    assert (
        "`--output` 'forth' is not a column of t.csv; it has first, second, third." in wrong.stderr
    )
    assert not (tmp_path / "study.toml").exists()
    options = ("--output", "third", "--input", "first", "--input", "second")
    made = run("init", "t.csv", "--server", models.url, *options)
    assert "first, second -> third" in made.stdout
    study = tomllib.loads((tmp_path / "study.toml").read_text("utf-8"))
    assert study["task"]["metric"] == "numeric_match"


def test_nothing_is_replaced_unless_forced(run: Run, tmp_path: Path, models: ChatServer) -> None:
    (tmp_path / "t.csv").write_bytes(FORMS["comma.csv"].encode())
    (tmp_path / "pool.toml").write_text("mine", "utf-8")
    refused = run("init", "t.csv", "--server", models.url)
    assert refused.exit_code == 2
    assert (
        "pool.toml exists: choose another folder with --out, or replace it with --force."
        in refused.stderr
    )
    assert (tmp_path / "pool.toml").read_text("utf-8") == "mine"
    assert run("init", "t.csv", "--server", models.url, "--force").exit_code == 0


def test_only_this_machine_is_asked_for_models(run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(FORMS["comma.csv"].encode())
    refused = run("init", "t.csv", "--server", "http://models.example.org/v1")
    assert "is not on this machine; write the agents of other servers into" in refused.stderr
    named = run("init", "t.csv", "--server", "http://me:s3cret@127.0.0.1:9/v1")
    assert "--server must not hold a user or password" in named.stderr
    assert "s3cret" not in named.stderr
    silent = run("init", "t.csv", "--server", "127.0.0.1:9")
    assert "--server 127.0.0.1:9: no model is listed at http://127.0.0.1:9/v1" in silent.stderr


def test_models_are_found_by_keys_and_keys_are_not_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-mine")
    (tmp_path / "t.csv").write_bytes(FORMS["comma.csv"].encode())
    assert run("init", "t.csv").exit_code == 0
    text = (tmp_path / "pool.toml").read_text("utf-8") + (tmp_path / "study.toml").read_text()
    assert 'api_key_env = "OPENAI_API_KEY"' in text
    assert "sk-of-mine" not in text
    prices = run("models", "prices", "pool.toml").stdout
    assert "openai/gpt-4.1-mini" in prices
    assert "LiteLLM's list" in prices
    found = json.loads(run("check", "study.toml", "--json").stdout)
    usd = [found["stages"]["all"][level]["usd"] for level in ("low", "likely", "high")]
    assert 0 < usd[0] < usd[1] < usd[2]
    assert found["smallest_budget"]["usd"] > 0


def test_models_to_begin_with_have_a_list_price() -> None:
    unpriced = [m for models in KEYS.values() for m in models if listed_price(m) is None]
    assert unpriced == ["openrouter/openai/gpt-4.1-mini"]


def test_without_any_model_it_is_said_or_the_smallest_is_fetched_later() -> None:
    try:
        (found,) = found_models([])
    except PoolError as error:
        assert "No model was found" in str(error)  # noqa: PT017 - without llama.cpp
    else:
        assert found.model == "local/smollm2-135m-instruct"


def test_a_tiny_table_is_refused(run: Run, tmp_path: Path, models: ChatServer) -> None:
    (tmp_path / "t.csv").write_text("question,answer\na,1\nb,2\n", "utf-8")
    refused = run("init", "t.csv", "--server", models.url)
    assert "t.csv has 2 rows, but a study needs at least 8, and about 100" in refused.stderr
    unknown = run("init", "t.xlsx")
    assert "t.xlsx is neither a file of a known format (.csv, .json, .jsonl" in unknown.stderr


def drafted(run: Run, models: ChatServer, table: Path, *options: str) -> dict[str, Any]:
    done = run("init", table.name, "--server", models.url, "--force", *options)
    assert done.exit_code == 0, done.stderr
    return {**tomllib.loads((table.parent / "study.toml").read_text("utf-8")), "said": done.stdout}


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


@pytest.mark.parametrize(
    ("cell", "metric", "instruction"),
    [
        (lambda n: [["art"], ["art", "news"], ["news"], ["news", "art", "tv"], ["tv"]][n % 5],
         "labels", "Reply with all that apply of: art, news, tv."),
        (lambda n: ["art", "art; news", "news", "news; tv", "tv"][n % 5],
         "labels", "Reply with all that apply of: art, news, tv."),
        (lambda n: ["food, drink", "cars, bikes"][n % 2], "choice", "food, drink?"),
        (lambda n: f"{n % 7 + 1},500 kg", "numeric_match", "Reply with the number in kg only."),
        (lambda n: f"\u20ac {n}.00", "numeric_match", "Reply with the number in \u20ac only."),
        (lambda n: {"text": [f"city {n}", "x"], "answer_start": [1, 2]}, "exact_match", "answer"),
        (lambda n: {"text": f"city {n}", "mood": "good"}, "json_match", "JSON"),
    ],
)  # fmt: skip
def test_the_metric_fits_labels_amounts_and_accepted_answers(
    run: Run, tmp_path: Path, models: ChatServer, cell: Any, metric: str, instruction: str
) -> None:
    rows = [{"question": f"n {n}", "answer": cell(n)} for n in range(30)]
    task = drafted(run, models, jsonl(tmp_path / "t.jsonl", rows))["task"]
    assert task["metric"] == metric
    assert instruction in task["instructions"]


def test_options_are_inputs_and_columns_that_are_not_used_are_said(
    run: Run, tmp_path: Path, models: ChatServer
) -> None:
    rows = [
        {"question": f"n {n}", "A": "x", "B": "y", "source": "web", "answer": "AB"[n % 2]}
        for n in range(30)
    ]
    study = drafted(run, models, jsonl(tmp_path / "t.jsonl", rows), "--output", "answer")
    assert study["data"]["inputs"] == ["question", "A", "B", "source"]
    named = [{**row, "kind": 1} for row in rows]
    study = drafted(run, models, jsonl(tmp_path / "t.jsonl", named))
    assert "note: Columns that are not used: kind; --input adds one." in study["said"]
    assert "the question and the source: A or B?" in study["task"]["instructions"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "question|answer\n" + "".join(f"n {n}|a{n % 2}\n" for n in range(20))),
        ("t.ndjson", "\n".join(f'{{"question": "n{n}", "answer": "{n % 2}"}}' for n in range(20))),
        ("t.json", json.dumps({"version": 1, "data": [
            {"question": f"n {n}", "answer": f"a{n % 2}"} for n in range(20)
        ]})),
    ],
)  # fmt: skip
def test_bars_ndjson_and_a_list_under_any_key_are_read(
    run: Run, tmp_path: Path, models: ChatServer, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    assert drafted(run, models, tmp_path / name)["data"]["inputs"] == ["question"]


def test_splits_named_as_on_the_hub_are_used(run: Run, tmp_path: Path, models: ChatServer) -> None:
    places = ("train", "validation", "test")
    rows = [
        {"question": f"n {n}", "answer": f"a{n % 2}", "split": places[n % 3]} for n in range(30)
    ]
    study = drafted(run, models, jsonl(tmp_path / "t.jsonl", rows))
    assert study["data"]["split_column"] == "split"


def test_a_table_of_several_agents_answers_is_told_its_reader(run: Run, tmp_path: Path) -> None:
    rows = [f"q{i},{agent},{i},1" for i in range(20) for agent in ("a", "b")]
    (tmp_path / "t.csv").write_text("\n".join(["question,agent,answer,score", *rows]), "utf-8")
    found = run("init", "t.csv")
    assert found.exit_code == 2
    assert 'write a study with `reader = "recorded"`' in found.stderr
    assert not (tmp_path / "study.toml").exists()
