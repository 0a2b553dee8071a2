"""Tables of the search's benchmarks, from the JSON that they printed; see `make_tables.py`."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Printed = Mapping[str, Any]
_MODELS: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("model_tables.py")))
_table: Callable[[Sequence[str], Iterable[Sequence[str]]], str] = _MODELS["_table"]
SHOWN = ("best_single", "top3", "top5", "top7", "exhaustive", "tpe300", "nsga2", "random")


def quality(printed: Printed) -> str:
    """Return one line per pool and size: ours, the simple rules and searches, and honesty."""
    rows = printed["rows"]
    heads = ["pool, questions", "ours", *SHOWN, "best rule", "ours minus it", "optimum"]
    lines = [
        [
            f"{row['pool']}, {row['dev']}",
            f"**{_points(row['ours'])}**",
            *(_points(row[name]) for name in SHOWN),
            f"{row['best_baseline']} {_points(row[row['best_baseline']])}",
            f"{100 * row['ours_minus_best_baseline']:+.2f}",
            _points(row["optimum"]),
        ]
        for row in rows
    ]
    splits = rows[0]["splits"]
    note = f"Means over {splits} splits, in percent and points."
    return "\n".join([_table(heads, lines), _honesty(rows), note, ""])


def honest(printed: Printed) -> str:
    """Return how far the reported score is from the truth, over many splits."""
    rows = [
        {**row, "pool": f"{_spaced(folder)}, {row['pool']}"}
        for folder, folder_rows in printed["honest_of"].items()
        for row in folder_rows
    ]
    splits = " and ".join(dict.fromkeys(f"{row['splits']}" for row in rows))
    return "\n".join([_honesty(rows), f"Means over {splits} splits.", ""])


def _honesty(rows: Sequence[Printed]) -> str:
    heads = [
        "pool, questions",
        "score on val minus truth",
        "reported minus truth (standard error)",
        "interval covers",
        "cells",
    ]
    lines = [
        [
            f"{row['pool']}, {row['dev']}",
            f"{100 * row['optimism']:+.1f}",
            _net(row),
            f"{100 * row['coverage']:.0f} %",
            f"{row['cells']:,}",
        ]
        for row in rows
    ]
    return _table(heads, lines)


def handed_over(printed: Printed) -> str:
    """Return what ``compile`` returns beside the pick and simple rules, by folder and pool."""
    rows = [
        (folder, row) for folder, folder_rows in printed["rows_of"].items() for row in folder_rows
    ]
    rules = ("best_single", "top5", "top7", "today")
    heads = ["folder, pool, val questions", *map(_spaced, rules[:-1]), "rule before", "pick"]
    heads += ["returned", 'verdict "mixture"', "calls per question"]
    heads += ["reported minus truth (standard error)"]
    lines = [
        [
            f"{_spaced(folder)}, {row['pool']}, {row['dev']}",
            *(_points(row[name]) for name in rules),
            f"**{_points(row['ours'])}**",
            f"**{_points(row['recommended'])}**",
            f"{100 * row['verdicts']['mixture']:.0f} %",
            f"{row['ours_calls']:.1f}",
            _net(row),
        ]
        for folder, row in rows
    ]
    n = rows[0][1]["splits"]
    note = f"Means over {n} splits with 300 test rows, in percent and points."
    return "\n".join([_table(heads, lines), note, ""])


def layered(printed: Printed) -> str:
    """Return the layered search beside its rivals."""
    row = printed["layered"]
    rivals = [name for name in row["baseline_minus_ours"] if name in row]
    ordered = sorted(["ours", "optimum", *rivals], key=lambda name: -row[name])
    lines = [[name.replace("_", " "), _points(row[name]), _lead(row, name)] for name in ordered]
    note = (
        f"Means over {printed['splits']} splits. Reported minus truth (standard error): "
        f"{_net(row)} points; its interval covers in {100 * row['coverage']:.0f} % of splits."
    )
    heads = ["system", "test score", "minus ours (one-sided 95 % bound)"]
    return "\n".join([_table(heads, lines), note, ""])


def _net(row: Printed) -> str:
    net, error = 100 * row["reported_minus_truth"], 100 * row["reported_minus_truth_se"]
    return f"{net:+.2f} ({error:.2f})"


def _lead(row: Printed, name: str) -> str:
    lead = row["baseline_minus_ours"].get(name)
    return "" if lead is None else f"{100 * lead['mean']:+.2f} ({100 * lead['low']:+.2f})"


def statistics(printed: Printed) -> str:
    """Return the shares of simulated studies and races, and the power of the verdict."""
    verdicts, cells = printed["verdicts"], printed["verdicts"]["power"]
    studies = [
        *verdicts["where_nothing_pays"].items(),
        ("votes that gain 8 points", verdicts["votes_that_gain_8_points"]),
        ("layers that gain 8 points, no vote", verdicts["layered_that_gains_8_points"]),
    ]
    lines = [
        [name.replace("_", " "), f"{100 * result['mixture']:.1f} % ({100 * result['se']:.1f})"]
        for name, result in studies
    ]
    if (dominant := verdicts.get("one_dominant_model")) is not None:
        shown = f"{100 * dominant['wrong']:.1f} % ({100 * dominant['wrong_se']:.1f})"
        lines.append(["one dominant model: of a pick that gains nothing", shown])
    share_of = {(cell["gain"], cell["discordance"]): cell["mixture"] for cell in cells}
    across = sorted({discordance for _, discordance in share_of})
    power = [
        [f"{100 * gain:.0f} points", *(_share(share_of.get((gain, d))) for d in across)]
        for gain in sorted({gain for gain, _ in share_of})
    ]
    heads = ["gain, by discordance", *(f"{d:.2f}" for d in across)]
    first = _table(["simulated studies", 'say "mixture" (standard error)'], lines)
    return "\n".join([first, _table(heads, power)])


def cross_fitting(printed: Printed) -> str:
    """Return the most wrong verdicts of all worlds, by test over val and what a val row counts."""
    facts, most = printed["cross_fitting"], printed["cross_fitting"]["most"]
    counts = list(next(iter(most.values())))
    lines = [
        [ratio, *(f"{100 * row[count]:.1f} %" for count in counts)] for ratio, row in most.items()
    ]
    heads = ["test rows per val row, by what a val row counts", *counts]
    studies = facts["worlds"][0]["studies"]
    error = max(world["most_se"] for world in facts["worlds"])
    spread = max(world["sd_of_val"] for world in facts["worlds"])
    return "\n".join(
        [
            _table(heads, lines),
            f"{len(facts['worlds'])} worlds, {studies:,} studies each, standard error at most "
            f"{100 * error:.1f} points. The standard "
            f"deviation of val's z-value is at most {spread:.2f}. "
            f"Used: {facts['counted']}.",
            "",
        ]
    )


def combiners(printed: Printed) -> str:
    """Return what each combiner of the live run scored and cost."""
    lines = [
        [
            f"`{combiner['architecture']}`",
            _with_bounds(combiner["score"], "{:.1f}", " %"),
            ""
            if combiner["over"] == combiner["architecture"]
            else _with_bounds(combiner["gain"], "{:+.1f}"),
            f"{100 * combiner['undecided']:.0f} %"
            if "knockout" in combiner["architecture"]
            else "",
            f"{combiner['calls']:.2f}",
            f"{combiner['tokens']:.0f}",
            f"{combiner['seconds']:.1f}",
            f"{combiner['usd_per_1000']:.4f}",
        ]
        for combiner in printed["combiners"]
    ]
    heads = ["architecture", "score", "over the best alone", "undecided", "calls", "tokens"]
    return _table([*heads, "seconds", "nominal usd per 1,000"], lines)


def stopping(printed: Printed) -> str:
    """Return what votes spare by stopping, and what that costs, per folder and pool."""
    rows = [
        (folder, row)
        for folder, folder_rows in printed["stopping_of"].items()
        for row in folder_rows
    ]
    lines = [
        [
            f"{folder}, {row['pool']}",
            f"{row['votes']}",
            f"{row['members']:.1f}",
            _points(row["full"]),
            f"{row['exact_calls']:.2f}",
            f"{row['early']}",
            f"{row['less_calls']:.2f}",
            f"{row['less_minus_full']:+.2f} ({row['less_minus_full_se']:.2f})",
        ]
        for folder, row in rows
    ]
    heads = ["folder, pool", "picks that are votes", "members", "score", "exact stopping: calls"]
    heads += ["for less: stop early", "calls", "points minus the full vote (standard error)"]
    sizes = sorted({row["dev"] for _, row in rows})
    note = (
        f"{' and '.join(map(str, sizes))} dev questions; means over the splits; calls are shares "
        "of those of all members. The standard error is that of the judged questions in one split."
    )
    return "\n".join([_table(heads, lines), note, ""])


def economy(printed: Printed) -> str:
    """Return, per family of surfaces, our calls and the share of a rival's that they are."""
    rivals = ("tpe.best_seen.unshared", "tpe.best_seen.shared", "random.best_seen.shared")
    heads = ["family", "ours: calls, arrived", *(_name(name) for name in rivals)]
    has_chance = "draws" in printed
    heads += ["random ones ahead of ours"] * has_chance
    lines = []
    for family, facts in printed["families"].items():
        ours = facts["ours"]
        cells = [
            f"{facts['rivals'][name]['ours_over']:.2f}, " + _ends(facts["rivals"][name])
            for name in rivals
        ]
        if has_chance:
            ahead = facts["random_ahead"]
            cells.append(f"{100 * ahead['share']:.0f} % ({100 * ahead['se']:.0f})")
        lines.append([family, f"{ours['calls']:,.0f}, {ours['arrived']}", *cells])
    note = (
        f"Medians of {printed['seeds']} worlds. A rival's cell: our calls over its calls, and in "
        "how many worlds it arrived / reached the cap of 20 times ours / was cut off by its limit."
    )
    if has_chance:
        note += (
            f" Last column: of {printed['draws']} more random searches in each world, with the "
            "standard error over worlds; chance is 50 %."
        )
    return "\n".join([_table(heads, lines), note, ""])


