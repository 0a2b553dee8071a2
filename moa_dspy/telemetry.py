"""Traces of agents' calls for OpenTelemetry and MLflow, and records of studies in MLflow.

Spans are made if the program has set up OpenTelemetry or MLflow tracing; otherwise the two packages
are not imported. Spans and records hold no keys. They hold questions and answers only with
``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from moa_dspy.errors import StudyError
from moa_dspy.prediction import Question, Response

_logger = logging.getLogger(__name__)
_NAME: Final = "moa_dspy"
_OFF: Final[AbstractContextManager[None]] = nullcontext()
_TEXTS: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_ROLES: Final = {
    "propose": "proposer",
    "select": "ranker",
    "knockout": "judge",
    "analyse": "analyst",
    "synthesize": "aggregator",
    "fuse": "aggregator",
}
_LONGEST_PARAM: Final = 500
"""Length of a parameter, in characters, that every MLflow server accepts."""


def _tracer() -> Any:
    """Return the tracer of the program's OpenTelemetry; None if it is not set up."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    return trace.get_tracer(_NAME)


def _mlflow() -> Any:
    """Return MLflow if it traces the surrounding call; else None."""
    mlflow = sys.modules.get("mlflow")
    current = getattr(mlflow, "get_current_active_span", None)
    return mlflow if current is not None and current() is not None else None


def is_traced_outside() -> bool:
    """Return whether OpenTelemetry or MLflow would record a question to an agent."""
    return _tracer() is not None or _mlflow() is not None


def mixture_span(mixture: Any, **attributes: Any) -> AbstractContextManager[Any]:
    """Return a span of a question to a mixture, for ``with``; has no effect without tracing.

    With MLflow's autolog no span is added, as it makes one for the module.
    """
    if (tracer := _tracer()) is None:
        return _OFF
    architecture = getattr(mixture, "architecture", None)
    span_attributes = (
        {f"{_NAME}.architecture": str(architecture)} if architecture is not None else {}
    )
    span_attributes |= {
        f"{_NAME}.{name}": value for name, value in attributes.items() if value is not None
    }
    span: AbstractContextManager[Any] = tracer.start_as_current_span(
        type(mixture).__name__, attributes=span_attributes
    )
    return span


def agent_span(seat: Question, model: str) -> AbstractContextManager[Any]:
    """Return a span of a question to an agent, for ``with``; see ``mixture_span``.

    Args:
        seat: The question.
        model: Name of the agent's model.
    """
    tracer, mlflow = _tracer(), _mlflow()
    if tracer is None and mlflow is None:
        return _OFF
    return _spans(seat, model, tracer, mlflow)


@contextmanager
def _spans(seat: Question, model: str, tracer: Any, mlflow: Any) -> Iterator[None]:
    role, layer = place_of_node(seat.node)
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": seat.agent,
        "gen_ai.request.model": model,
        f"{_NAME}.role": role,
        f"{_NAME}.sample": seat.sample,
    }
    if layer is not None:
        attributes[f"{_NAME}.layer"] = layer
    where = role if layer is None else f"{role}, layer {layer}"
    with ExitStack() as spans:
        if tracer is not None:
            spans.enter_context(
                tracer.start_as_current_span(f"{seat.agent} ({where})", attributes=attributes)
            )
        if mlflow is not None:
            name = f"{seat.agent} ({where})"
            spans.enter_context(mlflow.start_span(name, "AGENT", attributes=attributes))
        yield


def place_of_node(node: str) -> tuple[str, int | None]:
    """Return the role and layer (from 1) of a computation; the layer is None for the last step.

    The name of a proposer's node contains those of the layers before it, in nested parentheses.
    """
    kind = node.partition(":")[0]
    role = _ROLES.get(kind, kind)
    if role != "proposer":
        return role, None
    depth = deepest = 0
    for letter in node:
        depth += (letter == "(") - (letter == ")")
        deepest = max(deepest, depth)
    return role, deepest


def note_reply(seat: Question, reply: Response, *, n_made: int, n_stored: int) -> None:
    """Record the cost of an agent's reply on the span of its question, if there is one.

    Args:
        seat: The question.
        reply: The response.
        n_made: Number of requests sent for it.
        n_stored: Number of requests answered by a store or recording.
    """
    tracer, mlflow = _tracer(), _mlflow()
    if tracer is None and mlflow is None:
        return
    facts: dict[str, Any] = {
        "gen_ai.usage.input_tokens": reply.prompt_tokens,
        "gen_ai.usage.output_tokens": reply.completion_tokens,
        f"{_NAME}.requests.made": n_made,
        f"{_NAME}.requests.stored": n_stored,
    }
    if reply.usd is not None:
        facts[f"{_NAME}.usd"] = reply.usd
    if reply.finish_reason is not None:
        facts["gen_ai.response.finish_reasons"] = [reply.finish_reason]
    if reply.failure is not None:
        facts |= {"error.type": reply.failure.partition(":")[0], f"{_NAME}.failure": reply.failure}
    if os.environ.get(_TEXTS, "").lower() in ("true", "1"):
        facts[f"{_NAME}.inputs"] = json.dumps(dict(seat.inputs), default=str)
        facts[f"{_NAME}.answer"] = reply.text
    if tracer is not None:
        span = sys.modules["opentelemetry.trace"].get_current_span()
        span.set_attributes(facts)
        if reply.failure is not None:
            status = sys.modules["opentelemetry.trace"].StatusCode.ERROR
            span.set_status(status, reply.failure)
    if mlflow is not None:
        span = mlflow.get_current_active_span()
        span.set_attributes(facts)
        if reply.failure is not None:
            span.set_status("ERROR")


