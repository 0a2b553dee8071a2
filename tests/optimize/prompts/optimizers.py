"""DSPy's optimizers, small, each with the options of its ``compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dspy import teleprompt as tp

from moa_dspy.optimize.prompts import ReferenceDemos, TryPrompts
from tests.optimize.prompts.world import exact

_DEMOS: Final[dict[str, Any]] = {
    "metric": exact,
    "max_bootstrapped_demos": 2,
    "max_labeled_demos": 1,
}


def copro(lm: Any) -> Any:
    return tp.COPRO(prompt_model=lm, metric=exact, breadth=2, depth=1)


def mipro(lm: Any) -> Any:
    options: Any = {"max_bootstrapped_demos": 0, "max_labeled_demos": 0, "num_candidates": 3}
    return tp.MIPROv2(exact, prompt_model=lm, task_model=lm, auto=None, num_threads=1, **options)


def gepa(lm: Any) -> Any:
    return tp.GEPA(metric=exact, max_metric_calls=40, reflection_lm=lm, num_threads=1)


def simba(lm: Any) -> Any:
    options: Any = {"bsize": 8, "num_candidates": 3, "max_steps": 1, "num_threads": 2}
    return tp.SIMBA(metric=exact, prompt_model=lm, **options)


def bootstrap(lm: Any) -> Any:
    return tp.BootstrapFewShot(**_DEMOS, max_rounds=2)


def random_search(lm: Any) -> Any:
    options: Any = {"num_candidate_programs": 1, "num_threads": 2}
    return tp.BootstrapFewShotWithRandomSearch(**_DEMOS, **options)


def optuna_search(lm: Any) -> Any:
    options: Any = {"num_candidate_programs": 2, "num_threads": 2}
    return tp.BootstrapFewShotWithOptuna(**_DEMOS, **options)


def infer_rules(lm: Any) -> Any:
    return tp.InferRules(
        num_candidates=2, num_rules=2, num_threads=2, teacher_settings={"lm": lm}, **_DEMOS
    )


def better_together(lm: Any) -> Any:
    return tp.BetterTogether(metric=exact, g=gepa(lm), d=bootstrap(lm))


OPTIMIZERS: Final[dict[str, tuple[Callable[[Any], Any], dict[str, Any]]]] = {
    "BetterTogether": (better_together, {"strategy": "g -> d"}),
    "BootstrapFewShot": (bootstrap, {}),
    "BootstrapFewShotWithOptuna": (optuna_search, {"max_demos": 2}),
    "BootstrapFewShotWithRandomSearch": (random_search, {}),
    "COPRO": (copro, {"eval_kwargs": {"num_threads": 2}}),
    "GEPA": (gepa, {}),
    "InferRules": (infer_rules, {}),
    "LabeledFewShot": (lambda lm: tp.LabeledFewShot(k=2), {}),
    "MIPROv2": (mipro, {"num_trials": 4, "minibatch": False}),
    "ReferenceDemos": (lambda lm: ReferenceDemos(n=2), {}),
    "SIMBA": (simba, {}),
    "TryPrompts": (lambda lm: TryPrompts(["Be quick.", "Read CAREFULLY."]), {}),
}
