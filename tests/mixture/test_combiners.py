from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import dspy
import pytest

from moa_dspy.dspy_internals import lm15
from moa_dspy.errors import ArchitectureError, LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.streaming import AnswerListener
from moa_dspy.testing import scripted_pool
from tests.mixture.asking import BOTH, ask, program


def references(prompt: str) -> list[str]:
    """Return the numbered references of a prompt, as they are quoted."""
    return [line.split(". ", 1)[1] for line in prompt.splitlines() if line[:1].isdigit()]


@BOTH
def test_fuse_writes_from_the_references_and_an_analysis_of_them(is_async: bool) -> None:
    read: dict[str, list[str]] = {}

    def note(name: str, reply: str) -> Any:
        def script(prompt: str) -> str:
            read[name] = references(prompt)
            return reply

        return script

    scripts = {"a": "one", "b": "two", "d": note("d", "they differ"), "c": note("c", "three")}
    mixture = program(scripts, "a + b > fuse(c; analyst=d)")
    answer = ask(mixture, is_async=is_async)
    assert answer.final.text == "three"
    assert read["d"] == ['"one"', '"two"']
    # The analysis is guarded as the references are: one quoted line.
    assert read["c"] == ['"one"', '"two"', '"Analysis of the responses above:\\nthey differ"']
    assert [reply.agent for reply in answer.replies] == ["d", "c"]
    assert answer.calls == mixture.architecture.calls == 4
    assert answer.seconds == pytest.approx(
        max(r.seconds for r in answer.layers[0]) + sum(r.seconds for r in answer.replies)
    )


@BOTH
def test_without_its_analysis_an_answer_is_written_all_the_same(is_async: bool) -> None:
    scripts = {"a": "one", "b": "two", "d": lm15.ServerError("down"), "c": lambda p: p}
    answer = ask(program(scripts, "a + b > fuse(c; analyst=d)"), is_async=is_async)
    assert references(answer.final.text) == ['"one"', '"two"']
    assert [response.agent for response in answer.failures] == ["d"]
    scripts = {"a": "one", "b": "two", "c": lm15.ServerError("down")}
    with pytest.raises(LayerFailedError, match="The aggregator did not answer"):
        ask(program(scripts, "a + b > fuse(c)"), is_async=is_async)


def longest(prompt: str) -> str:
    first, second = references(prompt)
    return "1" if len(first) >= len(second) else "2"


@BOTH
def test_knockout_compares_the_last_winner_with_the_next_in_both_orders(is_async: bool) -> None:
    pairs: list[list[str]] = []

    def judge(prompt: str) -> str:
        pairs.append(references(prompt))
        return longest(prompt)

    scripts = {"a": "xx", "b": "xxx", "c": "x", "j": judge}
    mixture = program(scripts, "a + b + c > knockout(j)")
    answer = ask(mixture, is_async=is_async)
    assert answer.final is answer.layers[0][1]
    assert sorted(pairs) == sorted(
        [['"xx"', '"xxx"'], ['"xxx"', '"xx"'], ['"xxx"', '"x"'], ['"x"', '"xxx"']]
    )
    assert answer.calls == mixture.architecture.calls == 7
    assert not answer.is_undecided


@pytest.mark.parametrize(
    ("reply", "order", "winner"),
    [
        ("1", "", "a"),  # the first place twice: two verdicts that contradict each other
        ("2", "; order=c", "c"),  # the earlier in the reading order stays
        ("neither", "", "a"),
        (lm15.ServerError("down"), "; order=b", "b"),
    ],
)
def test_a_split_verdict_keeps_the_one_that_is_read_earlier(
    reply: Any, order: str, winner: str
) -> None:
    scripts = {"a": "x", "b": "y", "c": "z", "j": reply}
    answer = program(scripts, f"a + b + c > knockout(j{order})")(q="?").mixture
    assert (answer.final.agent, answer.is_undecided) == (winner, True)
    assert "1 ranker without a readable choice" in answer.summary


def test_equal_texts_and_one_that_is_left_are_not_compared() -> None:
    scripts = {"a": "x", "b": "x", "j": "2"}
    answer = program(scripts, "a + b > knockout(j)")(q="?").mixture
    assert (answer.final.agent, answer.calls, answer.replies) == ("a", 2, ())
    scripts = {"a": lm15.ServerError("down"), "b": "x", "j": "2"}
    assert program(scripts, "a + b > knockout(j)")(q="?").mixture.final.agent == "b"


@pytest.mark.parametrize(
    ("notation", "names"),
    [
        ("a + b > fuse(c)", ["aggregator", "analyst"]),
        ("a + b > knockout(c)", ["aggregator"]),
        ("a + b > vote(a; weights=b:1.5)", []),
        ("a + b + c > vote(; agree=2)", []),
        ("a + b + c > vote(; lead=0.5)", []),
    ],
)
def test_a_combiner_is_saved_and_its_prompts_are_predictors(
    notation: str, names: list[str], tmp_path: Path
) -> None:
    scripts = dict.fromkeys("abc", "1")
    mixture = program(scripts, notation, stop_early=False)
    own_names = [name for name, _ in mixture.named_predictors() if not name.startswith("layers")]
    assert sorted(own_names) == names
    for name, predictor in mixture.named_predictors():
        predictor.signature = predictor.signature.with_instructions(f"Be {name}.")
    mixture.save(tmp_path / "program.json")
    loaded = MixtureOfAgents.load(tmp_path / "program.json", pool=mixture.pool)
    assert (loaded.architecture, loaded.rules.stop_early) == (mixture.architecture, False)
    instructions = {name: each.signature.instructions for name, each in loaded.named_predictors()}
    assert instructions == {name: f"Be {name}." for name in instructions}
    other = program(scripts, "a + b > vote")
    other.load_state(mixture.dump_state())
    assert (other.architecture, other(q="?").answer) == (mixture.architecture, "1")


def test_the_writer_of_a_fusion_is_streamed() -> None:
    mixture = program(
        {"a": "x", "b": "y", "d": "differ", "c": "three words here"}, "a + b > fuse(c; analyst=d)"
    )
    streamed = dspy.streamify(mixture, stream_listeners=[AnswerListener(mixture)])

    async def read() -> list[Any]:
        return [each async for each in streamed(q="?")]

    chunks = [
        part for part in asyncio.run(read()) if isinstance(part, dspy.streaming.StreamResponse)
    ]
    assert "".join(part.chunk for part in chunks) == "three words here"


@pytest.mark.parametrize(("notation", "name"), [("fuse(b)", "analysis"), ("knockout(b)", "best")])
def test_an_input_with_the_name_of_the_combiners_own_output_is_refused(
    notation: str, name: str
) -> None:
    with pytest.raises(ArchitectureError, match=f"input '{name}' must be renamed"):
        MixtureOfAgents(
            f"{name} -> answer", f"a + b > {notation}", pool=scripted_pool({"a": "", "b": ""})
        )


def test_typed_answers_are_fused() -> None:
    reply = "[[ ## analysis ## ]]\nequal\n\n[[ ## answer ## ]]\n3\n\n[[ ## completed ## ]]"
    pool = scripted_pool(dict.fromkeys("abc", reply))
    mixture = MixtureOfAgents("q -> answer: int", "a + b > fuse(c)", pool=pool)
    assert mixture(q="?").answer == 3