def prompts(printed: Printed) -> str:
    """Return what every way to another prompt brought, alone and searched with the layers."""
    heads = ["prompt", "val before, after", "test before, after", "test, after minus before"]
    heads += ["p on val", "accepted", "calls made: proposers, aggregator, writer"]
    lines = [[name, *_arm(arm)] for name, arm in printed["arms"].items()]
    trials = sorted(printed["joint"]["trials"], key=lambda trial: -trial["score"])
    joint = [
        [
            f"`{trial['architecture']}`",
            trial["origin"],
            f"{100 * trial['score']:.0f} %, {trial['rows']}",
        ]
        for trial in trials
    ]
    single, made = printed["single"], printed["joint"]["calls"]["made"]
    least, most = min(printed["rows"].values()), max(printed["rows"].values())
    note = (
        f"`{single['agent']}` alone, without references, has {_share_of(single['test'])} on test. "
        f"{least} to {most} questions per split; the search with the layers made {made} calls, all "
        f"of it took {printed['seconds'] / 60:.0f} minutes."
    )
    heads_2 = ["searched with the layers", "origin", "val, rows"]
    verdict = f"> {printed['joint']['verdict']['text']}"
    return "\n".join([_table(heads, lines), note, "", _table(heads_2, joint), verdict, ""])


