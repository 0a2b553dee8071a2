from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from moa_dspy.data import BENCHMARKS
from moa_dspy.data.benchmarks import MMLUPro


@pytest.mark.parametrize(
    ("name", "split", "n_rows"),
    [
        ("alpaca_eval", None, 805),
        ("bbh", None, 6 * 250),
        ("bbh", "date_understanding", 250),
        ("flask", None, 1740),
        ("gsm8k", "test", 1319),
        ("gsm8k", "train", 2000),
        ("mmlu_pro", None, 1500),
        ("mt_bench", None, 80),
    ],
)
def test_the_published_files_have_their_rows(
    real: Callable[[str], Path], name: str, split: str | None, n_rows: int
) -> None:
    rows = BENCHMARKS[name].read(real(name), split=split)
    assert len(rows) == n_rows
    assert len({row.id for row in rows}) == n_rows


def test_the_published_files_hold_what_their_cards_say(real: Callable[[str], Path]) -> None:
    alpaca = BENCHMARKS["alpaca_eval"].read(real("alpaca_eval"))
    assert all(row.reference for row in alpaca)
    bench = BENCHMARKS["mt_bench"].read(real("mt_bench"))
    assert sum(row.reference is not None for row in bench) == 30
    pro = MMLUPro(keep_flagged=True, keep_textless=True)
    assert len(pro.read(real("mmlu_pro"))) == 12_002
    # 48 revised and 318 repeated, none of them twice in the sum.
    assert len(replace(pro, keep_flagged=False).read(real("mmlu_pro"))) == 12_002 - 48 - 318
