"""Tables of the pages on where a mixture pays, from the stored runs; see `make_tables.py`."""

from __future__ import annotations

import runpy
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Run = Mapping[str, Any]
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs/results"
STUDIES = ROOT / "optimize/votes"
FIGURE = RESULTS / "prices.svg"
_MODELS: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("model_tables.py")))
_FIGURES: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("figures.py")))

stored: Callable[[str], Any] = _MODELS["stored"]
_gap: Callable[[Run | None], str] = _MODELS["_gap"]
_table: Callable[[Sequence[str], Iterable[Sequence[str]]], str] = _MODELS["_table"]

POOLS = {
    "mmlu_pro_comparable": "MMLU-Pro, 14 comparable models",
    "mmlu_pro": "MMLU-Pro, 18 models",
    "reasoning_gym_comparable": "Reasoning Gym, 8 comparable models",
    "reasoning_gym": "Reasoning Gym, 10 models",
    "math_comparable": "MATH level 5, 17 comparable models",
    "math_cheap": "MATH level 5, 20 cheap models",
    "math": "MATH level 5, 39 models",
}
LOSSES = {
    "quickstart": "one dominant model",
    "copies": "two copies of one model",
    "weak_aggregator": "an aggregator weaker than its proposers",
}
OUTCOMES = {
    "mixture": "use the mixture",
    "single": "keep the single model",
    "not_enough_examples": "not enough examples",
    "judge_cannot_tell": "the judge cannot tell",
}
FIRST = {
    "votes/math_cheap": "20 models at up to 1 usd per million completion tokens, hard MATH",
    "votes/mmlu_pro_comparable": "14 comparable models, MMLU-Pro",
    "sampled": "three small models at temperature 0.7, short questions",
    "quickstart": "the same models, greedy ones too",
}
"""Studies of the first page."""
VAL = 200
NAMED = {
    "gpt-4o-2024-08-06": "gpt-4o",
    "claude-3-5-sonnet-20241022": "claude-3.5-sonnet",
    "grok-2-1212": "grok-2",
    "gemini-1.5-pro-exp-0827": "gemini-1.5-pro-exp",
    "o1-mini-2024-09-12": "o1-mini, its thoughts not counted",
    "o1-preview-2024-09-12": "o1-preview, likewise",
    "Qwen2.5-72B-Instruct": "Qwen2.5-72B",
    "gpt-4-turbo-2024-04-09": "gpt-4-turbo",
}
"""Models that the picture names, and how."""


def votes(n_val: int | None = None) -> list[Run]:
    """Return the stored runs of votes, in the order of the page."""
    runs: list[Run] = stored("votes")["votes"]
    order = list(POOLS)
    kept = [run for run in runs if n_val in (None, run["val"])]
    return sorted(kept, key=lambda run: (order.index(run["study"]), run["val"]))


def vote_of(study: str) -> Run:
    """Return the stored run of a study as its file stands."""
    return next(run for run in votes(VAL) if run["study"] == study)


def pays() -> str:
    """Return one line per pool and size: the systems on test, and what the verdict says."""
    heads = ["pool", "looked at / tested", "best single", "top-k", "random", "pick", "oracle"]
    heads += ["pick minus best single", "calls", "verdict"]
    lines = [
        [
            POOLS[run["study"]],
            f"{run['val']} / {run['test_rows']}",
            *(_points(run["test"][name]) for name in ("best_single", "top_k", "random")),
            f"**{_points(run['test']['pick'])}**",
            _points(run["test"]["oracle"]),
            _gap(run["differences"].get("best_single")),
            _number(run["test"]["pick"]["calls"], "{:.1f}"),
            f"{OUTCOMES[run['verdict']['kind']]}: {_gap(run['verdict']['interval'])}",
        ]
        for run in votes()
    ]
    return _table(heads, lines)


def picks() -> str:
    """Return what each search of 200 questions chose, and what it took to find that."""
    heads = ["pool", "best single on val", "the pick", "recorded answers read", "seconds"]
    lines = [
        [
            f"[{POOLS[run['study']]}](../../optimize/votes/{run['study']}.toml)",
            f"`{run['test']['best_single']['architecture']}`",
            named(run["pick"]),
            f"{run['calls']['reused'] + run['calls']['made']:,}",
            f"{run['seconds']:.0f}",
        ]
        for run in votes(VAL)
    ]
    return _table(heads, lines)


def named(architecture: str) -> str:
    """Return an architecture as a reader takes it in: a wide vote by its size."""
    members = architecture.partition(" > ")[0].split(" + ")
    if len(members) < 4:
        return f"`{architecture}`"
    kind = "vote with learned weights" if "weights=" in architecture else "equal vote"
    return f"{kind} of {len(members)}"


def money() -> str:
    """Return accuracy and usd per 1,000 questions of votes beside the models alone."""
    cheap, dear = vote_of("math_cheap"), vote_of("math_comparable")
    agents = agents_of("math_cheap")
    ranked = sorted(cheap["singles"], key=lambda system: -system["score"])
    rows: list[tuple[str, Run]] = [
        *_systems(cheap, "cheap"),
        *_systems(dear, "comparable"),
        *[(f"`{system['agent']}`", system) for system in ranked if system["agent"] in agents][:3],
        *[
            (f"`{system['agent']}`, dearer", system)
            for system in ranked
            if system["agent"] not in agents
        ][:12],
    ]
    rows.sort(key=lambda row: -row[1]["score"])
    lines = [[name, _bounds(system), f"{1000 * system['usd']:.2f}"] for name, system in rows]
    passed = _table(["system", "score", "usd per 1,000 questions"], lines)
    return f"{passed}\nOf the dearer models the best twelve are shown. {passes()}.\n"


