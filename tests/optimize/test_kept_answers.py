"""Answers that are kept beside their calls: the same result, and DSPy is not asked."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy.utils.callback import BaseCallback

from moa_dspy.adapters import PlainChat
from moa_dspy.aggregators import node_name
from moa_dspy.architecture import Architecture
from moa_dspy.calls import Calls, CallStore
from moa_dspy.calls.store.store import CallFilter, prune
from moa_dspy.data import METRICS
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import Evaluator, ModelSearch, SearchSpace
from moa_dspy.optimize.kept_answers import KeptAnswers
from moa_dspy.pool import Pool
from moa_dspy.prediction import Question
from moa_dspy.seats import Seats
from moa_dspy.testing import scripted_pool

Script = Callable[[str], str]
Make = Callable[..., Any]
NAMES = ("a", "b", "c")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "calls.sqlite"


def knows(*rests: int) -> Script:
    """Answer a number unless its rest of 5 is one of ``rests``; repeat what was read after it."""

    def reply(prompt: str) -> str:
        number = int(prompt.splitlines()[0].split()[-1])
        return f"I say {len(prompt)}: {'x' * (number % 5 in rests)}{number}"

    return reply


SCRIPTS = {"a": knows(0), "b": knows(1, 2), "c": knows(3)}


def pool_over(path: Path, scripts: dict[str, Script] | None = None) -> Pool:
    return scripted_pool(
        scripts or SCRIPTS,
        calls=Calls(CallStore(path)),
        usd_per_million_tokens=dict.fromkeys(NAMES, 2.0),
    )


def of_the_user(example: Any, prediction: Any) -> float:
    return METRICS["answer_match"](example, prediction)


def rows_of(split: str, n: int) -> list[dspy.Example]:
    return [
        dspy.Example(id=f"{split}-{i}", question=f"{split} {i}", answer=str(i)).with_inputs(
            "question"
        )
        for i in range(n)
    ]


def searched(path: Path, metric: Any, adapter: Any = None) -> tuple[dict[str, Any], int]:
    """Return the result of a search over a store, and how many calls DSPy was asked for."""
    pool = pool_over(path)
    student = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=adapter or PlainChat())
    space = SearchSpace(NAMES, ("synthesize", "vote"), max_depth=2, max_width=2)
    search = ModelSearch(metric, pool, space=space, n_trials=6)
    splits = {"valset": rows_of("val", 12), "testset": rows_of("test", 12)}
    search.compile(student, trainset=rows_of("train", 1), **splits)
    n_asked = sum(len(pool.lm(name).history) for name in NAMES)
    pool.calls.store.close()  # type: ignore[attr-defined]  # it is a CallStore
    found = search.result.to_json()
    # What the clock says differs from run to run.
    return {k: v for k, v in found.items() if k not in ("seconds", "versions")}, n_asked


@pytest.mark.slow
def test_a_finished_search_is_read_back_without_dspy_and_is_the_same(place: Path) -> None:
    made, n_made = searched(place, METRICS["answer_match"])
    # A function of the user's may read DSPy's history, so for it DSPy is asked as ever.
    asked, n_asked = searched(place, of_the_user)
    kept, n_kept = searched(place, METRICS["answer_match"])
    assert n_made >= made["calls"]["made"] > 100
    assert asked["calls"]["made"] == kept["calls"]["made"] == 0
    assert n_asked > 100
    assert n_kept == 0
    assert kept == asked


@pytest.mark.slow
def test_where_dspy_keeps_no_history_any_metric_will_do(place: Path) -> None:
    searched(place, of_the_user)
    with dspy.context(disable_history=True):
        first, _ = searched(place, of_the_user)  # keeps the answers
        pool = pool_over(place, dict.fromkeys(NAMES, never))
        mixture = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())
        runner = Evaluator(mixture, of_the_user, 1)
        rows = rows_of("val", 12)
        outcomes = runner.measure(Architecture.parse("a"), rows)
    assert first["calls"]["made"] == 0
    # a misses numbers 0, 5 and 10
    assert sum(outcome.score for outcome in outcomes) == 9
    assert pool.lm("a").history == []


def never(prompt: str) -> str:
    raise AssertionError(f"A stored call was made again: {prompt}")


def test_calls_are_counted_as_reused_with_what_they_cost(place: Path) -> None:
    rows, outcomes, tables = rows_of("val", 8), [], []
    for _ in range(2):
        pool = pool_over(place)
        mixture = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())
        runner = Evaluator(mixture, METRICS["answer_match"], 1)
        outcomes.append(runner.measure(Architecture.parse("a + b > synthesize(c)"), rows))
        tables.append(runner.node_cache.table.by_agent())
        spent = pool.calls.ledger.spending
        n_asked = sum(len(pool.lm(name).history) for name in NAMES)
    assert outcomes[0] == outcomes[1]
    assert {name: count.made for name, count in tables[0].items()} == dict.fromkeys(NAMES, 8)
    assert {name: count.reused for name, count in tables[1].items()} == dict.fromkeys(NAMES, 8)
    assert (spent.made, spent.reused, n_asked) == (0, 24, 0)


@pytest.mark.parametrize("text", ["a + b > c > synthesize(b)", "a + b + c > vote(a)", "b"])
def test_rows_of_a_block_that_are_kept_are_read_and_the_others_asked(
    place: Path, text: str
) -> None:
    rows, found = rows_of("val", 12), []
    kept, every = rows[2::3], rows  # 4 of 12, between others
    for part in (kept, every, every):
        pool = pool_over(place)
        mixture = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())
        runner = Evaluator(mixture, METRICS["answer_match"], 1)
        outcomes = runner.measure(Architecture.parse(text), part)
        spent = pool.calls.ledger.spending
        asked = sum(outcome.calls for outcome in outcomes)
        assert runner.node_cache.table.rows == {"": len(part)}
        assert spent.made + spent.reused == asked
        found.append((outcomes, asked, spent.made))
    (first, n_first, _), (second, n, made), (third, _, made_again) = found
    assert second[2::3] == first
    assert third == second
    assert (made, made_again) == (n - n_first, 0)


class Taste(pydantic.BaseModel):
    """A type of the user's."""

    word: str


