from __future__ import annotations

import json
from pathlib import Path

import pytest

from moa_dspy.data import BENCHMARKS
from moa_dspy.errors import DataError, StudyError
from moa_dspy.optimize.study import PreparedStudy
from moa_dspy.optimize.study_file import StudyFile, read_study

HEAD = """
name = "t"
[[agents]]
name = "a"
model = "vendor/a"
[task]
signature = "question -> answer"
metric = "gsm8k_match"
[data]
"""


def study(folder: Path, data: str) -> StudyFile:
    path = folder / "study.toml"
    path.write_text(HEAD + data, encoding="utf-8")
    return read_study(path)


def problems(folder: Path, n: int) -> None:
    folder.mkdir()
    for split in ("train", "test"):
        rows = [{"question": f"{split} {i}?", "answer": f"So.\n#### {i}"} for i in range(n)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def test_a_benchmark_is_named_and_read_from_a_path_beside_the_file(tmp_path: Path) -> None:
    problems(tmp_path / "gsm8k", 6)
    data = 'benchmark = "gsm8k"\npath = "gsm8k"\nsizes = { val = 2, test = 3 }\n'
    splits = study(tmp_path, data).make_splits()
    assert (len(splits.train), len(splits.val), len(splits.test)) == (0, 2, 3)
    assert all(row.id.startswith("test-") for row in splits.val)
    trained = study(tmp_path, data + 'split = "train"\n').make_splits()
    assert all(row.id.startswith("train-") for row in trained.val)


def with_objects(folder: Path, **changed: object) -> Path:
    (folder / "a.png").write_bytes(b"\x89PNG\r\n")
    images = ["a.png", "https://x.org/b.png", "data:image/png;base64," + "iVBORw0K" * 999]
    talk = {"messages": [{"question": "Hi", "answer": "Ho"}]}
    rows: list[dict[str, object]] = [
        {"question": f"{n}?", "image": i, "history": talk} for n, i in enumerate(images)
    ]
    rows[-1] |= changed
    text = "".join(json.dumps(row | {"answer": "#### 1"}) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    inputs = "question, image: dspy.Image, history: dspy.History"
    data = 'path = "rows.jsonl"\ninputs = ["question", "image", "history"]\n'
    path = folder / "study.toml"
    content = HEAD.replace("question", inputs) + data + "sizes = { val = 1, test = 2 }\n"
    path.write_text(content, encoding="utf-8")
    return path


def test_images_and_conversations_of_a_file_are_made_what_the_signature_says(
    tmp_path: Path,
) -> None:
    splits = PreparedStudy.read(with_objects(tmp_path)).splits
    rows = {row.question: row for row in (*splits.val, *splits.test)}
    assert rows["0?"].image.url == "data:image/png;base64,iVBORw0K"  # the file beside the rows
    assert rows["1?"].image.url == "https://x.org/b.png"
    assert len(rows["2?"].image.url) > 7_000
    assert all(row.history.messages[0]["answer"] == "Ho" for row in rows.values())
    assert set(rows["1?"].inputs().keys()) == {"question", "image", "history"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": "no-such-file.png"}, "no Image can be made of `image`: "),
        ({"history": {"turns": []}}, "no History can be made of `history`: "),
        ({"history": "Hi"}, "no History can be made of `history`: "),
    ],
)
def test_what_is_no_image_or_conversation_is_named_before_any_call(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=rf"Row '(val|test)?-?\d+': {message}"):
        PreparedStudy.read(with_objects(tmp_path, **changed))


def test_every_benchmarks_metric_can_be_named(tmp_path: Path) -> None:
    made = study(tmp_path, 'benchmark = "gsm8k"\nsizes = { val = 2, test = 3 }\n')
    assert made.make_metric().__name__ == "gsm8k_match"
    assert made.data.path is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('benchmark = "glue"', "`data.benchmark`: unknown 'glue'; known ones are alpaca_eval, bbh"),
        (
            'benchmark = "gsm8k"\ninputs = ["q"]',
            "either `benchmark`, or `inputs` and `columns`, an",
        ),
        ('benchmark = "gsm8k"\ncolumns = { q = "p" }', "either `benchmark`, or `inputs` and `col"),
        (
            'inputs = ["q"]',
            r"study.toml.data.path: this key is missing; without it, give `data.benchmark`\.",
        ),
        (
            'path = "x.csv"',
            r"study.toml.data.inputs: this key is missing; without it, give `data.benchmark`\.",
        ),
        (
            'path = "x.csv"\ninputs = ["q"]\nsplit = "test"',
            "`data.split` can only be set with `data.benchm",
        ),
        ('path = "x.csv"\ninputs = []', "data.inputs"),
    ],
)
def test_rows_are_named_in_one_way_exactly(tmp_path: Path, data: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study(tmp_path, data)


def test_a_split_that_the_benchmark_lacks_is_named(tmp_path: Path) -> None:
    problems(tmp_path / "gsm8k", 2)
    data = 'benchmark = "gsm8k"\npath = "gsm8k"\nsplit = "dev"\nsizes = { val = 1, test = 1 }\n'
    with pytest.raises(DataError, match="gsm8k has no split 'dev'; known ones are test, train"):
        study(tmp_path, data).make_splits()
    assert set(BENCHMARKS["gsm8k"].origin.splits) == {"test", "train"}


ROWS = 'benchmark = "gsm8k"\nsizes = { val = 2, test = 3 }\n'
THREE = """
[[agents]]
name = "b"
model = "vendor/b"
[[agents]]
name = "c"
model = "openai/c"
api_base = "http://box.example/v1"
"""


def test_constraints_of_a_space_are_those_of_the_file(tmp_path: Path) -> None:
    options = """
    [space]
    must_include = ["a"]
    never_together = [["a", "b"]]
    providers = ["vendor", "box.example"]
    max_per_provider = 1
    orders = ["name", "best_first"]
    """
    made = study(tmp_path, ROWS + THREE + options)
    space = made.make_space(made.agents, prompts=("own", "brief"))
    assert space.provider_of == {"a": "vendor", "b": "vendor", "c": "box.example"}
    assert set(space.layers(is_first=True)) == {("a", "c")}
    assert (space.never_together, space.max_per_provider) == ((("a", "b"),), 1)
    assert (space.orders, space.prompts) == (("name", "best_first"), ("own", "brief"))
    assert made.make_space(made.agents).prompts == ()


def test_a_provider_that_no_agent_has_is_named(tmp_path: Path) -> None:
    made = study(tmp_path, ROWS + THREE + '[space]\nproviders = ["openai"]\n')
    with pytest.raises(StudyError, match="no agent has 'openai'; the agents have box"):
        made.make_space(made.agents)


def test_a_pair_of_three_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"space\.never_together"):
        study(tmp_path, ROWS + '[space]\nnever_together = [["a", "b", "c"]]\n')
