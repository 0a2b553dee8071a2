"""Mutates study files and pool files and counts what a user should never see.

Usage: python tests/bench/fuzz_studies.py [--json] [--studies 2000] [--pools 1000] [--seed 0]
       [--whole 0.05] [--seconds 20]

Every mutated file is run as ``moa-dspy optimize`` would run it, up to the first paid call of the
single agents (a part of those that are accepted, ``--whole``, to the end). The agents are answered
by a server of this process.

tracebacks: errors that are not a ``MoaError``, which the command shows as one line.
hangs: runs that did not end within ``--seconds``; the stacks of all threads are printed.
written_on_refusal: refused runs that left a file or folder.
keys_shown: errors that show the text which was planted where a key may stand by mistake.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from moa_dspy.errors import MoaError
from moa_dspy.optimize import run_study
from moa_dspy.optimize.progress import Snapshot
from tests.servers.chat import Reply, serving

KEY = "sk-planted-0123456789abcdefghijklmnop"
STUDY = """
name = "toy"
seed = 1
pool = "pool.toml"
[task]
signature = "question -> answer"
instructions = "Be brief."
adapter = "plain"
module = "predict"
metric = "answer_match"
normalise = "text"
[data]
path = "rows.jsonl"
inputs = ["question"]
split_column = "split"
limit = { val = 3, test = 3 }
[calls]
outage_seconds = 2.0
[space]
agents = ["e0", "e1"]
combines = ["vote", "synthesize"]
aggregators = ["e0"]
max_depth = 1
min_width = 2
max_width = 2
max_samples = 1
listed = ["e0 + e1 > vote"]
never_together = []
orders = ["name"]
[search]
n_trials = 4
objectives = ["win_rate", "diversity"]
diversity = "disagreement"
diversity_weight = 0.0
random_share = 0.2
num_threads = 2
[limits]
usd = 1.0
[budget]
calls = 500
[prompts]
candidates = ["own_first"]
"""
POOL = """
[[agents]]
name = "e0"
model = "openai/e0"
temperature = 0.0
max_tokens = 64
api_base = "{base}"
num_retries = 0
timeout_seconds = 2.0
max_concurrent = 4
usd_per_million_prompt_tokens = 1.0
usd_per_million_completion_tokens = 0.0
[[agents]]
name = "e1"
model = "openai/e1"
temperature = 0.7
api_base = "{base}"
num_retries = 0
timeout_seconds = 2.0
usd_per_million_prompt_tokens = 1.0
usd_per_million_completion_tokens = 0.0
"""
VALUES: list[Any] = [
    *(0, 1, -1, 2, 3, 2**31, 2**32, 2**63, -(2**63), 10**30, 1.5, -0.5, 1e308, 0.0),
    *(float("nan"), float("inf"), float("-inf"), True, False),
    *("", " ", ".", "..", "../x", "a/b", "x" * 300, "\u0000", "\U0001f600", "question", KEY),
    *("question -> an wer", "-> answer", "question ->", "a, a -> b", "q: int -> a: Foo", "lm -> a"),
    *(
        "e0",
        "e9",
        "e0 + e1 > vote",
        "e0 * 3 > vote(",
        "vote",
        "module:name",
        ":",
        "os:path",
        "json:x",
    ),
    *([], [[]], [""], ["e0", "e0"], ["e0", "e1"], [1], [["e0", "e1"]], [["e0"]], {}, {"a": 1}),
    {"train": 1, "val": 2, "test": 2},
]


class Accepted(Exception):  # noqa: N818  # no error
    """Ends the run of a study that went as far as the single agents."""


class HangError(BaseException):
    """A run took too long."""


def answer(body: dict[str, Any]) -> Reply:
    """Answer a question by its last word; each agent is wrong on a third of the numbers."""
    words = str(body["messages"][-1]["content"]).split() or ["none"]
    rest = {"e0": 2, "e1": 1}.get(body["model"], 0)
    is_wrong = words[-1].isdecimal() and int(words[-1]) % 3 == rest
    return Reply("not known" if is_wrong else words[-1], split=lambda text: [text])


def mutated(content: Any, rng: random.Random) -> Any:
    """Return plain data with one to three changes: values, types, names, absences, additions."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        table = rng.choice([content, *_tables(content)])
        if not table:
            continue
        key = rng.choice(list(table))
        kind = rng.random()
        if kind < 0.7:
            table[key] = rng.choice(VALUES)
        elif kind < 0.8:
            del table[key]
        elif kind < 0.9:
            table[rng.choice(["gain", "n_threads", "agent", "x", f"{key}s"])] = table[key]
        else:
            other = rng.choice(list(table))
            table[key], table[other] = table[other], table[key]
    return content