@pytest.mark.parametrize(
    "signature", ["question -> answer: list[str]", "question -> answer, n: int"]
)
@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()])
def test_typed_fields_come_back_as_they_were(place: Path, signature: str, adapter: Any) -> None:
    def reply(prompt: str) -> str:
        value = '["x", "y"]' if "list" in signature else "x"
        if isinstance(adapter, dspy.JSONAdapter):
            return (
                f'{{"answer": {value if "list" in signature else chr(34) + "x" + chr(34)}, "n": 3}}'
            )
        if isinstance(adapter, dspy.XMLAdapter):
            return f"<answer>{value}</answer><n>3</n>"
        return f"[[ ## answer ## ]]\n{value}\n\n[[ ## n ## ]]\n3\n\n[[ ## completed ## ]]"

    found = []
    for _ in range(2):
        pool = pool_over(place, {"a": reply})
        mixture = MixtureOfAgents(signature, "a", pool=pool, adapter=adapter)
        cache = Evaluator(mixture, METRICS["answer_match"], 1)
        program = cache.ask(Architecture.parse("a"), rows_of("val", 1)[0])
        cache.node_cache.kept.flush()
        found.append((dict(program.items()), program.mixture.final))
    assert found[0] == found[1]
    assert pool.lm("a").history == []
    assert found[0][0]["answer"] == (["x", "y"] if "list" in signature else "x")


def test_a_failure_is_kept_as_well(place: Path) -> None:
    for _ in range(2):
        pool = pool_over(place, {"a": lambda prompt: " "})
        mixture = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())
        runner = Evaluator(mixture, METRICS["answer_match"], 1)
        (outcome,) = runner.measure(Architecture.parse("a"), rows_of("val", 1))
        assert "The model answered with an empty text" in str(outcome.failure)
        assert runner.failed()["failures"] == {"a": 1}
    assert pool.lm("a").history == []


def test_a_call_that_was_deleted_is_made_again_and_its_new_answer_counts(place: Path) -> None:
    def measured(word: str) -> str:
        pool = pool_over(place, {"a": lambda prompt: word})
        mixture = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())
        runner = Evaluator(mixture, METRICS["answer_match"], 1)
        (outcome,) = runner.measure(Architecture.parse("a"), rows_of("val", 1))
        return outcome.answer

    assert [measured("first"), measured("second")] == ["first", "first"]
    store = CallStore(place)
    assert prune(store.database, CallFilter(agent="a")) == 1
    assert store.database.rows("SELECT count(*) FROM kept_answers")[0][0] == 0
    assert [measured("third"), measured("fourth")] == ["third", "third"]
    # Deleted by hand, what was read of the call is still there: it is of another call.
    store.database.rows("DELETE FROM calls")
    assert [measured("fifth"), measured("sixth")] == ["fifth", "fifth"]


def test_a_process_that_ends_before_answers_are_written_loses_no_call(place: Path) -> None:
    for n_made in (1, 0):
        pool = pool_over(place)
        mixture = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())
        runner = Evaluator(mixture, METRICS["answer_match"], 1)
        runner.ask(Architecture.parse("a"), rows_of("val", 1)[0])  # without a flush
        assert pool.calls.ledger.spending.made == n_made
    database = sqlite3.connect(place)
    assert database.execute("SELECT count(*) FROM kept_answers").fetchone() == (0,)