def _arm(arm: Printed) -> list[str]:
    val, test, calls = arm["val"], arm["test"], arm["calls"]
    counts = (calls[role]["made"] for role in ("proposers", "aggregator", "prompt_model"))
    return [
        *(f"{_percent(on['before'])}, {_percent(on['after'])}" for on in (val, test)),
        interval(test["difference"]),
        f"{val['p_value']:.2g}",
        "yes" if arm["accepted"] else "no",
        ", ".join(map(str, counts)),
    ]


def interval(gap: Printed) -> str:
    """Return a difference and its interval, in points."""
    low, high = 100 * gap["low"], 100 * gap["high"]
    return f"{100 * gap['estimate']:+.1f} [{low:+.1f}, {high:+.1f}]"


def collaboration(printed: Printed) -> str:
    """Return what each reader gains over itself alone by reading references, per prompt."""
    parts: list[str] = []
    rows = printed["conditions"]
    for tasks, layout in dict.fromkeys((row["tasks"], row["layout"]) for row in rows):
        of_set = [row for row in rows if (row["tasks"], row["layout"]) == (tasks, layout)]
        heads = ["reader", "reads", "references", "score", "minus alone"]
        heads += ["calls", "usd per 1,000", "seconds"]
        lines = [
            [
                f"`{row['reader']}`",
                row["references"] if row["n"] else "nothing",
                str(row["n"]),
                _with_bounds(row["score"], "{:.0f}", " %"),
                _with_bounds(row["gain"], "{:+.0f}") if row["n"] else "",
                f"{row['calls']:.0f}",
                f"{1000 * row['usd']:.4f}",
                f"{row['seconds']:.1f}",
            ]
            for row in sorted(of_set, key=_reading_order)
        ]
        title = f"{tasks}, {layout} prompt, {of_set[0]['rows']} questions, 95 % intervals:"
        parts += [title, "", _table(heads, lines)]
    return "\n".join(parts)