class MlflowStudy:
    """Writes a search to MLflow while it runs: a run for the study, with a nested run per trial.

    It is a callback of ``ModelSearch``::

        log = MlflowStudy("sqlite:///mlflow.db", experiment="support answers")
        search = ModelSearch(metric, pool, callbacks=[log])
        search.compile(student, trainset=rows)
        log.finish(search.result)

    A failure of the server during the search is logged once; the search goes on.

    Args:
        uri: Tracking URI; None takes that of MLflow's settings.
        experiment: Name of the experiment, which is made if it does not exist.
        name: Name of the run.
        params: Further parameters of the run; do not pass prompts or keys.

    Raises:
        StudyError: If MLflow is not installed, or the URI cannot be used.
    """

    def __init__(
        self,
        uri: str | None = None,
        *,
        experiment: str = "moa-dspy",
        name: str = "study",
        params: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise StudyError(
                "MLflow is not installed: add the extra, `pip install moa-dspy[mlflow]`."
            ) from error
        self._best: float | None = None
        self._has_failed = False
        try:
            self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
            existing = self._client.get_experiment_by_name(experiment)
            self._experiment = (
                self._client.create_experiment(experiment)
                if existing is None
                else existing.experiment_id
            )
            self._run = self._new_run(name)
        except Exception as error:
            raise StudyError(
                f"MLflow cannot be used at this URI: {type(error).__name__}. Give a file, such as "
                "sqlite:///mlflow.db, or the address of a server that runs."
            ) from error
        self._try(lambda: self._batch(self._run, params=params or {}))

    @property
    def run_id(self) -> str:
        """Id of the study's run."""
        return self._run

    def __call__(self, study: Any, trial: Any) -> None:
        """Write a finished trial; ``ModelSearch`` calls this."""
        self._try(lambda: self._write_trial(trial))

    def finish(self, result: Any, files: Sequence[Path] = ()) -> None:
        """Write the result and files as artifacts, and end the run.

        Args:
            result: Result of the search.
            files: Files such as the program and the report, stored unchanged.
        """
        self._try(lambda: self._write_result(result.to_json(), files))

    def fail(self) -> None:
        """End the run of a search that failed."""
        self._try(lambda: self._client.set_terminated(self._run, status="FAILED"))

    def _write_trial(self, trial: Any) -> None:
        facts = dict(trial.user_attrs)
        names = ("score", "rows", "calls", "usd", "seconds")
        metrics = {name: float(facts[name]) for name in names if name in facts}
        state = trial.state.name
        if state == "COMPLETE" and "score" in metrics:
            self._best = max(metrics["score"], self._best or 0.0)
        best = {} if self._best is None else {"best_score": self._best}
        self._batch(self._run, metrics={**metrics, **best}, step=trial.number)
        run = self._new_run(f"trial {trial.number}", parent=self._run)
        params = {name: facts[name] for name in ("architecture", "origin") if name in facts}
        self._batch(run, metrics=metrics, params=params, tags={"state": state})
        ended = {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}.get(state, "FAILED")
        self._client.set_terminated(run, status=ended)

    def _write_result(self, result: Mapping[str, Any], files: Sequence[Path]) -> None:
        metrics: dict[str, float] = {
            "calls_made": result["calls"]["made"],
            "calls_reused": result["calls"]["reused"],
            "seconds_taken": result["seconds"],
            "n_trials": len(result["trials"]),
        }
        if result["usd"] is not None:
            metrics["usd_paid"] = result["usd"]
        for split in ("val", "test"):
            for name, row in result[split].items():
                if row["score"] is not None:
                    metrics[f"{split}_{name}"] = row["score"]
        for name, gap in result["differences"].items():
            metrics[f"test_pick_minus_{name}"] = gap["estimate"]
        verdict = result["verdict"]
        tags = {"verdict": verdict["text"], "verdict.kind": verdict["kind"]}
        params = {
            "pick": result["pick"],
            "recommended": result["recommended"],
            "seed": result["seed"],
        }
        versions = {f"version.{name}": text for name, text in result["versions"].items()}
        self._batch(self._run, metrics=metrics, params={**params, **versions}, tags=tags)
        for file in files:
            if file.is_file():
                self._client.log_artifact(self._run, str(file))
        self._client.set_terminated(self._run)

    def _new_run(self, name: str, *, parent: str | None = None) -> str:
        tags = {"mlflow.runName": name} | ({"mlflow.parentRunId": parent} if parent else {})
        run: str = self._client.create_run(self._experiment, tags=tags).info.run_id
        return run

    def _batch(
        self,
        run: str,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        step: int = 0,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now = int(1000 * time.time())
        self._client.log_batch(
            run,
            [Metric(name, float(value), now, step) for name, value in (metrics or {}).items()],
            [Param(name, str(value)[:_LONGEST_PARAM]) for name, value in (params or {}).items()],
            [RunTag(name, str(value)) for name, value in (tags or {}).items()],
        )

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:
            # Money was spent on the search, so an observer must not end it.
            if not self._has_failed:
                _logger.warning("MLflow did not receive all trials: %s.", type(error).__name__)
            self._has_failed = True
