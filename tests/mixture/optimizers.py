"""DSPy's optimizers, small, on any program of the toy world."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dspy import teleprompt

from tests.mixture.world import World, exact, rows

CAREFULLY: Final = {
    "proposed_instruction": "Think CAREFULLY.",
    "natural_language_rules": "Read CAREFULLY.",
    "module_advice": '{"aggregator": "Look CAREFULLY.", "mixture.aggregator": "Look CAREFULLY."}',
    "new_instruction": "Answer CAREFULLY.",
}
"""What the outsider proposes when an optimizer asks it."""

_SMALL: Final[dict[str, Any]] = {
    "metric": exact,
    "max_bootstrapped_demos": 2,
    "max_labeled_demos": 1,
}


def labeled(world: World, student: Any) -> Any:
    return teleprompt.LabeledFewShot(k=2).compile(student, trainset=rows())


def bootstrap(world: World, student: Any) -> Any:
    return teleprompt.BootstrapFewShot(**_SMALL).compile(student, trainset=rows())


def random_search(world: World, student: Any) -> Any:
    search = teleprompt.BootstrapFewShotWithRandomSearch(
        **_SMALL, num_candidate_programs=1, num_threads=2
    )
    return search.compile(student, trainset=rows())


def optuna_search(world: World, student: Any) -> Any:
    search = teleprompt.BootstrapFewShotWithOptuna(
        **_SMALL, num_candidate_programs=2, num_threads=2
    )
    return search.compile(student, trainset=rows(), max_demos=2)


def mipro(world: World, student: Any) -> Any:
    optimizer = teleprompt.MIPROv2(**_SMALL, auto=None, num_candidates=3, num_threads=2)
    options = {"num_trials": 4, "minibatch": False}
    return optimizer.compile(student, trainset=rows()[:3], valset=rows(), **options)


def mipro_light(world: World, student: Any) -> Any:
    optimizer = teleprompt.MIPROv2(**_SMALL, auto="light", num_threads=2)
    return optimizer.compile(student, trainset=rows()[:3], valset=rows())


def gepa(world: World, student: Any) -> Any:
    optimizer = teleprompt.GEPA(
        metric=exact, max_metric_calls=60, reflection_lm=world.outsider, num_threads=2
    )
    return optimizer.compile(student, trainset=rows(), valset=rows())


def simba(world: World, student: Any) -> Any:
    options: Any = {"bsize": 4, "num_candidates": 2, "max_steps": 2, "num_threads": 2}
    return teleprompt.SIMBA(metric=exact, **options).compile(student, trainset=rows(), seed=0)


def copro(world: World, student: Any) -> Any:
    optimizer = teleprompt.COPRO(metric=exact, breadth=2, depth=1)
    return optimizer.compile(student, trainset=rows(), eval_kwargs={"num_threads": 2})


def infer_rules(world: World, student: Any) -> Any:
    optimizer = teleprompt.InferRules(num_candidates=1, num_rules=2, num_threads=2, **_SMALL)
    return optimizer.compile(student, trainset=rows())


def better_together(world: World, student: Any) -> Any:
    # It wants an LM on every predictor, of whatever program; seats do not ask it.
    student.set_lm(world.outsider)
    steps = {"d": teleprompt.BootstrapFewShot(**_SMALL)}
    optimizer = teleprompt.BetterTogether(metric=exact, **steps)
    return optimizer.compile(student, trainset=rows(), valset=rows(), strategy="d")


OPTIMIZERS: Final[dict[str, Callable[[World, Any], Any]]] = {
    "LabeledFewShot": labeled,
    "BootstrapFewShot": bootstrap,
    "BootstrapRS": random_search,
    "BootstrapFewShotWithOptuna": optuna_search,
    "MIPROv2": mipro,
    "MIPROv2 light": mipro_light,
    "GEPA": gepa,
    "SIMBA": simba,
    "COPRO": copro,
    "InferRules": infer_rules,
    "BetterTogether": better_together,
}