def key_and_request(
    pool: Pool, module: Any, *, adapter: Any = None, sample: int = 0, **inputs: Any
) -> tuple[str | None, frozenset[str]]:
    """Return the key of a question, and the keys of the calls that it takes."""
    kept = KeptAnswers(is_used=True)
    question = Question("propose:a", "a", sample, module, inputs or {"question": "q 1"})
    key = kept._keys([question], pool, adapter)[0]
    before = {call.key for call in pool.calls.store}  # type: ignore[attr-defined]  # a CallStore
    Seats(pool, adapter).ask_all([question])
    after = {call.key for call in pool.calls.store}  # type: ignore[attr-defined]  # a CallStore
    return key, frozenset(after - before)


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what may be different about a question, each with the one thing that is."""
    plain = dspy.Signature("question -> answer")
    yield "plain", {}
    yield "instructions", {"module": dspy.Predict(plain.with_instructions("Be short."))}
    yield "description", {"module": dspy.Predict(plain.with_updated_fields("answer", desc="short"))}
    yield "type", {"module": dspy.Predict("question -> answer: int")}
    yield (
        "choices",
        {"module": dspy.Predict(plain.with_updated_fields("answer", Literal["x", "y"]))},
    )
    yield (
        "other choices",
        {"module": dspy.Predict(plain.with_updated_fields("answer", Literal["x", "z"]))},
    )
    yield "field", {"module": dspy.Predict("question -> answer, reason")}
    yield "order", {"module": dspy.Predict("question -> reason, answer")}
    yield "input field", {"module": dspy.Predict("question, hint: str | None -> answer")}
    yield "module", {"module": dspy.ChainOfThought(plain)}
    yield "config", {"module": dspy.Predict(plain, max_tokens=7)}
    for text in ("one", "two"):
        taught = dspy.Predict(plain)
        taught.demos = [dspy.Example(question="q", answer=text).with_inputs("question")]
        yield f"demo {text}", {"module": taught}
    for adapter in (dspy.JSONAdapter(), dspy.XMLAdapter(), PlainChat(), PlainChat("paper")):
        yield f"adapter {type(adapter).__name__} {vars(adapter)}", {"adapter": adapter}
    yield "adapter option", {"adapter": dspy.ChatAdapter(use_json_adapter_fallback=False)}
    yield "input", {"question": "q 2"}
    yield "sample", {"sample": 1}
    yield "temperature", {"temperature": 0.3}
    yield "length", {"max_tokens": 5}
    yield "identity", {"identity": "another/model@vendor"}
    yield "extra", {"extra_body": {"top_k": 3}}


def test_whatever_changes_the_request_changes_the_key(tmp_path: Path) -> None:
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for number, (name, change) in enumerate(variants()):
        pool = pool_over(tmp_path / f"{number}.sqlite", {"a": lambda prompt: "x"})
        lm = pool.lm("a")
        lm.kwargs = {"temperature": 0.9, "max_tokens": 50}
        lm.kwargs |= {k: change.pop(k) for k in ("temperature", "max_tokens") if k in change}
        if "identity" in change:
            object.__setattr__(lm.engine.caller, "identity", change.pop("identity"))
        lm.engine._extra_body = change.pop("extra_body", {})
        module = change.pop("module", dspy.Predict("question -> answer"))
        key, calls = key_and_request(pool, module, **change)
        assert key is not None, name
        assert calls, name
        found[name] = (key, calls)
    keys = [key for key, _ in found.values()]
    assert len(set(keys)) == len(keys)
    # Every one of these is another request, or another way to read its reply.
    requests = {calls for _, calls in found.values()}
    assert len(requests) >= len(found) - 2


def test_what_is_changed_in_place_is_seen(place: Path) -> None:
    pool, kept = pool_over(place), KeptAnswers(is_used=True)
    module = dspy.Predict("question -> answer")
    module.demos = [{"question": "q", "answer": "old"}]
    adapter = dspy.ChatAdapter()

    def key() -> str | None:
        return kept._keys([Question("n", "a", 0, module, {"question": "q"})], pool, adapter)[0]

    keys = [key(), key()]
    module.demos[0]["answer"] = "new"
    keys.append(key())
    module.signature.instructions = "Be short."
    keys.append(key())
    pool.lm("a").kwargs["temperature"] = 0.123
    keys.append(key())
    adapter.use_json_adapter_fallback = False
    keys.append(key())
    assert keys[0] == keys[1]
    assert None not in keys
    assert len(set(keys)) == 5


def test_the_same_agent_in_another_seat_has_the_same_key(place: Path) -> None:
    pool, kept = pool_over(place), KeptAnswers(is_used=True)
    mixture = MixtureOfAgents("question -> answer", "a + b + a > vote", pool=pool)
    first, _, third = mixture.layers[0].proposers
    keys = {
        kept._keys([Question("n", "a", 0, module, {"question": "q"})], pool, None)[0]
        for module in (first, third)
    }
    assert len(keys) == 1


class Odd(dspy.Module):
    """A module of the user's."""

    def __init__(self, signature: Any) -> None:
        super().__init__()
        self.ask = dspy.Predict(signature)

    def forward(self, **inputs: Any) -> Any:
        return self.ask(**inputs)


