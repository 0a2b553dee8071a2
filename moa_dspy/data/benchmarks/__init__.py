"""Public benchmarks as rows, from the hub or from local files."""

from moa_dspy.data.benchmarks.open_ended import AlpacaEval, Flask, MTBench
from moa_dspy.data.benchmarks.reasoning import GSM8K, TASKS, BigBenchHard, MMLUPro
from moa_dspy.data.rows import Benchmark, BenchmarkOrigin
from moa_dspy.errors import DataError

__all__ = [
    "BENCHMARKS",
    "GSM8K",
    "TASKS",
    "AlpacaEval",
    "Benchmark",
    "BenchmarkOrigin",
    "BigBenchHard",
    "Flask",
    "MMLUPro",
    "MTBench",
    "card",
]


BENCHMARKS: dict[str, Benchmark] = {
    "alpaca_eval": AlpacaEval(),
    "bbh": BigBenchHard(),
    "flask": Flask(),
    "gsm8k": GSM8K(),
    "mmlu_pro": MMLUPro(),
    "mt_bench": MTBench(),
}
"""Names in a study file and their benchmarks."""


def card(name: str) -> str:
    """Return a benchmark's origin, licence, scoring and citation as text.

    Raises:
        DataError: If there is no such benchmark.
    """
    if name not in BENCHMARKS:
        choices = ", ".join(sorted(BENCHMARKS))
        raise DataError(f"Unknown benchmark {name!r}; known ones are {choices}.")
    benchmark = BENCHMARKS[name]
    origin = benchmark.origin
    where = origin.repository if origin.config is None else f"{origin.repository}, {origin.config}"
    lines = {
        "Benchmark": benchmark.title,
        "Origin": where,
        "Splits": ", ".join(origin.splits),
        "Paper": origin.paper,
        "Licence": benchmark.licence,
        "Inputs": ", ".join(benchmark.inputs),
        "Metric": benchmark.metric or "none of ours: it needs a judge",
        "Scoring": benchmark.scoring,
        "Cite": benchmark.citation,
    }
    return "".join(f"{label}: {text}\n" for label, text in lines.items())
