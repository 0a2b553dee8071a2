"""Simulates whole studies and races, and counts how often each says what is not so.

Usage: python tests/bench/search_statistics.py [--json] [--studies N] [--races N] [--quick]
       [--only PART]

Verdicts: 2,000 studies with 200 validation and 200 test questions. In five worlds
where no mixture pays (one model that knows all, copies of one model, pure noise, and two in which
single models tie), in one with a dominant model where some votes gain a little, and in one
where the vote of all gains 8 points at discordance 0.20, the library picks on val (``choose``)
and judges on val and test (``verdict``). Printed: how often "mixture" is said, and by what picks
gained; the same for one layered mixture, which val must prefer to the single model without a
vote as incumbent; and a table of power by gain and discordance of a mixture fixed beforehand.

Cross-fitting: 20,000 studies in each of 54 worlds where systems tie or nearly do, by the number of
test rows over val rows and by what a row of val counts: how often "mixture" is said, wrongly.

Racing: 2,000 races of 2, 4, 8, 16 and 40 arms on 200 rows, which enter one by one as in a study
(``Race``, ``looks``). Equal arms: share of races in which any is dropped, in four worlds, and as
a baseline what 5 % per test would do. Bad arms: the share of rows that they are measured on.

Cost verdicts: 20,000 studies by size and discordance of a system that is worse than the single
model by the margin of 3 points, and of one as good: how often "as good" is said; 4,000 of graded
scores.

Every share has its standard error beside it. ``--quick`` runs a few of each. Takes ten minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from tests.bench.simulated_cost_verdicts import cost_verdict_rates
from tests.bench.simulated_cross_fitting import tied_verdicts
from tests.bench.simulated_races import bad_arms, equal_arms, uncorrected
from tests.bench.simulated_studies import (
    NOTHING_PAYS,
    ONE_DOMINATES,
    PAYS,
    one_mixture,
    power,
    said_mixture,
)

ARMS = (2, 4, 8, 16, 40)


def verdicts(n_studies: int) -> dict[str, Any]:
    """Return how often "mixture" is said, where nothing pays and where it does."""
    nothing = {name: said_mixture(world, n_studies) for name, world in NOTHING_PAYS.items()}
    return {
        "where_nothing_pays": nothing,
        "most_where_nothing_pays": max(cell["mixture"] for cell in nothing.values()),
        "one_dominant_model": said_mixture(ONE_DOMINATES, n_studies, asks_truth=True),
        "votes_that_gain_8_points": said_mixture(PAYS, n_studies),
        "layered_that_gains_8_points": one_mixture(n_studies, gain=0.08, discordance=0.2),
        "power": power(n_studies),
    }


def racing(n_races: int, arms: tuple[int, ...]) -> dict[str, Any]:
    """Return wrong drops of the whole race, and what bad arms cost."""
    equal = equal_arms(n_races, arms)
    return {
        "equal_arms": equal,
        "most_wrong_drops": max(cell["share"] for cell in equal),
        "uncorrected_baseline": [uncorrected(n_races, n) for n in arms if n <= 8],
        "bad_arms": bad_arms(max(n_races // 10, 1), [n for n in arms if n >= 8]),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2_000)
    parser.add_argument("--races", type=int, default=2_000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("verdicts", "cross_fitting", "cost_verdicts", "racing"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    started = perf_counter()
    n_studies, n_races = (5, 5) if options.quick else (options.studies, options.races)
    parts = {
        "verdicts": lambda: verdicts(n_studies),
        "cross_fitting": lambda: tied_verdicts(10 * n_studies),
        "cost_verdicts": lambda: cost_verdict_rates(n_studies),
        "racing": lambda: racing(n_races, (2, 8) if options.quick else ARMS),
    }
    wanted = [options.only] if options.only else list(parts)
    found: dict[str, Any] = {part: parts[part]() for part in wanted}
    found["seconds"] = perf_counter() - started
    print(json.dumps(found, indent=None if options.json else 2))


if __name__ == "__main__":
    main(sys.argv[1:])