class OddAdapter(dspy.ChatAdapter):
    """An adapter of the user's."""


def changed(module: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize(
    ("module", "adapter", "inputs"),
    [
        (Odd("question -> answer"), None, {"question": "q"}),
        (dspy.ReAct("question -> answer", tools=[]), None, {"question": "q"}),
        (dspy.Predict("question -> answer"), OddAdapter(), {"question": "q"}),
        (dspy.Predict("question -> answer"), None, {"question": dspy.Image("https://x/y.png")}),
        (dspy.Predict("question: dspy.Image -> answer"), None, {"question": "q"}),
        (dspy.Predict("question -> answer"), None, {"question": ("q",)}),
        (dspy.Predict("question -> answer"), None, {"question": {1: "q"}}),
        (dspy.Predict("question -> answer"), None, {"question": float("nan")}),
        (dspy.Predict("question -> answer", callbacks=[BaseCallback()]), None, {"question": "q"}),
        (dspy.Predict("question -> answer"), dspy.ChatAdapter([BaseCallback()]), {"question": "q"}),
        (
            changed(dspy.Predict("question -> answer"), forward=lambda **inputs: None),
            None,
            {"question": "q"},
        ),
        (
            changed(dspy.Predict("question -> answer"), lm=dspy.LM("openai/x")),
            None,
            {"question": "q"},
        ),
        (
            dspy.Predict(
                dspy.Signature(
                    {"question": (str, dspy.InputField()), "answer": (Taste, dspy.OutputField())}
                )
            ),
            None,
            {"question": "q"},
        ),
    ],
)
def test_what_has_no_plain_form_has_no_key(
    place: Path, module: Any, adapter: Any, inputs: dict[str, Any]
) -> None:
    question = Question("n", "a", 0, module, inputs)
    assert KeptAnswers(is_used=True)._keys([question], pool_over(place), adapter) == [None]


def test_an_lm_that_is_not_adopted_or_is_watched_has_no_key(place: Path) -> None:
    question = Question("n", "a", 0, dspy.Predict("question -> answer"), {"question": "q"})
    kept = KeptAnswers(is_used=True)
    outside = Pool.from_lms({"a": dspy.utils.DummyLM([{"answer": "x"}])})
    assert outside.not_adopted
    assert kept._keys([question], outside, None)[0] is None
    pool = pool_over(place)
    assert kept._keys([question], pool, None)[0] is not None
    pool.lm("a").callbacks.append(BaseCallback())
    assert kept._keys([question], pool, None)[0] is None


@pytest.mark.parametrize(
    "settings",
    [
        {"callbacks": [BaseCallback()]},
        {"trace": []},
        {"usage_tracker": object()},
        {"lm": dspy.LM("openai/x", rollout_id=3)},
    ],
    ids=["callbacks", "trace", "usage", "rollout"],
)
def test_dspy_is_asked_where_something_of_the_callers_looks_on(
    place: Path, settings: dict[str, Any]
) -> None:
    for _ in range(2):
        pool = pool_over(place)
        mixture = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())
        runner = Evaluator(mixture, METRICS["answer_match"], 1)
        runner.measure(Architecture.parse("a"), rows_of("val", 2))
    assert len(pool.lm("a").history) == 0
    tracked = settings.get("usage_tracker") is not None
    with dspy.context(
        **({"usage_tracker": dspy.utils.usage_tracker.UsageTracker()} if tracked else settings)
    ):
        runner = Evaluator(mixture, METRICS["answer_match"], 1)
        runner.measure(Architecture.parse("a"), rows_of("val", 2))
    assert len(pool.lm("a").history) == 2


def test_a_late_answer_is_late_again_and_in_time_where_there_is_more_of_it(place: Path) -> None:
    def slowly(prompt: str) -> str:
        time.sleep(0.05)
        return "1"

    scripts: dict[str, Script] = {"a": slowly, "b": lambda prompt: "1"}
    for seconds, n_answers in ((5.0, 2), (0.02, 1), (5.0, 2)):
        pool = pool_over(place, scripts)
        mixture = MixtureOfAgents(
            "question -> answer", "a", pool=pool, adapter=PlainChat(), deadline_seconds=seconds
        )
        runner = Evaluator(mixture, METRICS["answer_match"], 1)
        runner.measure(Architecture.parse("a + b > select"), rows_of("val", 1))
        known = [runner.node_cache.known(node_name("propose", n, 0), ("val-0", None)) for n in "ab"]
        assert sum(response is not None and response.has_answer for response in known) == n_answers
