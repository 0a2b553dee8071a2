"""The space of a program with two mixtures, and Optuna's samplers in it."""

from __future__ import annotations

import random
from typing import Any

import optuna
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError, StudyError
from moa_dspy.optimize import (
    PerformanceDiversitySampler,
    ProgramArchitecture,
    ProgramSpace,
    SearchSpace,
)
from moa_dspy.optimize.space.programs import in_short, read_architecture
from moa_dspy.optimize.surrogate import nodes_of

STRENGTH = {"a": 0.7, "b": 0.6, "c": 0.5, "d": 0.4}
INSIDE = SearchSpace(tuple(STRENGTH), max_depth=1)
SPACE = ProgramSpace.of({"rag.query": INSIDE, "rag.answer": INSIDE})
TEXT = "rag.query: a; rag.answer: b + c > synthesize(a; order=c)"


def parse(text: str) -> ProgramArchitecture:
    return ProgramArchitecture.parse(text)


def test_the_text_names_each_mixture_and_is_read_back() -> None:
    arch = parse(TEXT)
    assert str(arch) == TEXT
    assert arch.at("rag.answer") == Architecture.parse("b + c > synthesize(a; order=c)")
    assert read_architecture(TEXT) == arch
    assert read_architecture("b + c > synthesize(a; order=c)") == arch.at("rag.answer")
    # a, b, c, a: what each mixture calls.
    assert (arch.calls, arch.depth, arch.agents) == (4, 1, ("a", "b", "c"))
    assert arch.to_json() == {
        "mixtures": {path: part.to_json() for path, part in arch.parts},
    }