def passes() -> str:
    """Return how many of the dearer models the vote of cheap ones passes, and at what price."""
    run = vote_of("math_cheap")
    agents, pick = agents_of("math_cheap"), run["test"]["pick"]
    dear = [system for system in run["singles"] if system["agent"] not in agents]
    beaten = [system for system in dear if system["score"] < pick["score"]]
    share = median(pick["usd"] / system["usd"] for system in beaten)
    return (
        f"A vote of {_size(pick)} cheap models beats {len(beaten)} of {len(dear)} dearer models "
        f"at {100 * share:.0f} % of their price (median)"
    )


def _size(row: Run) -> int:
    return len(row["architecture"].partition(" > ")[0].split(" + "))


def _systems(run: Run, pool: str) -> Iterable[tuple[str, Run]]:
    test = run["test"]
    yield f"**the search's vote of {_size(test['pick'])} {pool} models**", test["pick"]
    yield f"equal vote of the three best {pool} models", test["top_k"]


def agents_of(study: str) -> list[str]:
    """Return the pool of a study, as its file lists it."""
    read = tomllib.loads((STUDIES / f"{study}.toml").read_text("utf-8"))
    return list(read["space"]["agents"])


def figure() -> str:
    """Return the picture of accuracy against price."""
    kinds = {"math_cheap": "cheap", "math_comparable": "comparable"}
    runs = [vote_of(study) for study in kinds]
    labels = {
        run["study"]: f"vote of {_size(run['test']['pick'])} {kinds[run['study']]} models"
        for run in runs
    }
    drawn = _FIGURES["prices"](
        runs, title=passes(), cheap=agents_of("math_cheap"), labels=labels, named=NAMED
    )
    return str(drawn)


def losses() -> str:
    """Return what the single agents tell before anything else is paid, and how the study ends."""
    heads = ["study", "best single on val", "lead over the next", "missed by it, solved by another"]
    heads += ["a vote could change", "pick on test", "verdict"]
    lines = []
    for name, title in LOSSES.items():
        run, early = stored(name), stored(name)["early"]
        lines.append(
            [
                f"[{title}](../../optimize/{name}.toml)",
                f"`{early['leader']}` {100 * early['leader_score']:.1f} %",
                _gap(early["lead"]),
                f"{100 * early['rescued']:.1f} %",
                _share(early["contested"], unknown="no vote in this space"),
                f"`{run['pick']}`",
                OUTCOMES[run["verdict"]["kind"]],
            ]
        )
    return _table(heads, lines)


def finding_out() -> str:
    """Return what it takes to know that a mixture does not pay: of the singles, and in all."""
    heads = ["study", "calls of the single agents", "their usd, nominal", "architectures measured"]
    heads += ["calls of the whole study", "foretold: calls", "usd, nominal"]
    lines = []
    for name, title in LOSSES.items():
        run = stored(name)
        alone = [trial for trial in run["trials"] if trial["origin"] == "single"]
        most = run["early"]["estimate"]
        lines.append(
            [
                title,
                f"{sum(trial['rows'] * trial['calls'] for trial in alone):,.0f}",
                f"{sum(trial['rows'] * trial['usd'] for trial in alone):.4f}",
                str(len(run["trials"])),
                f"{run['calls']['reused'] + run['calls']['made']:,}",
                f"{most['calls']:,}",
                f"{most['usd']:.4f}",
            ]
        )
    return _table(heads, lines)


def both_kinds() -> str:
    """Return wins and a loss side by side, for the first page."""
    heads = ["study", "best single model", "the search returns", "difference", "price"]
    lines = []
    for name, title in FIRST.items():
        run = vote_of(name.partition("/")[2]) if "/" in name else stored(name)
        best, pick = run["test"]["best_single"], run["test"]["pick"]
        kept = best["architecture"] == pick["architecture"]
        recommended = "the single model" if kept else named(pick["architecture"])
        lines.append(
            [
                f"[{title}](optimize/{name}.toml)",
                f"`{best['architecture']}` {_points(best)} %",
                f"**{recommended}** {_points(pick)} %",
                "none" if kept else _gap(run["differences"]["best_single"]),
                "the same" if kept else _times(pick["usd"], best["usd"]),
            ]
        )
    note = (
        "Scores on questions that the search never saw; differences in points, with 90 % intervals."
    )
    return f"{_table(heads, lines)}\n{note}\n"


def _times(usd: float, other: float) -> str:
    """Return a ratio of prices; a table without prices has none."""
    return f"{usd / other:.1f} times" if other else "unknown"


def _points(row: Run) -> str:
    return "not run" if row["score"] is None else f"{100 * row['score']:.1f}"


def _bounds(row: Run) -> str:
    return f"{100 * row['score']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _number(value: float | None, form: str) -> str:
    return "unknown" if value is None else form.format(value)


def _share(value: float | None, *, unknown: str) -> str:
    return unknown if value is None else f"{100 * value:.1f} %"


TABLES: dict[str, Callable[[], str]] = _MODELS["TABLES"] | {
    "both_kinds": both_kinds,
    "finding_out": finding_out,
    "losses": losses,
    "money": money,
    "pays": pays,
    "picks": picks,
}
"""By the name between a page's markers."""
