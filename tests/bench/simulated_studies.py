"""Simulated studies of votes: the library chooses on val, its verdict judges on val and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.conclusion import cross_fitted
from moa_dspy.optimize.selection import CandidateScores, Evidence, choose
from moa_dspy.optimize.votes import Ballots
from moa_dspy.winrate import verdict

N_VAL, N_TEST = 200, 200
N_LETTERS = 10
PSEUDO = 10_000
"""Redrawn questions per choice: fewer than in a study, so that 2,000 take minutes."""
DISCORDANCES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
GAINS = (0.0, 0.03, 0.05, 0.08, 0.1)


@dataclass(frozen=True, slots=True)
class World:
    """Agents that answer with letters; letter 0 is right.

    Attributes:
        accuracies: Of each agent.
        correlation: Of the hidden difficulty of a question between agents.
        copied: Share of questions on which every agent says what the first one says.
        decoyed: Share of questions on which the agents that are wrong agree on one wrong letter.
    """

    accuracies: tuple[float, ...]
    correlation: float
    copied: float = 0.0
    decoyed: float = 0.0

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.int16]:
        """Return letters (agents, questions)."""
        size = (len(self.accuracies), n)
        hidden = sqrt(self.correlation) * rng.standard_normal(n)
        hidden = hidden + sqrt(1 - self.correlation) * rng.standard_normal(size)
        wrong = rng.integers(1, N_LETTERS, size)
        wrong = np.where(rng.random(n) < self.decoyed, wrong[0], wrong)
        letters = np.where(hidden < ndtri(self.accuracies)[:, None], 0, wrong)
        own = rng.random(size) >= self.copied
        return np.where(own, letters, letters[0]).astype(np.int16)


NOTHING_PAYS = {
    "one_model_knows_all": World((0.75, *[0.45] * 5), 1.0),
    "copies_of_one_model": World((0.6,) * 6, 0.5, copied=0.97),
    "pure_noise": World((0.1,) * 6, 0.0),
    "two_answers_by_chance": World((0.5,) * 6, 0.3, decoyed=1.0),
    "eight_coins": World((0.5,) * 8, 0.0, decoyed=1.0),
}
"""Where one knows all, the others are right on nothing that it misses. In the last two single
models tie, and votes differ much from them and gain nothing."""
ONE_DOMINATES = World((0.75, *[0.45] * 5), 0.5)
"""Where the others are right on something that it misses: plain votes lose, and a weighted one may
gain a little. What is right is told by each pick's gain on ``N_TRUTH`` questions."""
N_TRUTH = 100_000
PAYS = World((0.46,) * 7, 0.58, decoyed=0.5)
"""On 200,000 questions the vote of all gains 0.0801 over one of them at discordance 0.199."""


def paired(
    evidence: Evidence, incumbent: CandidateScores, measured: Sequence[CandidateScores], /
) -> tuple[Sequence[float], Sequence[float]]:
    """Return plain paired differences with their standard errors: nothing is shrunk."""
    del evidence
    gaps = np.array([candidate.scores - incumbent.scores for candidate in measured])
    n = gaps.shape[1]
    errors = gaps.std(1, ddof=1) / sqrt(n) if n > 1 else np.ones(len(gaps))
    return gaps.mean(1).tolist(), errors.tolist()


@cache
def truth(world: World) -> Ballots:
    """Return enough questions to tell what a pick is worth: to 0.1 points or so."""
    return ballots_of(world.draw(np.random.default_rng(3), N_TRUTH))


def ballots_of(letters: NDArray[np.int16]) -> Ballots:
    """Return the letters as answers of m0, m1, and so on."""
    names = tuple(f"m{i}" for i in range(len(letters)))
    return Ballots(names, letters, (letters == 0).astype(np.float64))


@dataclass(frozen=True, slots=True)
class SimulatedStudy:
    """The verdict of a study, with gain and discordance of its pick on test.

    Attributes:
        kind: Of the verdict.
        gain: Pick minus best single model.
        discordance: Share of test questions on which the two differ in score.
        true_gain: On ``N_TRUTH`` questions; None where it was not asked for.
    """

    kind: str
    gain: float = 0.0
    discordance: float = 0.0
    true_gain: float | None = None


def study(world: World, *, seed: int, asks_truth: bool = False) -> SimulatedStudy:
    """Return one study: the library picks on val, and judges on val and test."""
    rng = np.random.default_rng([0, seed])
    whole = ballots_of(world.draw(rng, N_VAL + N_TEST))
    names = whole.agents
    val, test = whole.take(np.arange(N_VAL)), whole.take(np.arange(N_VAL, N_VAL + N_TEST))
    singles = dict(zip(names, val.scores, strict=True))
    measured = [CandidateScores(Architecture.single(n), s, 1.0, 1.0) for n, s in singles.items()]
    evidence = Evidence(
        singles=singles,
        measured=tuple(measured),
        ballots=val,
        widths=(2, 7),
        admits=lambda layer: True,
        admits_weighted=lambda layer: True,
        shrink=paired,
        seed=seed,
    ).counted(PSEUDO)
    choice = choose(evidence, may_be_unmeasured=True)
    if not choice.picked.layers:
        return SimulatedStudy("single")  # whatever val and test say
    pick = choice.scores(replace(evidence, ballots=test))
    single = test.scores[names.index(choice.ranking[0])]
    held = cross_fitted(evidence, seed=seed, pseudo=PSEUDO, repeats=1)
    assert held is not None  # there are more than ten rows
    said = verdict(pick, single, val=(held.pick, held.single), pick_is_single=False)
    gained = None
    if asks_truth:
        known = truth(world)
        scores = choice.scores(replace(evidence, ballots=known))
        gained = float((scores - known.scores[names.index(choice.ranking[0])]).mean())
    gain, discordance = float((pick - single).mean()), float((pick != single).mean())
    return SimulatedStudy(said.kind, gain, discordance, gained)


