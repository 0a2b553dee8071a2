"""Rows of files and benchmarks, their splits, and the metrics of answers that can be checked."""

from collections.abc import Callable

from moa_dspy.data.answers import normalise_answer, normalise_text, normalise_version
from moa_dspy.data.benchmarks import BENCHMARKS, card
from moa_dspy.data.benchmarks.reasoning import (
    answer_letter,
    bbh_match,
    gsm8k_match,
    last_number,
    mmlu_pro_match,
)
from moa_dspy.data.metrics import FIELD_METRICS, FieldMetric, answer_match, version_match
from moa_dspy.data.recorded import RecordedResponses, read_answers, read_recorded
from moa_dspy.data.rows import Benchmark, BenchmarkOrigin, check_outputs, read_hub, read_rows
from moa_dspy.data.splits import (
    Splits,
    find_duplicates,
    fingerprint,
    split_rows,
    without_repeated,
)
from moa_dspy.data.tables import FORMATS, accepted_answers, comparable, is_absent, plain_text

__all__ = [
    "BENCHMARKS",
    "FIELD_METRICS",
    "FORMATS",
    "METRICS",
    "Benchmark",
    "BenchmarkOrigin",
    "FieldMetric",
    "RecordedResponses",
    "Splits",
    "accepted_answers",
    "answer_letter",
    "answer_match",
    "bbh_match",
    "card",
    "check_outputs",
    "comparable",
    "fields_read",
    "find_duplicates",
    "fingerprint",
    "gsm8k_match",
    "is_absent",
    "is_pure",
    "last_number",
    "mmlu_pro_match",
    "normalise_answer",
    "normalise_text",
    "normalise_version",
    "plain_text",
    "read_answers",
    "read_hub",
    "read_recorded",
    "read_rows",
    "split_rows",
    "version_match",
    "without_repeated",
]

METRICS: dict[str, Callable[..., float]] = {
    "answer_match": answer_match,
    "bbh_match": bbh_match,
    "gsm8k_match": gsm8k_match,
    "mmlu_pro_match": mmlu_pro_match,
    "version_match": version_match,
}
"""Names in a study file and their DSPy metrics of the field `answer`."""


def is_pure(metric: Callable[..., float]) -> bool:
    """Return whether a metric is a named one of this library, of example and prediction only."""
    return isinstance(metric, FieldMetric) or metric in METRICS.values()


def fields_read(metric: Callable[..., float]) -> tuple[str, ...]:
    """Return the output fields of a row that a named metric reads; none for other metrics."""
    if isinstance(metric, FieldMetric):
        return metric.fields
    return ("answer",) if is_pure(metric) else ()