def _reading_order(row: Printed) -> tuple[str, bool, str, int]:
    return row["reader"], row["n"] > 0, row["references"], row["n"]


def _with_bounds(bounds: Sequence[float], form: str, unit: str = "") -> str:
    middle, low, high = (form.format(100 * value) for value in bounds)
    return f"{middle}{unit} [{low}, {high}]"


def _percent(bounds: Printed) -> str:
    return f"{100 * bounds['estimate']:.0f} %"


def _share_of(bounds: Printed) -> str:
    return f"{_percent(bounds)} [{100 * bounds['low']:.0f}, {100 * bounds['high']:.0f}]"


def _name(rival: str) -> str:
    sampler, _, sharing = rival.split(".")
    return f"over {sampler}, {sharing}"


def _ends(run: Printed) -> str:
    return f"{run['arrived']} / {run['censored']} / {run['cut']}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:.2f}"


RULES = ("best_single", "top3", "top5", "top7", "weighted7", "half_weighted7", "weighted_all")


def rule(printed: Printed) -> str:
    """Return the rule of the pick beside simple rules: on whole pools, then on random ones."""
    heads = ["folder, pool, questions", "splits", "ours", "before", *(map(_spaced, RULES))]
    heads += ["best rule", "minus ours", "true / stated error"]
    whole = [
        [f"{folder}, {row['pool']}, {row['dev']}", str(row["splits"]), *_ruled(row)]
        for folder, rows in printed["rule_of"].items()
        for row in rows
    ]
    drawn = [
        [f"{folder}, {row['dev']}", str(row["splits"]), *_ruled(row)]
        for folder, facts in printed["subpools_of"].items()
        for row in facts["rule"]
    ]
    every = [_table(heads, whole), "Random sub-pools of 6 to 12 models:", ""]
    every += [_table(["folder, questions", "draws", *heads[2:]], drawn), *_each(printed)]
    return "\n".join(every)


