"""Counts the calls that a search needs until what it recommends is nearly the best there is.

Usage: python tests/bench/search_economy.py [--json] [--seeds N] [--trials N] [--families A ...]

No model is asked: worlds are made up, so every architecture's true score is known. Families of
surfaces (`economy/_families.py`) hold some that our response model describes and some that it
cannot. Scaled such that the optimum gains 0.2 over the best single agent, seen on 200 rows.

A search has arrived when what it would recommend now, not the best that it visited, has closed
90 % of the true distance from the best single agent to the optimum. Ours recommends what
``choose`` picks with the shrinking of a study; TPE and chance the best on the rows and, on a
second line, what our ``choose`` picks of their records, looked at each time they are a tenth more.

Every search measures the single agents first, and they count for each. Nobody opens with known
mixtures, and nobody stops a trial early: what is compared is the proposing. A call is a node (who
is asked, having read what) on one row; ``unshared`` counts it for every architecture again, which
only rivals do. No architecture is measured twice by any.

A rival may make 20 times the calls of ours in the same world, and a run that does not arrive
counts as that. No run has more than ``--trials`` trials (rivals: ``--rival-trials``); what that
cuts off counts as the calls made until then: a rival that is cut makes the ratio too high, ours
that is cut makes it too low. ``beats_ours`` counts the worlds in which a rival arrived and ours did
not, or with more calls.

One random search against one of ours is mostly luck: in one world the calls of random searches
differ by a factor of 10. ``random_ahead`` is the share of ``--draws`` further random searches of
each world that arrive with fewer calls than ours, by the best on the rows, with its standard error
over worlds; where neither arrives with as many calls, it is half. 0.5 is as good as chance.

All 20 seeds of all families take half an hour.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from math import inf, sqrt
from pathlib import Path
from statistics import fmean, median, pstdev
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from tests.bench.economy import FAMILIES, Run, World, best_draw, other_draw, ours, tpe

CAP = 20
N_ROWS = 200
RIVALS = {"tpe": tpe, "random": best_draw}
RULES = ("best_seen", "choose")


def calls_of(run: Run, rule: str, *, shared: bool, cap: float) -> dict[str, Any]:
    """Return the calls until the rule had arrived, and whether the cap or the end came first."""
    goal = run.goals.get(rule)
    reached = None if goal is None else goal.shared if shared else goal.unshared
    if reached is not None and reached <= cap:
        return {"calls": reached, "end": "arrived"}
    made = run.shared if shared else run.unshared
    return {"calls": min(cap, made), "end": "censored" if made >= cap else "cut"}


def ahead_by_chance(world: World, own_run: Run, *, draws: int) -> float:
    """Return the share of random searches that arrive with fewer calls than ours; a tie is half."""
    calls = own_run.shared if "choose" in own_run.goals else inf
    seeds = [1_000 * (draw + 1) + world.seed for draw in range(draws)]
    found = [other_draw(world, seed, most_shared=own_run.shared) for seed in seeds]
    return fmean((n < calls) + 0.5 * (n == calls) for n in found)


def one_world(family: str, seed: int, trials: int, rival_trials: int, draws: int) -> dict[str, Any]:
    """Return the calls of every search in one world."""
    space, surface = FAMILIES[family]
    world = World(space, surface, seed=seed, n_rows=N_ROWS)
    own_run = ours(world, n_trials=trials)
    has_arrived = "choose" in own_run.goals
    found: dict[str, Any] = {
        "ours": {"calls": own_run.shared, "end": "arrived" if has_arrived else "cut"},
        "trials": own_run.trials,
        "ahead": ahead_by_chance(world, own_run, draws=draws),
    }
    cap = CAP * own_run.shared
    for name, search in RIVALS.items():
        run = search(world, n_trials=rival_trials, most_shared=cap, most_unshared=cap)
        for rule in RULES:
            for shared in (True, False):
                key = f"{name}.{rule}.{'shared' if shared else 'unshared'}"
                found[key] = calls_of(run, rule, shared=shared, cap=cap)
    return found


def summary(worlds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return medians over worlds, the median ratio of ours over each rival, and who arrived."""
    own_calls = [world["ours"]["calls"] for world in worlds]
    names = [name for name in worlds[0] if "." in name]
    ahead = [world["ahead"] for world in worlds]
    return {
        "random_ahead": {"share": fmean(ahead), "se": pstdev(ahead) / sqrt(len(ahead))},
        "ours": {**_one(worlds, "ours"), "trials": median(world["trials"] for world in worlds)},
        "rivals": {
            name: {
                **_one(worlds, name),
                "ours_over": median(
                    ours / world[name]["calls"]
                    for ours, world in zip(own_calls, worlds, strict=True)
                ),
                "ours_over_of_medians": median(own_calls)
                / median(w[name]["calls"] for w in worlds),
                "beats_ours": sum(_beats(world[name], world["ours"]) for world in worlds),
            }
            for name in names
        },
    }


def _beats(rival: dict[str, Any], own_end: dict[str, Any]) -> bool:
    """Whether a rival arrived where ours did not, or with fewer calls."""
    if rival["end"] != "arrived":
        return False
    return bool(own_end["end"] != "arrived" or rival["calls"] < own_end["calls"])


def _one(worlds: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    ends = [world[name]["end"] for world in worlds]
    counts = {end: ends.count(end) for end in ("arrived", "censored", "cut")}
    return {"calls": median(world[name]["calls"] for world in worlds), **counts}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--rival-trials", type=int, default=150)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--draws", type=int, default=20, help="more random searches per world")
    options = parser.parse_args(arguments)
    started = perf_counter()
    sizes = (options.trials, options.rival_trials, options.draws)
    families = {}
    for family in options.families:
        worlds = [one_world(family, seed, *sizes) for seed in range(options.seeds)]
        families[family] = summary(worlds)
        print(f"{family}: {perf_counter() - started:.0f} s", file=sys.stderr)
    found = {
        "seeds": options.seeds,
        "draws": options.draws,
        "rows": N_ROWS,
        "cap": CAP,
        "families": families,
    }
    found["seconds"] = perf_counter() - started
    print(json.dumps(found, indent=None if options.json else 2))


if __name__ == "__main__":
    main(sys.argv[1:])
