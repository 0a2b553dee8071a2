"""What does not fit is refused before any call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
import pytest
from dspy import teleprompt as tp
from dspy.teleprompt.gepa import InstructionProposer

from moa_dspy.errors import ArchitectureError, DataError, StudyError
from moa_dspy.optimize import ModelSearch, optimize_aggregator
from tests.optimize.prompts.optimizers import copro
from tests.optimize.prompts.world import World, exact, make_world, mixture, rows


def refused(
    world: World, error: type[Exception], message: str, *, optimizer: Any = None, **options: Any
) -> None:
    """Raise unless the call is refused with the message, and no model was asked."""
    given: dict[str, Any] = {"trainset": rows("train"), "valset": rows("val")}
    given |= {"program": mixture(world), "optimizer": optimizer or copro(world.outsider)}
    with pytest.raises(error, match=message):
        optimize_aggregator(**{**given, **options})
    assert world.log.counts == dict.fromkeys("abcg", 0)


NEEDS: dict[str, tuple[Callable[[], Any], str]] = {
    "COPRO": (lambda: tp.COPRO(metric=exact), "prompt_model"),
    "SIMBA": (lambda: tp.SIMBA(metric=exact, bsize=4), "prompt_model"),
    "InferRules": (lambda: tp.InferRules(metric=exact), "teacher_settings"),
    "GEPA": (
        lambda: tp.GEPA(metric=exact, auto="light", instruction_proposer=InstructionProposer()),
        "reflection_lm",
    ),
}


@pytest.mark.parametrize("name", NEEDS)
def test_an_optimizer_without_an_lm_to_write_with_is_refused(name: str) -> None:
    make, attribute = NEEDS[name]
    message = f"{name} needs a language model to write prompts and has none: .* `{attribute}`"
    refused(make_world(), StudyError, message, optimizer=make())


def test_the_steps_of_better_together_are_looked_at_too() -> None:
    world = make_world()
    steps = {"c": tp.COPRO(metric=exact), "w": tp.BootstrapFinetune(metric=exact)}
    both = tp.BetterTogether(metric=exact, **steps)
    message = r"`strategy` 'p -> w -> p' of BetterTogether must name .* \(c\), but has 'p'"
    refused(world, StudyError, message, optimizer=both)
    options: dict[str, Any] = {"optimizer": both, "compile_options": {"strategy": "c"}}
    refused(world, StudyError, "COPRO needs a language model", **options)
    options["compile_options"] = {"strategy": "w"}
    refused(world, StudyError, r"prompts \(c\), but has 'w'", **options)
    options["compile_options"] = {
        "strategy": "c",
        "optimizer_compile_args": {"c": {"trainset": []}},
    }
    with dspy.context(lm=world.outsider):
        message = "`optimizer_compile_args` cannot have 'trainset'"
        refused(world, StudyError, message, **options)


def test_what_is_no_optimizer_of_prompts_is_refused() -> None:
    world = make_world()
    message = (
        "`optimizer` must be an instance of a DSPy optimizer of prompts, such as .*COPRO.* got "
    )
    search = ModelSearch(exact, world.pool)
    for optimizer, name in (("COPRO", "str"), (tp.COPRO, "COPRO"), (search, "ModelSearch")):
        refused(world, StudyError, message + name, optimizer=optimizer, metric=exact)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("exact", "must be a function of .*, but got 'exact'"),
        (lambda example: 1.0, r"but <lambda> has the signature \(example\)"),
        (lambda *, gold, pred: 1.0, r"has the signature \(\*, gold, pred\)"),
        (lambda row, said, trace: 1.0, r"has the signature \(row, said, trace\)"),
        (lambda a, b, c, d, e, f: 1.0, r"has the signature \(a, b, c, d, e, f\)"),
    ],
)
def test_a_metric_of_the_wrong_signature_is_refused(metric: Any, message: str) -> None:
    refused(make_world(), StudyError, message, metric=metric)


def test_a_metric_is_needed_from_somewhere() -> None:
    refused(make_world(), StudyError, "`metric` must be given", optimizer=tp.LabeledFewShot())


def test_rows_that_overlap_are_refused() -> None:
    world = make_world()
    again = [row.copy(id=f"again-{row.id}").with_inputs("question") for row in rows("val")]
    message = r"trainset \('again-val-0'\) and valset \('val-0'\) have the same inputs"
    refused(world, DataError, message, trainset=again)
    message = r"valset \('val-0'\) and testset \('again-val-0'\) have the same inputs"
    refused(world, DataError, message, testset=again)
    message = "Id 'val-0' is in 'trainset' and in 'valset'"
    refused(world, DataError, message, trainset=rows("val"))
    refused(world, DataError, "'trainset' is empty, but it must have at least one row", trainset=[])
    refused(world, DataError, "'valset' is empty, but it must have at least one row", valset=[])
    bare = [dspy.Example(question="task 1", answer="Q1")]
    refused(world, DataError, "Row 0 of val has no inputs", valset=bare)
    unknown = [dspy.Example(question=object(), answer="Q1").with_inputs("question")]
    refused(world, DataError, "The inputs of row 'train-0' must be JSON .*object", trainset=unknown)


@pytest.mark.parametrize(
    ("architecture", "layer", "message"),
    [
        ("a", None, "`program` is the single agent a, which reads no references"),
        ("a + b > vote", None, "The last step of a .* asks no model"),
        ("a + b > select", None, "The last step of a .* asks no model"),
        ("a + b > synthesize(c)", 1, r"`layer` must .* \(none here\), or None .* got 1; .* has 1"),
        ("a > b > synthesize(c)", 3, r"`layer` must be one that reads references \(2\), .* got 3"),
        ("a > b > synthesize(c)", True, "`layer` must be one .* got True"),
    ],
)
def test_an_architecture_in_which_nobody_reads_there_is_refused(
    architecture: str, layer: Any, message: str
) -> None:
    world = make_world()
    program = mixture(world, architecture)
    refused(world, ArchitectureError, message, program=program, layer=layer)


def test_options_that_do_not_fit_are_refused() -> None:
    world = make_world()
    message = "`program` must be a MixtureOfAgents or hold one, but is a Predict"
    refused(world, StudyError, message, program=dspy.Predict("question -> answer"))
    message = "`compile_options` do not fit COPRO: .*'depths'"
    refused(world, StudyError, message, compile_options={"depths": 1})
    message = "`compile_options` cannot have 'valset'"
    refused(world, StudyError, message, compile_options={"valset": []})
    message = "`bsize` of SIMBA must be at most the number of train rows, 6, but got 32"
    refused(
        world, StudyError, message, optimizer=tp.SIMBA(metric=exact, prompt_model=world.outsider)
    )
    for name, value in {
        "tuning_share": 1.0,
        "alpha": 0.5,
        "min_gain": 0.0,
        "num_threads": 0,
    }.items():
        refused(world, StudyError, f"but got .*{value}", **{name: value})


def test_what_an_optimizer_raises_names_it() -> None:
    world = make_world()
    options: Any = {"auto": None, "num_candidates": 2, "prompt_model": world.outsider}
    optimizer = tp.MIPROv2(exact, task_model=world.outsider, **options)
    with pytest.raises(StudyError, match="MIPROv2 raised ValueError: Minibatch size cannot exceed"):
        optimize_aggregator(
            mixture(world),
            optimizer,
            rows("train"),
            rows("val"),
            compile_options={"num_trials": 2},
        )