def said_mixture(world: World, n_studies: int, *, asks_truth: bool = False) -> dict[str, Any]:
    """Return how often "mixture" is said, with the mean gain and discordance of the picks.

    With ``asks_truth`` also how often it is said wrongly, of a pick that gains nothing, and how
    often there was a pick to be found that truly gains.
    """
    found = [study(world, seed=seed, asks_truth=asks_truth) for seed in range(n_studies)]
    return summed_up(found, asks_truth=asks_truth)


def summed_up(found: Sequence[SimulatedStudy], *, asks_truth: bool = False) -> dict[str, Any]:
    """Return the shares of the studies, and their means."""
    n_studies = len(found)
    rate = sum(simulated.kind == "mixture" for simulated in found) / n_studies
    row: dict[str, Any] = {
        "studies": n_studies,
        "mixture": rate,
        "se": sqrt(rate * (1 - rate) / n_studies),
        "mean_gain": float(np.mean([simulated.gain for simulated in found])),
        "mean_discordance": float(np.mean([simulated.discordance for simulated in found])),
    }
    if asks_truth:
        picks = [
            (simulated.kind, simulated.true_gain)
            for simulated in found
            if simulated.true_gain is not None
        ]
        wrong = sum(kind == "mixture" and gain <= 0 for kind, gain in picks) / n_studies
        row |= {
            "wrong": wrong,
            "wrong_se": sqrt(wrong * (1 - wrong) / n_studies),
            "picked": len(picks) / n_studies,
            "picked_that_gain": sum(gain > 0 for _, gain in picks) / n_studies,
            "mean_true_gain_of_picks": float(np.mean([gain for _, gain in picks] or [0.0])),
        }
    return row


@cache
def kind_of(wins: int, losses: int) -> str:
    """Return the verdict on 200 right-or-wrong test rows with these counts."""
    ties = N_TEST - wins - losses
    pick = [1.0] * wins + [0.0] * losses + [1.0] * ties
    single = [0.0] * wins + [1.0] * losses + [1.0] * ties
    return verdict(pick, single, pick_is_single=False).kind


def power(n_studies: int) -> list[dict[str, Any]]:
    """Return how often "mixture" is said of a fixed mixture, by gain and discordance."""
    table = []
    for gain in GAINS:
        for discordance in (d for d in DISCORDANCES if d >= gain):
            rng = np.random.default_rng(1)
            chances = [(discordance + gain) / 2, (discordance - gain) / 2, 1 - discordance]
            counts = rng.multinomial(N_TEST, chances, size=n_studies)[:, :2].tolist()
            rate = sum(kind_of(*pair) == "mixture" for pair in counts) / n_studies
            row = {"gain": gain, "discordance": discordance, "mixture": rate}
            table.append({**row, "se": sqrt(rate * (1 - rate) / n_studies)})
    return table


def one_mixture(n_studies: int, *, gain: float, discordance: float) -> dict[str, Any]:
    """Return how often "mixture" is said where val has to choose it over the single model first.

    No vote is allowed here: the incumbent is the best single model, not the top-k vote.
    """
    rng = np.random.default_rng(2)
    chances = [(discordance + gain) / 2, (discordance - gain) / 2, 0.4, 0.6 - discordance]
    mixture, single = Architecture((("a", "b"),), "a", "synthesize"), Architecture.single("a")
    n_picked = n_said = 0
    for seed in range(n_studies):
        kinds = rng.choice(4, size=N_VAL + N_TEST, p=chances)
        mixture_scores, single_scores = (
            np.isin(kinds, pair).astype(np.float64) for pair in ((0, 2), (1, 2))
        )
        evidence = Evidence(
            singles={"a": single_scores[:N_VAL], "b": np.zeros(N_VAL)},
            measured=(
                CandidateScores(single, single_scores[:N_VAL], 1.0, 1.0),
                CandidateScores(mixture, mixture_scores[:N_VAL], 3.0, 3.0),
            ),
            ballots=None,
            widths=(1, 1),
            admits=lambda layer: True,
            shrink=paired,
            seed=seed,
        )
        is_picked = choose(evidence).picked == mixture
        n_picked += is_picked
        if is_picked and (held := cross_fitted(evidence, seed=seed)) is not None:
            said = verdict(
                mixture_scores[N_VAL:],
                single_scores[N_VAL:],
                val=(held.pick, held.single),
                pick_is_single=False,
            )
            n_said += said.kind == "mixture"
    rate = n_said / n_studies
    error = sqrt(rate * (1 - rate) / n_studies)
    return {"studies": n_studies, "picked": n_picked / n_studies, "mixture": rate, "se": error}
