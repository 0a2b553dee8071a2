"""GSM8K: its reader and its metric, which compares the last numbers of two solutions."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from moa_dspy.data.benchmarks.base import Benchmark, BenchmarkOrigin, PublishedRow
from moa_dspy.data.tables import Record, find_file, records_of
from moa_dspy.data.values import accepted_answers, plain_text
from moa_dspy.errors import DataError, MetricError

_NUMBER = re.compile(
    r"(?:(?<![\w)\].%])(?P<minus>[-\u2212]))?"  # a sign, not the minus of "5-3"
    r"(?:[$\u00a3\u00a5\u20ac]\s?(?P<late_minus>[-\u2212])?)?"  # "$-5" as well as "-$5"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?:\.(?P<part>[0-9]+))?"
)


def last_number(text: str) -> str | None:
    """The last number of the text in its only spelling, or None if it holds none.

    Thousands commas (also LaTeX's ``{,}``), currency signs, a trailing point and idle zeros
    are left out: "$1,200.50." and "1200.5" are both "1200.5".
    """
    plain = unicodedata.normalize("NFKC", text).replace("{,}", ",").replace("\\", "")
    found = [m for m in _NUMBER.finditer(plain) if m["whole"] or m["part"]]
    if not found:
        return None
    number = found[-1]
    # As text: a float would round, and int() refuses more than 4300 digits.
    whole = (number["whole"] or "0").replace(",", "").lstrip("0") or "0"
    part = (number["part"] or "").rstrip("0")
    value = f"{whole}.{part}" if part else whole
    is_negative = bool(number["minus"] or number["late_minus"]) and value != "0"
    return f"-{value}" if is_negative else value


def gsm8k_match(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: Any = None,
    pred_name: str | None = None,
    pred_trace: Any = None,
) -> float:
    """1.0 if the last number of `prediction.answer` is that of `example.answer`, else 0.0.

    So a whole solution may be given; one without a number is wrong.

    Args:
        example: Has a field `answer` that holds a number, or a list of those accepted.
        prediction: Has a field `answer`; None and other types count as their text.
        trace: Not read; here for DSPy's optimizers, like the two below.
        pred_name: Not read.
        pred_trace: Not read.

    Raises:
        MetricError: The right answer holds no number.
    """
    rights = [last_number(plain_text(right)) for right in accepted_answers(example.answer)]
    if None in rights:
        raise MetricError(f"The right answer must hold a number, but is {example.answer!r}.")
    return float(last_number(plain_text(prediction.answer)) in rights)


_ANNOTATION = re.compile(r"<<[^<>]*>>")
_ORIGIN = BenchmarkOrigin(
    "openai/gsm8k", ("test", "train"), "https://arxiv.org/abs/2110.14168", config="main"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GSM8K(Benchmark):
    """Grade-school word problems: `question`, `answer` (a number), `rationale` (how to get it).

    A folder has test.jsonl and train.jsonl (or a file that starts with the split's name);
    ids are "test-1", "train-1", ... in file order.
    """

    name: str = "gsm8k"
    title: str = "GSM8K, grade-school mathematics word problems"
    origin: BenchmarkOrigin = _ORIGIN
    licence: str = "MIT"
    scoring: str = (
        "Share of problems whose final number is right. `gsm8k_match` compares the last number of "
        "the response with the number after ####, whatever commas and currency signs it has."
    )
    citation: str = (
        "Cobbe et al., Training Verifiers to Solve Math Word Problems, 2021, arXiv:2110.14168"
    )
    inputs: tuple[str, ...] = ("question",)
    metric: str | None = "gsm8k_match"

    def _local(self, source: Path, split: str | None) -> Iterable[Record]:
        return records_of(find_file(source, split or self.origin.splits[0]))

    def _fields(self, row: PublishedRow, number: int, split: str | None) -> dict[str, Any]:
        solution, mark, final = row.text("answer").rpartition("####")
        answer = last_number(final)
        if not mark or answer is None:
            raise DataError(f"{row.place}: 'answer' must end in '#### ' and a number.")
        return {
            "id": f"{split or self.origin.splits[0]}-{number + 1}",
            "question": row.text("question"),
            "answer": answer,
            "rationale": _ANNOTATION.sub("", solution).strip(),
        }
