"""States and pickles of DSPy: whatever was picked, DSPy's own save and load bring it back."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import copy
from pathlib import Path
from typing import Any

import cloudpickle
import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError, PoolError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.presets import SelfMoASeq
from moa_dspy.testing import scripted_pool

SCRIPTS: dict[str, Any] = {"z": "1", "a": "2", "m": lambda prompt: prompt}
PICKS = ("m", "z + a > vote", "z + a > select", "z + a > m + a > synthesize(m)", "a*2 > select(m)")


@pytest.fixture
def pool() -> Pool:
    return scripted_pool(SCRIPTS)


class Program(dspy.Module):
    """A larger program, as a user writes it."""

    def __init__(self, pool: Pool, architecture: str = "a", **options: Any) -> None:
        super().__init__()
        self.pool = pool
        self.again = dspy.Predict("question -> rephrased")
        options = {"adapter": PlainChat(), **options}
        self.answer = MixtureOfAgents("question -> answer", architecture, pool=pool, **options)

    def forward(self, question: str) -> Any:
        return self.answer(question=question)


def searched(program: Program, architecture: str) -> Program:
    """The program with another architecture and a prompt of its own, as a search returns it."""
    made: Program = program.deepcopy()
    made.answer = program.answer.with_architecture(Architecture.parse(architecture))
    for number, seat in enumerate(made.answer.predictors()):
        seat.signature = seat.signature.with_instructions(f"Words {number}.")
        seat.demos = [dspy.Example(question="q1", answer="a1").with_inputs("question")]
    return made


def seats(program: Program) -> list[tuple[str, str, int]]:
    named = program.answer.named_predictors()
    return [
        (name, predictor.signature.instructions, len(predictor.demos)) for name, predictor in named
    ]


@pytest.mark.parametrize("picked", PICKS)
@pytest.mark.parametrize("module", [dspy.Predict, dspy.ChainOfThought])
@pytest.mark.parametrize("suffix", ["json", "pkl"])
def test_a_state_brings_back_what_was_picked(
    tmp_path: Path, pool: Pool, picked: str, module: Any, suffix: str
) -> None:
    best = searched(Program(pool, module=module), picked)
    path = tmp_path / f"best.{suffix}"
    best.save(path)
    loaded = Program(pool, module=module)
    loaded.load(path, allow_pickle=suffix == "pkl")
    assert str(loaded.answer.architecture) == picked
    assert seats(loaded) == seats(best)
    # And what was loaded can be saved and loaded again.
    loaded.save(path)
    again = Program(pool, module=module)
    again.load(path, allow_pickle=suffix == "pkl")
    assert seats(again) == seats(best)


@pytest.mark.parametrize("picked", PICKS)
@pytest.mark.parametrize("module", [dspy.Predict, dspy.ChainOfThought])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_program_with_one_agent_loads_a_mixture_that_no_search_made(
    tmp_path: Path, pool: Pool, picked: str, module: Any, is_frozen: bool
) -> None:
    built = Program(pool, picked, module=module)
    built.answer.are_proposers_frozen = is_frozen
    built.save(tmp_path / "built.json")
    loaded = Program(pool, module=module)
    loaded.load(tmp_path / "built.json")
    assert str(loaded.answer.architecture) == picked


@pytest.mark.parametrize("picked", PICKS)
def test_a_loaded_program_answers_as_the_saved_one(tmp_path: Path, pool: Pool, picked: str) -> None:
    best = searched(Program(pool), picked)
    best.save(tmp_path / "best.json")
    loaded = Program(pool)
    loaded.load(tmp_path / "best.json")
    made = pool.calls.ledger.spending.made
    answer = best(question="q").answer
    paid = pool.calls.ledger.spending.made - made
    assert loaded(question="q").answer == answer
    assert pool.calls.ledger.spending.made == made + paid  # the same requests, from the store


def test_a_state_alone_goes_from_mixture_to_mixture(pool: Pool) -> None:
    best = searched(Program(pool), "z + a > vote").answer
    other = MixtureOfAgents("question -> answer", "m > a > synthesize(z)", pool=pool)
    other.load_state(json.loads(json.dumps(best.dump_state())))
    assert str(other.architecture) == "z + a > vote"
    with pytest.raises(ArchitectureError, match="must have an entry `architecture`"):
        other.load_state({})


def test_a_program_whose_mixture_has_other_seats_than_its_state_is_told_which(pool: Pool) -> None:
    state = json.loads(json.dumps(searched(Program(pool), "z + a > vote").dump_state()))
    other = Program(pool)
    other.answer = other.answer.with_architecture(Architecture.parse("m > a > synthesize(z)"))
    message = (
        r"mixture z \+ a > vote, but the program that loads it has m > a > synthesize\(z\).*the "
        r"state lacks layers\[1\]\.proposers\[0\]\. Make the program that loads it with 'z \+ a > "
    )
    with pytest.raises(ArchitectureError, match=message):
        other.load_state(state)
    assert str(other.answer.architecture) == "m > a > synthesize(z)"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": [["z"], ["q"]]}, PoolError, "Unknown agent 'q'"),
        ({"layers": "z"}, ArchitectureError, "`layers` must be lists of names"),
        ({"seats": {}}, ArchitectureError, "has the predictors none, but this program's"),
        ({"seats": None}, ArchitectureError, "must have `seats`, one per predictor"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(
    pool: Pool, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    state = searched(Program(pool), "z > a > synthesize(m)").dump_state()
    loaded = Program(pool)
    before = seats(loaded)
    state["answer.architecture"] |= change
    with pytest.raises(error, match=message):
        loaded.load_state(state)
    assert (str(loaded.answer.architecture), seats(loaded)) == ("a", before)


def keyed_pool() -> Pool:
    agents = [Agent(name=n, model="openai/x", api_base="http://127.0.0.1:9/v1") for n in "za"]
    lm = dspy.LM("openai/m", api_key="sk-of-a-user", api_base="http://127.0.0.1:9/v1")
    given = Pool.from_lms({"m": lm})
    return Pool([*agents, given["m"]], lms={"m": given.lm("m")})


def test_no_state_and_no_pickle_holds_a_key_or_an_endpoint(tmp_path: Path) -> None:
    best = searched(Program(keyed_pool()), "z + a > synthesize(m)")
    best.save(tmp_path / "best.json")
    # An LM that was set on predictors is not asked by them, and not written either.
    best.answer.set_lm(
        dspy.LM("openai/y", api_key="sk-from-outside", api_base="http://127.0.0.1:9")
    )
    best.save(tmp_path / "program", save_program=True)
    best.answer.save(tmp_path / "mixture", save_program=True)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 5
    assert not any(text in state for state in written for text in (b"sk-", b"127.0.0.1"))
    assert best.answer.aggregator.lm is not None  # the program itself is as it was


def test_a_pickled_program_takes_a_pool_again(tmp_path: Path, pool: Pool) -> None:
    best = searched(Program(pool), "z + a > synthesize(m)")
    expected = best(question="q").answer
    best.save(tmp_path / "program", save_program=True, modules_to_serialize=[sys.modules[__name__]])
    loaded: Any = dspy.load(str(tmp_path / "program"), allow_pickle=True)
    with pytest.raises(PoolError, match=r"without its pool; it needs agents a, m, z.*pool\.attach"):
        loaded(question="q")
    with pytest.raises(PoolError, match="needs agents that the pool lacks: a, m; it has z"):
        scripted_pool({"z": "1"}).attach(loaded)
    assert pool.attach(loaded) is loaded
    assert loaded(question="q").answer == expected
    assert seats(loaded) == seats(best)
    with pytest.raises(PoolError, match="must hold a mixture, but Predict has none"):
        pool.attach(dspy.Predict("question -> answer"))


@pytest.mark.slow
def test_another_process_loads_a_pickle(tmp_path: Path, pool: Pool) -> None:
    best = searched(Program(pool), "z + a > synthesize(m)").answer
    best.save(tmp_path / "program", save_program=True)
    script = (
        "import dspy, sys\n"
        "from moa_dspy.testing import scripted_pool\n"
        "program = dspy.load(sys.argv[1], allow_pickle=True)\n"
        "pool = scripted_pool({'z': '1', 'a': '2', 'm': 'three'})\n"
        "print(pool.attach(program)(question='q').answer)\n"
    )
    run = [sys.executable, "-c", script, str(tmp_path / "program")]
    found = subprocess.run(run, capture_output=True, text=True, check=False, timeout=120)
    assert (found.stdout.strip(), found.returncode) == ("three", 0), found.stderr


def test_cloudpickle_takes_every_module_with_a_pool(pool: Pool) -> None:
    sequence = SelfMoASeq("question -> answer", "m", pool=pool, samples=2, adapter=PlainChat())
    loaded = cloudpickle.loads(cloudpickle.dumps(sequence))
    with pytest.raises(PoolError, match="it needs agents m"):
        loaded(question="q")
    assert pool.attach(loaded)(question="q").answer == sequence(question="q").answer


def test_copies_share_the_pool(pool: Pool) -> None:
    program = Program(pool).answer
    assert copy(program).pool is program.deepcopy().pool is copy(pool) is pool


def test_a_prediction_has_completions_as_any_of_dspys(pool: Pool) -> None:
    prediction = Program(pool, "z + a > synthesize(a)")(question="q")
    assert prediction.completions.answer == ["2"]
    assert len(prediction.completions) == 1
    assert dspy.majority(prediction).answer == "2"
    assert dspy.majority([prediction, dspy.Prediction(answer="2"), {"answer": "1"}]).answer == "2"