def _ruled(row: Printed) -> list[str]:
    names = ("today", *RULES, row["best_baseline"])
    before, *rules, best = (_points(row[name]) for name in names)
    lead, error = -100 * row["ours_minus_best_baseline"], row["calibration"]
    named = f"{_spaced(row['best_baseline'])} {best}"
    ratio = "" if error is None else f"{error:.2f}"
    return [f"**{_points(row['ours'])}**", before, *rules, named, f"{lead:+.2f}", ratio]


def _each(printed: Printed) -> list[str]:
    """Return the lead of every rule on each sub-pool, and on average."""
    pools = {
        f"{folder}, {pool.removeprefix('sub:')}": (leads, len(facts["subpools"][pool]))
        for folder, facts in printed["subpools_of"].items()
        for pool, leads in facts["each_pool"].items()
    }
    names = ("today", *RULES, "topk_by_dev", "acc_plus_diversity_k5", "exhaustive")
    lines = [
        [pool, str(size), *(f"{100 * leads[name]:+.2f}" for name in names)]
        for pool, (leads, size) in pools.items()
    ]
    means = (sum(leads[name] for leads, _ in pools.values()) / len(pools) for name in names)
    lines.append(["mean", "", *(f"{100 * mean:+.2f}" for mean in means)])
    heads = ["folder, seed of the sub-pool", "models", "before", *map(_spaced, names[1:])]
    return ["Each sub-pool, points of a rule minus ours:", "", _table(heads, lines)]


def leads(printed: Printed) -> str:
    """Return the lead of simple rules over the pick on random sub-pools, with its bound."""
    names = (*RULES, "topk_by_dev", "acc_plus_diversity_k5", "exhaustive")
    rows = [(folder, row) for folder, facts in printed["leads_of"].items() for row in facts["rule"]]
    lines = [
        [
            f"{_spaced(folder)}, {row['dev']}",
            str(row["splits"]),
            f"**{_points(row['ours'])}**",
            *(_lead(row, name) for name in names),
        ]
        for folder, row in rows
    ]
    n = {len(facts["subpools"]) for facts in printed["leads_of"].values()}
    note = (
        f"{n.pop()} sub-pools of 6 to 12 models per folder. Points of a rule minus the pick; in "
        "brackets the one-sided 95 % lower bound, which allows for questions that draws share."
    )
    return "\n".join(
        [_table(["folder, questions", "draws", "pick", *map(_spaced, names)], lines), note, ""]
    )


def power(printed: Printed) -> str:
    """Return the chance that a pick is proven, and the share of its gain that is handed over."""
    kinds = ("test_alone", "used", "val_in_full", "bound")
    rows = [(folder, row) for folder, found in printed["power_of"].items() for row in found]
    heads = ["folder, pool, val questions", "gain", "discordance", '"mixture"']
    heads += ["share of the gain: test alone", "as used", "val in full", "bound"]
    lines = [
        [
            f"{_spaced(folder)}, {row['pool']}, {row['dev']}",
            f"{100 * row['gain']:.1f}",
            f"{row['discordance']:.2f}",
            f"{100 * row['mixture']['used']:.0f} %",
            *(f"{100 * row['way_to_ours'][kind]:.0f} %" for kind in kinds),
        ]
        for folder, row in rows
    ]
    first = rows[0][1]
    note = f"{first['splits']} splits, {first['test']} test rows."
    return "\n".join([_table(heads, lines), note, ""])


def _spaced(name: str) -> str:
    return name.replace("_", " ")


KINDS: dict[str, Callable[[Printed], str]] = {
    "summary": quality,
    "rule_of": rule,
    "rows_of": handed_over,
    "leads_of": leads,
    "power_of": power,
    "honest_of": honest,
    "layered": layered,
    "verdicts": statistics,
    "cross_fitting": cross_fitting,
    "combiners": combiners,
    "stopping_of": stopping,
    "families": economy,
    "arms": prompts,
    "conditions": collaboration,
}
"""By a key that only this benchmark prints."""