def _tables(value: Any) -> list[dict[str, Any]]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [value] if isinstance(value, dict) else []
    return found + [table for item in inner for table in _tables(item)]


def to_toml(content: dict[str, Any]) -> str:
    """Return plain data as TOML; tables are written inline."""
    return "".join(f"{json.dumps(key)} = {_value(value)}\n" for key, value in content.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\u007f", "\\u007f")
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def stop_at_single_agents(snapshot: Snapshot, /) -> None:
    if snapshot.stage != "probe":
        raise Accepted


def outcome_of(run: Callable[[], Any], *, seconds: int) -> tuple[str, str]:
    """Return a word for how ``run`` ended, and the text of its error."""

    def ring(number: int, frame: Any) -> None:
        raise HangError

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    # Where it hangs, in every thread: shown shortly before it is ended.
    faulthandler.dump_traceback_later(0.95 * seconds)
    try:
        run()
    except Accepted:
        return "accepted", ""
    except HangError:
        return "hangs", ""
    except MoaError as error:
        return "refused", str(error)
    except Exception as error:
        return "tracebacks", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    return "finished", ""


def check(
    folder: Path, study: str, pool: str, *, is_whole: bool, seconds: int
) -> tuple[list[str], str]:
    """Run one study in a new folder; return what is to be counted, and the error."""
    rows = [
        {"split": split, "question": f"{split} {i}", "answer": str(i)}
        for split in ("train", "val", "test")
        for i in range(6)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (folder / "pool.toml").write_text(pool, "utf-8")
    (folder / "study.toml").write_text(study, "utf-8")
    before = {*folder.rglob("*")}
    options: dict[str, Any] = {} if is_whole else {"show": stop_at_single_agents}
    how, error = outcome_of(
        lambda: run_study(folder / "study.toml", out=folder / "runs" / "toy", **options),
        seconds=seconds,
    )
    counted = [how]
    # Words of an endpoint or a budget's end come late, when answers were paid for and are kept.
    is_late = is_whole or how == "accepted"
    if how in ("refused", "tracebacks") and not is_late and {*folder.rglob("*")} != before:
        counted.append("written_on_refusal")
    # Names are for everybody to read; a key that stands there is shown.
    if KEY in error and f'"name" = "{KEY}"' not in pool and "pool has" not in error:
        counted.append("keys_shown")
    return counted, error


def fuzz(
    n_studies: int,
    n_pools: int,
    *,
    seed: int,
    whole: float,
    verbose: bool,
    seconds: int = 20,
) -> dict[str, Any]:
    """Run all mutations and return the counts."""
    rng, counts, started = random.Random(seed), Counter[str](), time.monotonic()
    with serving(answer) as server:
        pool = POOL.replace("{base}", server.url)
        contents = {"study": tomllib.loads(STUDY), "pool": tomllib.loads(pool)}
        kinds = ["study"] * n_studies + ["pool"] * n_pools
        for kind in kinds:
            text = to_toml(mutated(contents[kind], rng))
            files = (text, pool) if kind == "study" else (STUDY, text)
            with tempfile.TemporaryDirectory() as folder:
                is_whole = rng.random() < whole
                counted, error = check(Path(folder), *files, is_whole=is_whole, seconds=seconds)
            counts.update(counted)
            counts[kind] += 1
            if verbose and {*counted} & {*BAD}:
                print(counted, error, text, sep="\n", end="\n\n", file=sys.stderr)
    return {
        **{name: counts[name] for name in (*BAD, "refused", "accepted", "finished")},
        **{"studies": counts["study"], "pools": counts["pool"]},
        "seconds": time.monotonic() - started,
    }


BAD = ("tracebacks", "hangs", "written_on_refusal", "keys_shown")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Mutate study files and pool files.")
    parser.add_argument("--json", action="store_true", help="print on one line, for programs")
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--pools", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole", type=float, default=0.05, help="part that is run to the end")
    parser.add_argument("--seconds", type=int, default=20, help="after which a run hangs")
    parser.add_argument("--quick", action="store_true", help="a few of each")
    options = parser.parse_args(arguments)
    if options.quick:
        options.studies, options.pools, options.whole = 40, 20, 0.0
    found = fuzz(
        options.studies,
        options.pools,
        seed=options.seed,
        whole=options.whole,
        verbose=not options.json,
        seconds=options.seconds,
    )
    print(json.dumps(found, indent=None if options.json else 2))


if __name__ == "__main__":
    main(sys.argv[1:])