def test_programs_are_equal_if_their_mixtures_are() -> None:
    assert parse("p: a + b > vote; q: a") == parse("p: b + a > vote; q: a")
    assert len({parse("p: a; q: b"), parse("p: b; q: a"), parse("p: a; r: b")}) == 3
    assert parse("p: b + a > vote; q: a").canonical == parse("p: a + b > vote; q: a")
    assert parse("p: a; q: a") != Architecture.parse("a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p: a; p: b", "each path once, but got 'p: a; p: b'"),
        ("p: a; b", "reads `path: architecture; ...`"),
        ("p(x): a; q: b", r"Path 'p\(x\)' of a mixture must not"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        parse(text)


def test_a_program_of_no_mixture_and_a_space_of_one_are_refused() -> None:
    with pytest.raises(ArchitectureError, match="needs at least one mixture"):
        ProgramArchitecture.of({})
    with pytest.raises(StudyError, match="needs two mixtures at least, but got 1"):
        ProgramSpace.of({"p": INSIDE})


def test_parameters_stand_under_the_path_of_their_mixture() -> None:
    arch = parse("rag.query: a; rag.answer: b + c > synthesize(a)")
    params = SPACE.params(arch)
    assert params == {
        "rag.query.kind": "single",
        "rag.query.agent": "a",
        "rag.answer.kind": "layers",
        "rag.answer.depth": 1,
        "rag.answer.layer1.a": False,
        "rag.answer.layer1.b": True,
        "rag.answer.layer1.c": True,
        "rag.answer.layer1.d": False,
        "rag.answer.combine": "synthesize",
        "rag.answer.aggregator": "a",
    }
    assert SPACE.suggest(optuna.trial.FixedTrial(params)) == arch
    assert SPACE.params(Architecture.single("a")) is None
    assert SPACE.params(parse("rag.query: a; rag.reply: a")) is None
    assert not SPACE.holds(parse("rag.query: a; rag.answer: a + b + c + d > vote"))


def test_the_space_has_the_product_of_its_mixtures() -> None:
    # 4 agents; (6 pairs + 4 triples) with a vote or one of 4 writers: 4 + 10 * 5
    assert INSIDE.size == 54
    assert SPACE.size == 54**2
    drawn = SPACE.draw(random.Random(0))
    assert SPACE.holds(drawn)


def test_a_mixture_reads_what_those_before_it_answered() -> None:
    arch, other = parse("p: a; q: b"), parse("p: a; q: c")
    assert len(nodes_of(arch) - nodes_of(other)) == 1
    assert len(nodes_of(parse("p: b; q: b")) - nodes_of(arch)) == 2


def truth(arch: ProgramArchitecture) -> float:
    """The product of both mixtures: a program needs a good query and a good answer."""

    def worth(part: Architecture) -> float:
        if not part.layers:
            return STRENGTH[str(part.aggregator)]
        reads = sum(STRENGTH[name] for name in part.layers[-1]) / len(part.layers[-1])
        return 0.6 * reads + (0.5 * STRENGTH[str(part.aggregator)] if part.order == () else 0)

    return worth(arch.at("rag.query")) * worth(arch.at("rag.answer"))


VOTING = SearchSpace(tuple(STRENGTH), combines=("synthesize",), max_depth=1)
WRITING = ProgramSpace.of({"rag.query": VOTING, "rag.answer": VOTING})


def study_of(sampler: Any, n_trials: int, n_jobs: int = 1) -> list[str]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def measure(trial: optuna.Trial) -> float:
        arch = WRITING.suggest(trial)
        trial.set_user_attr("architecture", str(arch))
        return truth(arch)

    study.optimize(measure, n_trials=n_trials, n_jobs=n_jobs)
    assert {name.split(".layer1")[0].split(".")[0] for name in study.trials[-1].params} == {"rag"}
    return [trial.user_attrs["architecture"] for trial in study.trials]


@pytest.mark.slow
def test_a_plain_study_finds_the_best_pair() -> None:
    texts = study_of(PerformanceDiversitySampler(WRITING, seed=0), 40)
    assert texts[:4] == [f"rag.query: {name}; rag.answer: {name}" for name in STRENGTH]
    assert len(set(texts)) == 40
    # Of 44 architectures of each mixture, 1,936 pairs.
    best = "a + b > synthesize(a)"
    assert f"rag.query: {best}; rag.answer: {best}" in texts


@pytest.mark.slow
def test_four_threads_propose_nothing_twice() -> None:
    texts = study_of(PerformanceDiversitySampler(WRITING, seed=0), 32, n_jobs=4)
    assert len(set(texts)) == 32


def test_running_trials_count_as_taken() -> None:
    study = optuna.create_study(sampler=PerformanceDiversitySampler(WRITING, seed=0))
    asked = [study.ask() for _ in range(9)]
    assert len({str(WRITING.suggest(trial)) for trial in asked}) == 9


def test_a_small_space_is_measured_whole_before_anything_is_repeated() -> None:
    # 2 agents and their vote: 3 * 3
    tiny = SearchSpace(("a", "b"), combines=("vote",), max_depth=1)
    space = ProgramSpace.of({"p": tiny, "q": tiny})
    study = optuna.create_study(sampler=PerformanceDiversitySampler(space, seed=0))
    study.optimize(lambda trial: float(space.suggest(trial).calls), n_trials=9)
    assert len({tuple(sorted(trial.params.items())) for trial in study.trials}) == 9


@pytest.mark.parametrize("name", ["TPESampler", "NSGAIISampler", "RandomSampler"])
@pytest.mark.parametrize("n_jobs", [1, 4])
def test_samplers_of_optuna_work_in_the_space(name: str, n_jobs: int) -> None:
    texts = study_of(getattr(optuna.samplers, name)(seed=0), 20, n_jobs)
    assert len(texts) == 20
    assert all(WRITING.holds(parse(text)) for text in texts)


def test_sentences_name_at_most_seven_agents_of_a_layer() -> None:
    def vote(n: int) -> str:
        names = [f"org/m:{i}" for i in range(n)]
        weights = tuple((name, 1.5 + i) for i, name in enumerate(names))
        return str(Architecture((tuple(names),), names[0], "vote", weights=weights, lead=0.4))

    for text in (vote(7), TEXT, "all 8 agents + 7 more = 15"):
        assert in_short(f"Use {text} (the pick).") == f"Use {text} (the pick)."
    assert in_short(f"Keep a + b, not {vote(12)}: 3 %.") == (
        "Keep a + b, not org/m:0 + org/m:1 + org/m:2 + 9 more > "
        "vote(org/m:0; weights of 12; lead=0.4): 3 %."
    )
    ordered = "+".join(f" m{i} " for i in range(9)).strip()
    order = " ".join(f"m{i}" for i in range(8, 0, -1))
    assert in_short(f"{ordered} > vote(m8; order={order})") == (
        "m0 + m1 + m2 + 6 more > vote(m8; order of 8)"
    )
