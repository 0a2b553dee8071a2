"""Every way of combining the same three small models, live, with what a question costs.

Three local models answer forty questions; their answers are combined by vote, selection,
synthesis, knockout and analysis. Of each: the score, the difference to the best of the three
alone, calls, tokens, seconds and nominal usd of a question.

    python optimize/combiners.py --out docs/results/combiners_live.json

Needs the weights that `optimize/pools/local.toml` names. Every answer is stored: the program may
be stopped at any time and run again, and it writes the file anew after each combiner.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import dspy

from moa_dspy import MixtureOfAgents, Pool
from moa_dspy.adapters import PlainChat
from moa_dspy.agent import read_agents
from moa_dspy.calls import Calls, CallStore, call_scope
from moa_dspy.calls.timeout import in_threads
from moa_dspy.data import answer_match, read_rows
from moa_dspy.prediction import Answer
from moa_dspy.winrate import mean_interval, paired_interval

ROOT = Path(__file__).parent.parent
PROPOSERS = ("smollm2-135m", "qwen-0.5b", "qwen-1.5b")
LAYER = " + ".join(PROPOSERS)
ANALYST = "qwen-1.5b-analyst"
"""The strongest of them with room for an analysis: answers here have 16 tokens."""
ANALYSIS_TOKENS = 96
COMBINERS = (
    "vote(qwen-1.5b)",
    "vote(qwen-1.5b; agree=2)",
    "select",
    "select(qwen-1.5b)",
    "synthesize(qwen-1.5b)",
    "knockout(qwen-1.5b)",
    f"fuse(qwen-1.5b; analyst={ANALYST})",
)
SIGNATURE = dspy.make_signature(
    "question -> answer",
    "Answer the question. Reply with the answer only, in one word or number.",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One question: whether the answer was right, and what it took; 0 calls where it failed."""

    score: float
    calls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    usd: float = 0.0
    is_undecided: bool = False

    @classmethod
    def of(cls, score: float, answer: Answer) -> Measured:
        """Return the score beside the costs of all responses on the way to the answer."""
        tokens = sum(r.prompt_tokens + r.completion_tokens for r in answer.responses)
        costs = (answer.calls, tokens, answer.seconds, answer.usd or 0.0)
        return cls(score, *costs, is_undecided=answer.is_undecided)


def measured(pool: Pool, architecture: str, rows: list[dspy.Example], n: int) -> list[Measured]:
    """Return the measurement of each row; a question that got no answer is a wrong answer."""
    program = MixtureOfAgents(
        SIGNATURE,
        architecture,
        pool=pool,
        adapter=PlainChat("guarded"),
        # As the metric reads them: whole texts of these models are hardly ever equal.
        normalise="answer",
    )

    def measure(row: dspy.Example) -> Measured:
        try:
            with call_scope(example=row.id):
                prediction = program(question=row.question)
        except Exception as error:
            print(f"  {row.id}: {error}", flush=True)
            return Measured(0.0)
        return Measured.of(float(answer_match(row, prediction)), prediction.mixture)

    return in_threads(measure, rows, num_threads=n)


def results(pool: Pool, rows: list[dspy.Example], n_threads: int) -> Iterator[dict[str, Any]]:
    """Yield the three models alone, then each combiner, as a row of the file."""
    alone: dict[str, list[float]] = {}
    for architecture in (*PROPOSERS, *(f"{LAYER} > {combiner}" for combiner in COMBINERS)):
        outcomes = measured(pool, architecture, rows, n_threads)
        scores = [outcome.score for outcome in outcomes]
        if architecture in PROPOSERS:
            alone[architecture] = scores
        best = max(alone, key=lambda name: fmean(alone[name]))
        score, gain = mean_interval(scores), paired_interval(scores, alone[best])
        yield {
            "architecture": architecture,
            "score": [score.estimate, score.low, score.high],
            "over": best,
            "gain": [gain.estimate, gain.low, gain.high],
            "calls": fmean(outcome.calls for outcome in outcomes),
            "tokens": fmean(outcome.tokens for outcome in outcomes),
            "seconds": fmean(outcome.seconds for outcome in outcomes),
            "usd_per_1000": 1000 * fmean(outcome.usd for outcome in outcomes),
            "undecided": fmean(outcome.is_undecided for outcome in outcomes),
        }


def main() -> None:
    """Measure every combiner, and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/combiners_live.json")
    parser.add_argument("--store", type=Path, default=ROOT / "runs/combiners/calls.sqlite")
    parser.add_argument("--rows", type=int, default=40, help="test questions of data/quickstart")
    parser.add_argument("--threads", type=int, default=4, help="questions at the same time")
    parser.add_argument("--model-threads", type=int, help="threads of each model; default all")
    options = parser.parse_args()
    agents = [agent for agent in read_agents(ROOT / "optimize/pools/local.toml")]
    strong = next(agent for agent in agents if agent.name == PROPOSERS[-1])
    agents.append(replace(strong, name=ANALYST, max_tokens=ANALYSIS_TOKENS))
    pool = Pool(
        [replace(agent, n_threads=options.model_threads) for agent in agents],
        calls=Calls(CallStore(options.store)),
    )
    path = ROOT / "data/quickstart/tasks.jsonl"
    rows = [row for row in read_rows(path, inputs=["question"]) if row.split == "test"]
    rows = rows[: options.rows]
    rows_written: list[dict[str, Any]] = []
    for row in results(pool, rows, options.threads):
        rows_written.append(row)
        written = {"rows": len(rows), "combiners": rows_written}
        options.out.write_text(json.dumps(written, indent=1) + "\n", "utf-8")
        print(f"{row['architecture']}: {row['score'][0]:.3f}", flush=True)


if __name__ == "__main__":
    main()
