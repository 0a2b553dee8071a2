from __future__ import annotations

import numpy as np
import pytest

from moa_dspy.optimize.votes import Ballots
from moa_dspy.optimize.votes.ballots import fit_answers
from moa_dspy.optimize.votes.smoothing import REDRAWN, AnswerSampler
from tests.optimize.votes.worlds import world


def test_chances_are_chances_and_only_of_answers_that_others_gave() -> None:
    ballots = world(6, 80)
    model = fit_answers(ballots.codes, ballots.scores)
    assert model.shared.sum(2) + model.lone == pytest.approx(np.ones((6, 80)))
    for agent in range(6):
        for row in range(80):
            others = {int(c) for i, c in enumerate(ballots.codes[:, row]) if i != agent}
            possible = set(np.flatnonzero(model.shared[agent, row]).tolist())
            assert possible == others - {-1}


@pytest.mark.parametrize("graded", [False, True])
def test_expected_scores_and_shares_of_lone_answers_are_those_observed(graded: bool) -> None:
    ballots = world(6, 80)
    if graded:
        grades = np.random.default_rng(1).random((5, 80))
        scores = np.take_along_axis(grades, ballots.codes.astype(np.intp), 0)
        ballots = Ballots(ballots.agents, ballots.codes, scores)
    model = fit_answers(ballots.codes, ballots.scores)
    same = ballots.codes[:, None] == ballots.codes
    shared = (same.sum(1) > 1) & (ballots.codes >= 0)
    expected = (model.shared * model.quality).sum((1, 2))
    assert expected == pytest.approx((ballots.scores * shared).sum(1), abs=0.02)
    assert model.lone.sum(1) == pytest.approx((~shared).sum(1), abs=0.02)
    assert model.silence == pytest.approx((ballots.codes < 0).sum(1) / (~shared).sum(1))


def test_the_chance_of_an_answer_by_hand() -> None:
    # Constant scores tilt nothing, and of two answers with two and one other voters the chances
    # go as (2 - d) : (1 - d), whatever the discount d
    codes = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, -1]], np.int16)
    model = fit_answers(codes, np.zeros(codes.shape))
    ratios = model.shared[0, :2, 0] / model.shared[0, :2, 1]
    assert any(ratios == pytest.approx((2 - d) / (1 - d)) for d in (0.0, 0.25, 0.5, 0.75))
    assert model.shared[0, 2, 1] == 0


def test_answers_in_few_camps_are_fitted_with_a_greater_discount_than_scattered_ones() -> None:
    def ratio(codes: list[list[int]]) -> float:
        model = fit_answers(np.array(codes, np.int16), np.zeros((len(codes), len(codes[0]))))
        return float(model.shared[0, 0, 0] / model.shared[0, 0, 1])

    big_camp_and_a_stray = [[0] * 40] * 4 + [[0, 1] * 20, [1, 0] * 20]
    two_camps = [[0] * 40, [0] * 40, [0] * 40, [1] * 40, [1] * 40, [1] * 40]
    assert ratio(two_camps) == pytest.approx(2 / 3)
    assert ratio(big_camp_and_a_stray) > 4


def test_who_was_never_alone_is_never_drawn_alone_and_the_always_alone_always() -> None:
    codes = np.array([[0, 0], [0, 0], [1, -1]], np.int16)
    model = fit_answers(codes, np.zeros(codes.shape))
    assert model.lone.tolist() == [[0, 0], [0, 0], [1, 1]]
    assert model.silence.tolist() == [0, 0, 0.5]


def test_half_of_the_answers_are_redrawn_by_the_model() -> None:
    ballots = world(5, 4, missing=0.3)
    model = fit_answers(ballots.codes, ballots.scores)
    n_each, n_answers = 40_000, model.quality.shape[1]
    drawn = [*AnswerSampler.of(model, ballots.codes, ballots.scores).redraw(n_each=n_each, seed=1)]
    codes = np.concatenate([c for _, c, _ in drawn], axis=1).reshape(5, 4, n_each)
    assert np.concatenate([rows for rows, _, _ in drawn]).tolist() == [*np.arange(4).repeat(n_each)]
    chance = REDRAWN * model.shared
    kept = ballots.codes[:, :, None] == np.arange(n_answers)
    chance = chance + (1 - REDRAWN) * kept
    seen = (codes[:, :, :, None] == np.arange(n_answers)).mean(2)
    assert np.abs(seen - chance).max() < 0.01  # 4 sd of a share of 40,000
    silent = (1 - REDRAWN) * (ballots.codes < 0) + REDRAWN * model.lone * model.silence[:, None]
    assert np.abs((codes == -1).mean(2) - silent).max() < 0.01


def test_a_graded_score_is_the_chance_to_be_right_and_equal_answers_are_alike() -> None:
    codes = np.zeros((3, 2), np.int16)
    scores = np.array([[0.25, 0.5]] * 3)
    urns = AnswerSampler.of(fit_answers(codes, scores), codes, scores)
    right = np.concatenate([r for _, _, r in urns.redraw(n_each=40_000, seed=0)], axis=1)
    assert (right == right[0]).all()
    assert right[0].reshape(2, -1).mean(1) == pytest.approx([0.25, 0.5], abs=0.01)
