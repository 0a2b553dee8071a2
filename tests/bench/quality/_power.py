"""The chance that a verdict is for the pick, and the most that any test of its scores could do.

The rule picks on dev, and its test rows are drawn again and again from the judged questions: so
this needs no search, and far fewer splits than counting verdicts does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean
from typing import Any, Final

import numpy as np

from moa_dspy.optimize.conclusion import cross_fitted
from moa_dspy.optimize.selection import choose
from moa_dspy.winrate.verdict import COUNTED
from tests.bench.quality._folder import Scores
from tests.bench.quality._rows import kind_of
from tests.bench.quality._rule import evidence_of, weights_of_pick
from tests.bench.quality._search import N_TEST
from tests.bench.quality._split import Draw, Drawn, Facts, Task, error
from tests.bench.quality._votes import vote_scores

PSEUDO: Final = 60_000
"""Redrawn questions of the pick; a fold of the cross-fitted picks has ``PSEUDO_HELD``."""
PSEUDO_HELD: Final = 10_000
N_TESTS: Final = 2_000
"""Draws of test rows."""
LEVEL: Final = 0.05
STATED: Final = 0.06
"""The most that "mixture" may be said where no mixture pays."""
TESTS: Final[Mapping[str, tuple[float, float]]] = {
    "test_alone": (0.0, LEVEL),
    "used": (COUNTED, LEVEL),
    "val_in_full": (1.0, LEVEL),
}
"""What a cross-fitted row of val counts beside one of test, and the level; the last is not valid:
"mixture" is then said too often where many systems tie."""
BOUND: Final = "bound"
"""The pick known beforehand, and tested on as many new rows as val and test have, at ``STATED``."""


def run_power(task: Task) -> Drawn:
    """Pick by the rule on the dev questions; return the chance of each test to prove the pick."""
    draw = Draw.of(task)
    dev = draw.dev
    evidence = evidence_of(dev.best_first, pseudo=PSEUDO)
    choice = choose(evidence, may_be_unmeasured=True)
    single = draw.best_first.scores[dev.best_first.names.index(choice.ranking[0])]
    gaps = vote_scores(draw.best_first, weights_of_pick(choice.picked, dev)) - single
    held = cross_fitted(evidence, seed=0, pseudo=PSEUDO_HELD, repeats=1)
    assert held is not None  # there are more than ten rows
    is_single = not choice.picked.layers
    chances = chances_of(gaps, held.pick - held.single, seed=task.split)
    return Drawn(
        task,
        scores={"best_single": float(single.mean()), "ours": float((single + gaps).mean())},
        facts={
            "gain": float(gaps.mean()),
            "discordance": float((gaps**2).mean()),
            **{name: 0.0 if is_single else chance for name, chance in chances.items()},
        },
        halving={},
        errors={"best_single": error(gaps)},
        verdict="",
        pool=draw.pool.names,
    )


def chances_of(gaps: Scores, held: Scores, *, seed: int, n_test: int = N_TEST) -> Facts:
    """Return how often each test says "mixture", over draws of test rows without replacement.

    Args:
        gaps: Pick minus best single model, on the judged questions.
        held: The same on the rows of val, cross-fitted.
        seed: Of the draws.
        n_test: Rows of test.
    """
    rng = np.random.default_rng(seed)
    n_new = min(n_test + len(held), len(gaps))
    said = dict.fromkeys([*TESTS, BOUND], 0)
    for _ in range(N_TESTS):
        new = gaps[rng.choice(len(gaps), n_new, replace=False)]
        test = new[:n_test]
        for name, (count, level) in TESTS.items():
            said[name] += _is_proven(
                float(test.sum() + count * held.sum()),
                float(test @ test + count * (held @ held)),
                level,
            )
        said[BOUND] += _is_proven(float(new.sum()), float(new @ new), STATED)
    return {name: n / N_TESTS for name, n in said.items()}


def _is_proven(total: float, squares: float, level: float) -> bool:
    """Tell whether the score test of a sum says that its mean is above 0."""
    return squares > 0 and total > NormalDist().inv_cdf(1 - level) * squares**0.5


def power_row(drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Return the row of one pool and size: chances, and the share of the gain handed over."""
    task, facts = drawn[0].task, [draw.facts for draw in drawn]
    gain = fmean(f["gain"] for f in facts)
    names = [*TESTS, BOUND]
    return {
        "pool": kind_of(task),
        "dev": task.dev,
        "splits": len(drawn),
        "test": N_TEST,
        **{name: fmean(draw.scores[name] for draw in drawn) for name in ("best_single", "ours")},
        "gain": gain,
        "discordance": fmean(f["discordance"] for f in facts),
        "mixture": {name: fmean(f[name] for f in facts) for name in names},
        "way_to_ours": {name: fmean(f[name] * f["gain"] for f in facts) / gain for name in names},
    }
