"""The rule of the pick, on tables of scores whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.conclusion import cross_fitted
from moa_dspy.optimize.selection import CandidateScores, Evidence, choose
from moa_dspy.optimize.votes import Ballots

NAMES = tuple("abcde")


def paired(
    evidence: Evidence, incumbent: CandidateScores, measured: Sequence[CandidateScores]
) -> tuple[Sequence[float], Sequence[float]]:
    """Shrink nothing: the plain paired difference."""
    del evidence
    gaps = np.array([candidate.scores - incumbent.scores for candidate in measured])
    return gaps.mean(1).tolist(), (gaps.std(1, ddof=1) / np.sqrt(gaps.shape[1])).tolist()


def world(
    rates: Sequence[float], *, n: int = 200, seed: int = 0, n_wrong: int = 4, **rest: object
) -> Evidence:
    """Agents that are right independently at these rates; wrong ones scatter over a few answers."""
    rng = np.random.default_rng(seed)
    names = NAMES[: len(rates)]
    right = rng.random((len(rates), n)) < np.array(rates)[:, None]
    codes = np.where(right, 0, rng.integers(1, n_wrong + 1, right.shape)).astype(np.int16)
    scores = dict(zip(names, right.astype(float), strict=True))
    measured = tuple(
        CandidateScores(Architecture.single(m), scores[m], calls=1, usd=0) for m in names
    )
    whole = Evidence(
        singles=scores,
        measured=measured,
        ballots=Ballots(names, codes, right.astype(float)),
        widths=(2, 3),
        admits=lambda _: True,
        shrink=paired,
        seed=0,
    )
    return replace(whole, **rest)  # type: ignore[arg-type]  # any field of Evidence


def with_top_3(evidence: Evidence) -> Evidence:
    assert evidence.ballots is not None
    top = evidence.ranking[:3]
    vote = Architecture((top,), top[0], "vote")
    scores = evidence.ballots.vote(top, ranking=evidence.ranking)
    return replace(evidence, measured=(*evidence.measured, CandidateScores(vote, scores, 3, 0)))


def test_equal_agents_are_no_reason_to_leave_the_vote_of_the_best() -> None:
    evidence = with_top_3(world([0.6] * 5))
    choice = choose(evidence, may_be_unmeasured=True)
    assert choice.incumbent == evidence.measured[-1].architecture
    assert choice.picked == choice.incumbent


def test_agents_much_worse_than_the_best_are_no_part_of_the_incumbent() -> None:
    evidence = world([0.8, 0.8, 0.8, 0.3, 0.3], n=400, widths=(2, 5))
    choice = choose(evidence, may_be_unmeasured=True)
    assert choice.incumbent.layers == (("a", "b", "c"),)
    equal = world([0.6, 0.6, 0.6, 0.55, 0.55], n=400, widths=(2, 5))
    assert choose(equal, may_be_unmeasured=True).incumbent.layers == (NAMES,)


def test_one_agent_far_above_the_others_is_picked_alone() -> None:
    choice = choose(with_top_3(world([0.9, 0.3, 0.3, 0.2, 0.2])))
    assert choice.picked == Architecture.single("a")
    assert choice.options[0].cautious_gain >= 0


def test_without_votes_a_gain_of_one_error_over_the_best_agent_is_enough() -> None:
    evidence = world([0.6, 0.5, 0.4], ballots=None)
    single = evidence.singles[evidence.ranking[0]]
    wrong = np.flatnonzero(single == 0)
    lucky, better = single.copy(), single.copy()
    lucky[wrong[:1]] = 1  # one row won, and one lost
    lucky[np.flatnonzero(single == 1)[:1]] = 0
    better[wrong[:3]] = 1  # gain .015, error .0086
    luckier = CandidateScores(Architecture((("a", "b"),), "b"), lucky, 3, 0)
    layered = CandidateScores(Architecture((("a", "b"),), "a"), better, 3, 0)
    choice = choose(replace(evidence, measured=(*evidence.measured, luckier, layered)))
    assert choice.incumbent == Architecture.single(evidence.ranking[0])
    assert choice.picked == layered.architecture
    with_luck = replace(evidence, measured=(*evidence.measured, luckier))
    assert choose(with_luck).picked == choice.incumbent


def test_over_a_vote_a_gain_within_its_error_counts_nothing() -> None:
    evidence = with_top_3(world([0.6, 0.55, 0.5]))
    vote = evidence.measured[-1].scores
    wrong = np.flatnonzero(vote == 0)
    lucky, sure = vote.copy(), vote.copy()
    lucky[wrong[:2]] = 1  # two rows of 200: p = 1/4
    sure[wrong[:20]] = 1
    luckier = CandidateScores(Architecture((("a", "b"),), "a"), lucky, 3, 0)
    surer = CandidateScores(Architecture((("a", "b"),), "b"), sure, 3, 0)
    with_luck = replace(evidence, measured=(*evidence.measured, luckier))
    assert choose(with_luck).picked != luckier.architecture
    with_both = replace(evidence, measured=(*evidence.measured, luckier, surer))
    assert choose(with_both).picked == surer.architecture


def test_of_equal_gains_the_one_with_fewer_calls_is_picked() -> None:
    evidence = world([0.6, 0.5], ballots=None)
    better = np.ones(evidence.n_rows)
    costly = CandidateScores(Architecture((("a", "b"),), "a"), better, 3, 0)
    cheap = CandidateScores(Architecture((("a", "b"),), None, "select"), better, 2, 0)
    measured = (*evidence.measured, costly, cheap)
    assert choose(replace(evidence, measured=measured)).picked == cheap.architecture


def test_what_was_stopped_or_is_beyond_a_limit_is_not_picked() -> None:
    evidence = world([0.6, 0.5], ballots=None)
    best = np.ones(evidence.n_rows)
    stopped = best.copy()
    stopped[-1] = np.nan
    measured = (
        *evidence.measured,
        CandidateScores(Architecture((("a", "b"),), "a"), stopped, 3, 0),
        CandidateScores(Architecture((("a", "b"),), "b"), best, 3, 0, is_admitted=False),
    )
    assert not choose(replace(evidence, measured=measured)).picked.layers
    nobody = tuple(replace(candidate, is_admitted=False) for candidate in evidence.measured)
    with pytest.raises(StudyError, match="No architecture stays within the limits"):
        choose(replace(evidence, measured=nobody))


def test_names_and_order_of_the_agents_decide_nothing() -> None:
    evidence = world([0.7, 0.6, 0.55, 0.5])
    assert evidence.ballots is not None
    flipped = replace(
        evidence,
        singles=dict(reversed(list(evidence.singles.items()))),
        measured=evidence.measured[::-1],
        ballots=Ballots(
            evidence.ballots.agents[::-1],
            evidence.ballots.codes[::-1],
            evidence.ballots.scores[::-1],
        ),
    )
    choice, other = (choose(e, may_be_unmeasured=True) for e in (evidence, flipped))
    assert (choice.picked, choice.options[0].gain) == (other.picked, other.options[0].gain)


@pytest.mark.slow
def test_the_expected_score_is_honest_where_the_best_on_val_flatters_itself() -> None:
    # Five equal agents at 0.5 without common wrong answers: whoever is picked is worth 0.5
    # alone; what a vote of three is worth is counted on 20,000 other rows.
    picked, reported, flattering = [], [], []
    fresh = world([0.5] * 5, n=20_000, seed=99)
    for seed in range(12):
        evidence = with_top_3(world([0.5] * 5, n=60, seed=seed))
        choice = choose(evidence, may_be_unmeasured=True, pseudo=5_000)
        held = cross_fitted(evidence, seed=seed)
        assert held is not None
        expected = held.expected
        assert expected.low < expected.estimate < expected.high
        reported.append(expected.estimate)
        picked.append(choice.scores(fresh).mean())
        flattering.append(max(candidate.scores.mean() for candidate in evidence.measured))
    error = np.std(reported) / np.sqrt(len(reported))
    assert abs(np.mean(reported) - np.mean(picked)) < 2.5 * error
    assert np.mean(flattering) - np.mean(reported) > 0


def test_fewer_than_ten_rows_tell_nothing_of_new_ones() -> None:
    assert cross_fitted(world([0.5, 0.5], n=9), seed=0) is None
