"""Votes and rules agree with plain Python, and with what was published of them."""

from __future__ import annotations

import os
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from tests.bench.made_up_answers import some_answers
from tests.bench.quality._baselines import (
    BASELINES,
    Dev,
    acc_plus_diversity,
    caruana,
    exhaustive,
    top,
    topk_by_dev,
)
from tests.bench.quality._ceiling import ceiling
from tests.bench.quality._folder import Answers, read_folder
from tests.bench.quality._halving import halving
from tests.bench.quality._paired import Lead, lead
from tests.bench.quality._power import chances_of
from tests.bench.quality._samplers import chance, nsga2, tpe
from tests.bench.quality._votes import every_vote, ranked, vote_scores

SHARED = Path(os.environ.get("MOA_DSPY_SHARED", Path(__file__).parents[3] / "shared"))


def plain_vote(answers: Answers, weights: tuple[float, ...], question: int) -> float:
    """The vote of one question, the plain way."""
    ballots = [
        (int(answers.codes[i, question]), weight, float(answers.scores[i, question]))
        for i, weight in enumerate(weights)
        if weight and answers.codes[i, question] >= 0
    ]
    counts: dict[int, float] = defaultdict(float)
    for code, weight, _ in ballots:
        counts[code] += weight
    most = max(counts.values(), default=0)
    return next((score for code, _, score in ballots if counts[code] == most), 0.0)


def mean_of(answers: Answers, weights: tuple[float, ...]) -> float:
    return float(vote_scores(answers, weights).mean())


@pytest.mark.parametrize("is_graded", [False, True])
@pytest.mark.parametrize("weights", [(1, 0, 1, 1), (2, 1, 0, 1), (0, 0, 1, 0), (1, 1, 1, 1)])
def test_a_vote_is_that_of_plain_python(is_graded: bool, weights: tuple[float, ...]) -> None:
    answers = some_answers(n_models=4, n=60, is_graded=is_graded)
    plain = [plain_vote(answers, weights, q) for q in range(60)]
    assert vote_scores(answers, weights).tolist() == plain


@pytest.mark.parametrize("is_graded", [False, True])
def test_every_vote_has_the_score_of_each_vote(is_graded: bool) -> None:
    answers = some_answers(n_models=9, n=40, is_graded=is_graded, seed=1)
    votes = every_vote(answers)
    # All sets of 1 to 7 of 9: 2^9 less the empty one, 9 of eight and 1 of nine.
    assert len(votes.masks) == 512 - 1 - 9 - 1
    for index in range(len(votes.masks)):
        weights = votes.weights(index)
        assert votes.means[index] == pytest.approx(mean_of(answers, weights))
        assert votes.mean(weights) == votes.means[index]
        assert votes.sizes[index] == sum(weights)


def test_models_are_ranked_by_score_and_equal_ones_by_place() -> None:
    scores = np.array([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    answers = Answers(("a", "b", "c"), np.zeros((3, 2), np.int16), scores, (True,) * 3)
    assert ranked(answers) == [1, 0, 2]


def by_hand() -> Dev:
    """Three models on four questions: right are 3, 3 and 2; "b" is a copy of "a"."""
    codes = np.array([[0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0, 0]], np.int16)
    return Dev.of(Answers(("a", "b", "c"), codes, (codes == 0).astype(float), (True,) * 3))


def test_rules_by_hand() -> None:
    dev = by_hand()
    assert dev.accuracy.tolist() == [0.75, 0.75, 0.5]
    assert top(dev, k=1) == (1, 0, 0)
    assert top(dev, k=7) == (1, 1, 1)
    # Every top-k scores 0.75: the smallest.
    assert topk_by_dev(dev) == (1, 0, 0)
    # a and b: 0.75 + 0; a and c: 0.625 + 0.25 * 3/4 = 0.8125.
    assert acc_plus_diversity(dev, k=2) == (1, 0, 1)
    # Nothing beats 0.75; of the sets that reach it, a, b, and a with b have the best members.
    assert exhaustive(dev) in [(1, 0, 0), (0, 1, 0), (1, 1, 0)]


def test_greedy_selection_takes_the_model_that_helps() -> None:
    # a is right on 0 to 3, b on 2 to 5, c on 0, 1, 4, 5: two of three are right everywhere.
    right = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1]])
    codes = np.where(right == 1, 0, np.array([[1], [2], [3]])).astype(np.int16)
    dev = Dev.of(Answers(("a", "b", "c"), codes, right.astype(float), (True,) * 3))
    assert caruana(dev, rounds=1) == (1, 0, 0)
    assert caruana(dev) == (1, 1, 1)


