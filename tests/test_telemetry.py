from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.errors import LayerFailedError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.search import ModelSearch
from moa_dspy.prediction import Question
from moa_dspy.telemetry import MlflowStudy, agent_span, mixture_span, place_of_node
from moa_dspy.testing import scripted_pool

SECRET = "what is the capital of Peru"


@pytest.fixture
def spans() -> Iterator[Any]:
    """The spans of one test; a program sets a provider up once, so the door is the private one."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    found = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found))
    before = trace._TRACER_PROVIDER
    trace._TRACER_PROVIDER = provider
    yield found
    trace._TRACER_PROVIDER = before


def mixture(architecture: str = "a + b > a > synthesize(c)", **agents: Any) -> MixtureOfAgents:
    scripts = {name: (lambda _, name=name: f"I am {name}") for name in "abc"} | agents
    pool = scripted_pool(scripts)
    return MixtureOfAgents("question -> answer", architecture, pool=pool, adapter=PlainChat())


def named(found: Any) -> dict[str, Any]:
    return {span.name: span for span in found.get_finished_spans()}


def test_every_agent_has_a_span_below_that_of_the_mixture(spans: Any) -> None:
    mixture()(question=SECRET)
    found = named(spans)
    assert set(found) == {
        "MixtureOfAgents",
        "a (proposer, layer 1)",
        "b (proposer, layer 1)",
        "a (proposer, layer 2)",
        "c (aggregator)",
    }
    whole = found.pop("MixtureOfAgents")
    assert whole.attributes["moa_dspy.architecture"] == "a + b > a > synthesize(c)"
    assert {span.parent.span_id for span in found.values()} == {whole.context.span_id}
    facts = dict(found["a (proposer, layer 2)"].attributes)
    assert facts["gen_ai.agent.name"] == "a"
    assert facts["moa_dspy.role"] == "proposer"
    assert facts["moa_dspy.layer"] == 2
    assert facts["gen_ai.usage.output_tokens"] > 0
    assert (facts["moa_dspy.requests.made"], facts["moa_dspy.requests.stored"]) == (1, 0)
    assert "moa_dspy.layer" not in found["c (aggregator)"].attributes


def test_a_stored_answer_is_told_from_one_that_was_made(spans: Any) -> None:
    program = mixture("a > synthesize(c)")
    program(question=SECRET)
    spans.clear()
    program(question=SECRET)
    facts = named(spans)["a (proposer, layer 1)"].attributes
    assert (facts["moa_dspy.requests.made"], facts["moa_dspy.requests.stored"]) == (0, 1)


def test_tasks_nest_as_threads_do(spans: Any) -> None:
    asyncio.run(mixture().acall(question=SECRET))
    found = named(spans)
    whole = found.pop("MixtureOfAgents").context.span_id
    assert len(found) == 4
    assert {span.parent.span_id for span in found.values()} == {whole}


def test_a_failure_is_the_status_of_its_agent_and_of_a_mixture_without_an_answer(
    spans: Any,
) -> None:
    def down(_: str) -> str:
        raise ConnectionError("no route")

    with pytest.raises(LayerFailedError, match="0 of 1 agents answered"):
        mixture("a > synthesize(c)", a=down)(question=SECRET)
    found = named(spans)
    assert found["a (proposer, layer 1)"].status.status_code.name == "ERROR"
    assert "error.type" in found["a (proposer, layer 1)"].attributes
    assert found["MixtureOfAgents"].status.status_code.name == "ERROR"


def test_texts_are_on_a_span_only_where_they_are_asked_for(
    spans: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture("a > synthesize(c)")(question=SECRET)
    assert SECRET not in "".join(span.to_json() for span in spans.get_finished_spans())
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    spans.clear()
    mixture("a > synthesize(c)")(question=SECRET)
    facts = named(spans)["a (proposer, layer 1)"].attributes
    assert json.loads(facts["moa_dspy.inputs"]) == {"question": SECRET}
    assert facts["moa_dspy.answer"] == "I am a"


def test_nothing_is_traced_where_nothing_was_set_up() -> None:
    question = Question("propose:a#0()", "a", 0, None, {})
    with mixture_span(object()) as whole, agent_span(question, "m") as span:
        assert (whole, span) == (None, None)


@pytest.mark.parametrize(
    ("node", "place"),
    [
        ("propose:a#0()", ("proposer", 1)),
        ("propose:a#1(propose:b#0(),propose:c#0(propose:a#0()))", ("proposer", 3)),
        ("synthesize:c#0(propose:a#0())", ("aggregator", None)),
        ("select:c#0(propose:a#0())", ("ranker", None)),
    ],
)
def test_role_and_layer_are_read_off_the_node(node: str, place: tuple[str, int | None]) -> None:
    assert place_of_node(node) == place


def test_inspect_history_says_which_agent_spoke() -> None:
    mixture("a + b > synthesize(c)")(question=SECRET)
    shown = io.StringIO()
    dspy.inspect_history(n=3, file=shown)
    assert sorted(re.findall(r"\[\S+, agent (\w)\]", shown.getvalue())) == ["a", "b", "c"]
    entry = dspy.clients.base_lm.GLOBAL_HISTORY[-1]
    assert entry["agent"] == "c"
    # The time is a time as before for programs that read it.
    assert json.loads(json.dumps(entry["timestamp"])) == str(entry["timestamp"])
    assert "agent" not in str(entry["timestamp"])


def rows(name: str, n: int) -> list[dspy.Example]:
    made = (
        dspy.Example(question=f"{name} {k}", answer=str(k % 3), id=f"{name}-{k}") for k in range(n)
    )
    return [example.with_inputs("question") for example in made]


def exact(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(example.answer == prediction.answer)


def right_but(missed: int) -> Any:
    def script(prompt: str) -> str:
        k = int(re.findall(r"\d+", prompt)[-1])
        return "wrong" if k % 3 == missed else str(k % 3)

    return script


@pytest.mark.slow
def test_a_study_is_in_mlflow_with_its_trials_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)  # beside a database, MLflow keeps files in ./mlruns
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    log = MlflowStudy(uri, experiment="toy", name="mine", params={"why": "a test"})
    pool = scripted_pool({f"e{k}": right_but(k) for k in range(3)})
    search = ModelSearch(exact, pool, n_trials=5, callbacks=[log], display_progress=False)
    student = MixtureOfAgents("question -> answer", "e0", pool=pool, adapter=PlainChat())
    search.compile(student, trainset=[], valset=rows("val", 30), testset=rows("test", 30))
    report = tmp_path / "report.md"
    report.write_text("hello")
    log.finish(search.result, [report, tmp_path / "absent"])
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("toy")
    runs = client.search_runs([experiment.experiment_id])
    by_id = {run.info.run_id: run for run in runs}
    study = by_id.pop(log.run_id)
    assert study.info.status == "FINISHED"
    assert study.data.params["pick"] == str(search.result.pick)
    assert study.data.params["why"] == "a test"
    assert study.data.metrics["test_pick"] == search.result.test["pick"].score
    assert study.data.tags["verdict.kind"] == search.result.verdict.kind
    assert [file.path for file in client.list_artifacts(log.run_id)] == ["report.md"]
    assert len(client.get_metric_history(log.run_id, "score")) == len(search.result.trials)
    trials = {run.data.params["architecture"]: run for run in by_id.values()}
    assert set(trials) == {trial.architecture for trial in search.result.trials}
    assert {run.data.tags["mlflow.parentRunId"] for run in trials.values()} == {log.run_id}
    assert trials["e0"].data.metrics["score"] == pytest.approx(2 / 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # MLflow's own
def test_autolog_shows_agents_by_name_below_the_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    import mlflow
    import mlflow.dspy

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.dspy.autolog()
    try:
        mixture("a + b > synthesize(c)")(question=SECRET)
        mlflow.flush_trace_async_logging()
        trace = mlflow.get_trace(mlflow.get_last_active_trace_id())
    finally:
        mlflow.dspy.autolog(disable=True)
    spans = {span.span_id: span for span in trace.data.spans}
    agents = {span.name: span for span in spans.values() if span.span_type == "AGENT"}
    assert set(agents) == {"a (proposer, layer 1)", "b (proposer, layer 1)", "c (aggregator)"}
    for agent in agents.values():
        assert spans[agent.parent_id].name == "MixtureOfAgents.forward"
        assert agent.attributes["moa_dspy.requests.made"] == 1
    below = [span for span in spans.values() if span.parent_id == agents["c (aggregator)"].span_id]
    assert [span.name for span in below] == ["Predict.forward"]


@pytest.mark.slow
def test_a_server_that_is_not_there_is_an_error_before_anything_is_paid() -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(StudyError, match="MLflow cannot be used at this URI"):
        MlflowStudy("notascheme://x")
