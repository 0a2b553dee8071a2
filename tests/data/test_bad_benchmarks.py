from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from moa_dspy.data import BENCHMARKS
from moa_dspy.errors import DataError


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("gsm8k", "test.jsonl", '{"question": "x"}', "line 1: no 'answer'; the row has question."),
        ("gsm8k", "test.jsonl", '{"question": "x", "answer": "12"}', "line 1: 'answer' must end"),
        ("gsm8k", "test.jsonl", '{"question": 5, "answer": "#### 1"}', "must be text, but is a in"),
        ("gsm8k", "test.jsonl", "{", "line 1 is not JSON"),
        ("gsm8k", "test.jsonl", "", "has no rows."),
        ("bbh", "snarks.json", "[1]", "snarks.json must hold a list of objects, or one under"),
        ("bbh", "snarks.json", "{", "snarks.json is not JSON"),
        ("bbh", "snarks.json", '[{"input": "x"}]', "snarks, row 1: no 'target'; the row has id, i"),
        ("flask", "flask_evaluation.jsonl", '{"skill": "x"}', "must be a list of texts, but is 'x"),
        ("flask", "flask_evaluation.jsonl", '{"skill": []}', "must name at least one skill"),
        ("mt_bench", "question.jsonl", '{"turns": ["x"]}', "no 'category'; the row has turns"),
        (
            "mt_bench",
            "question.jsonl",
            '{"turns": ["x"], "category": "math"}',
            "'turns' must be two turns, but there are 1",
        ),
        (
            "mmlu_pro",
            "questions.jsonl",
            '{"question": "x", "gold": "A", "options": []}',
            "'options' must be 1 to 10 texts, but are 0",
        ),
        ("alpaca_eval", "instructions.csv", "dataset\nx\n", "line 2: no 'instruction'; the row"),
    ],
)
def test_a_bad_file_is_told_in_one_line(
    tmp_path: Path, name: str, file: str, content: str, message: str
) -> None:
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        BENCHMARKS[name].read(tmp_path)
    assert "\n" not in str(caught.value)
    assert file.partition(".")[0] in str(caught.value) or str(tmp_path) in str(caught.value)


def test_a_broken_reference_answer_is_named(tiny: Callable[[str], Path]) -> None:
    folder = tiny("mt_bench")
    text = '{"question_id": 111, "choices": []}'
    (folder / "reference_answer_gpt-4.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"gpt-4.jsonl, line 1: no 'choices' with one answer"):
        BENCHMARKS["mt_bench"].read(folder)