@pytest.mark.parametrize("is_graded", [False, True])
def test_rules_that_look_at_every_set_find_the_greatest(is_graded: bool) -> None:
    dev = Dev.of(some_answers(n_models=6, n=50, is_graded=is_graded, seed=2))
    answers = dev.best_first
    sets = [s for k in range(1, 7) for s in combinations(range(6), k)]
    scores = {s: mean_of(answers, tuple(int(i in s) for i in range(6))) for s in sets}
    assert mean_of(answers, exhaustive(dev)) == pytest.approx(max(scores.values()))

    def criterion(members: tuple[int, ...]) -> float:
        pairs = [np.mean(answers.codes[i] != answers.codes[j]) for i, j in combinations(members, 2)]
        return float(np.mean(dev.accuracy[list(members)]) + 0.25 * np.mean(pairs))

    best = max((s for s in sets if len(s) == 3), key=criterion)
    assert acc_plus_diversity(dev, k=3) == tuple(int(i in best) for i in range(6))


@pytest.mark.slow
def test_samplers_stay_within_seven_members_and_find_the_best_of_few() -> None:
    few = Dev.of(some_answers(n_models=3, n=50, is_graded=False, seed=3))
    best = few.votes.means.max()
    for choose in (tpe, nsga2, chance):
        assert few.votes.mean(choose(few, seed=0)) == best
    many = Dev.of(some_answers(n_models=9, n=50, is_graded=False, seed=4))
    chosen = chance(many, seed=0)
    assert chosen == chance(many, seed=0)
    assert 1 <= sum(chosen) <= 7


@pytest.mark.parametrize(("n_models", "n_finalists"), [(18, 9), (14, 7)])
def test_halving_spends_the_same_cells_on_half_as_many_labels_again(
    n_models: int, n_finalists: int
) -> None:
    pool = some_answers(n_models=n_models, n=200, is_graded=False)
    halved = halving(pool, np.arange(200), n=100)
    assert (halved.labels, halved.cells) == (150, 100 * n_models)
    assert len(halved.models) == n_finalists
    assert halved.dev.best_first.names == tuple(pool.names[i] for i in halved.models)


def test_the_ceiling_of_one_model_is_its_score() -> None:
    answers = some_answers(n_models=1, n=40, is_graded=True)
    assert ceiling(answers) == pytest.approx(answers.scores.mean())


def test_a_bound_by_hand() -> None:
    # Mean 2, standard error 1; the 95 % point of Student's t with 2 degrees of freedom is 2.92.
    found = lead([1.0, 1.0, 4.0])
    assert found.mean == 2.0
    assert found.low == pytest.approx(2 - 2.92, abs=0.001)
    assert lead([1.0]) == Lead(1.0, None)


PUBLISHED = {
    "best_single": 51.65,
    "top3": 55.39,
    "top5": 57.88,
    "top7": 58.78,
    "topk_by_dev": 57.82,
    "exhaustive": 56.90,
    "caruana7": 57.15,
    "acc_plus_diversity_k3": 55.36,
}
"""Fourteen models, 100 dev questions, all others judged, mean of 20 splits, in percent."""


def test_rules_have_the_scores_that_were_published_of_them() -> None:
    folder = SHARED / "mmlu_pro"
    if not folder.is_dir():
        pytest.skip("NOT CHECKED ON REAL FILES: no mmlu_pro in ../shared or $MOA_DSPY_SHARED")
    pool = read_folder(folder).pool("middle")
    found: dict[str, list[float]] = {name: [] for name in PUBLISHED}
    for split in range(20):
        order = np.random.default_rng(1000 + split).permutation(pool.n_questions)
        dev = Dev.of(pool.at(order[:100]))
        models = [pool.names.index(name) for name in dev.best_first.names]
        judged = pool.at(order[100:]).of(models)
        for name in PUBLISHED:
            found[name].append(mean_of(judged, BASELINES[name](dev)))
    means = {name: 100 * float(np.mean(scores)) for name, scores in found.items()}
    assert means == pytest.approx(PUBLISHED, abs=0.006)


def test_chances_of_a_verdict_by_hand() -> None:
    none = np.zeros(50)
    assert set(chances_of(none, none, seed=0, n_test=20).values()) == {0.0}
    # 20 wins of 20 are 4.5 standard errors.
    assert set(chances_of(none + 1, none, seed=0, n_test=20).values()) == {1.0}


def test_val_and_test_prove_nothing_more_often_than_their_level_says() -> None:
    gaps = np.tile([1.0, -1.0], 5_000)
    # Of 300 fair coins at least 165 are heads (30 / sqrt(300) = 1.73 > 1.645) with chance 0.0470,
    # of 400 at least 216 (1.6 > 1.555) with chance 0.0605; the error of 2,000 draws is 0.005.
    chances = chances_of(gaps, np.zeros(100), seed=0)
    assert chances["test_alone"] == chances["used"] == pytest.approx(0.047, abs=0.015)
    assert chances["bound"] == pytest.approx(0.0605, abs=0.016)
    # 100 rows of val with 20 more wins than losses add 0.4 * 20 = 8 to the sum of 300 test rows,
    # 8 / sqrt(340) = 0.43 errors: P(Z > (1.645 * sqrt(340) - 8) / sqrt(300)) = 0.099.
    won = np.r_[np.ones(60), -np.ones(40)]
    assert chances_of(gaps, won, seed=1)["used"] == pytest.approx(0.099, abs=0.02)
