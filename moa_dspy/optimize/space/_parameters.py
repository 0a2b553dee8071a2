"""Optuna's names of the choices, both ways; they are the study's schema and stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.space._choices import Suggests
from moa_dspy.optimize.space._reading import order_of, prompt_of
from moa_dspy.optimize.space._repair import repaired

if TYPE_CHECKING:
    from moa_dspy.optimize.space._space import SearchSpace

Params = dict[str, str | bool | int]


def suggest_layered(
    space: SearchSpace, trial: Suggests, ranking: Sequence[str], *, read_by: Sequence[str]
) -> Architecture:
    """Draw one layered architecture; what breaks a rule is repaired by ``ranking``.

    ``read_by`` are all agents, best first, as ``orders`` mean it.
    """
    depth = trial.suggest_int("depth", 1, space.max_depth)
    wanted = [_suggest_layer(space, trial, number) for number in range(1, depth + 1)]
    combine = str(trial.suggest_categorical("combine", space.combines))
    who = space.who_combines(combine)
    seats: tuple[str | None, ...] = (None,)
    if who:
        chosen = str(trial.suggest_categorical(f"{combine}.aggregator", who))
        seats = (chosen, *sorted(set(who) - {chosen}, key=ranking.index))
    may_sit = [name for name in ranking if name in space.searched]
    found = repaired(space.rules, wanted, seats, may_sit)
    if found is None:
        raise StudyError(f"No layered architecture of the space ends with {combine!r}.")
    layers, aggregator = found
    order = _one_of(trial, "order", space.orders) if who else "name"
    asks_for_prompt = combine == "synthesize" and space.prompts
    prompt = prompt_of(_one_of(trial, "prompt", space.prompts)) if asks_for_prompt else None
    return Architecture(layers, aggregator, combine, order_of(order, layers[-1], read_by), prompt)


def _one_of(trial: Suggests, name: str, choices: Sequence[str]) -> str:
    return str(trial.suggest_categorical(name, choices)) if len(choices) > 1 else choices[0]


def _suggest_layer(space: SearchSpace, trial: Suggests, number: int) -> tuple[str, ...]:
    layer: list[str] = []
    for name in space.searched:
        key, fewest = f"layer{number}.{name}", _fewest(space, name, number)
        if fewest == space.max_samples:
            layer += [name] * fewest
        elif space.max_samples == 1:
            layer += [name] * int(trial.suggest_categorical(key, [False, True]))
        else:
            layer += [name] * trial.suggest_int(key, fewest, space.max_samples)
    return tuple(layer)


def _fewest(space: SearchSpace, name: str, number: int) -> int:
    """Return how many samples of ``name`` every layer of this number has; that is no choice."""
    return int(number == 1 and name in space.must_include)


def params_of_layered(space: SearchSpace, architecture: Architecture) -> Params | None:
    """Return the choices that ``suggest_layered`` turns into ``architecture``; None if none do."""
    combine, aggregator = architecture.combine, architecture.aggregator
    is_searched = (
        space.searches_layers
        and 1 <= architecture.depth <= space.max_depth
        and combine in space.combines
    )
    who = space.who_combines(combine)
    seats = who or ((aggregator,) if combine == "vote" else (None,))
    if not is_searched or aggregator not in seats:
        return None
    if not space.rules.allow(architecture.layers, aggregator):
        return None
    last = _last_step(space, architecture)
    if last is None:
        return None
    return {"depth": architecture.depth, "combine": combine, **last, **_flags(space, architecture)}


def _flags(space: SearchSpace, architecture: Architecture) -> Params:
    chosen: Params = {}
    for number, layer in enumerate(architecture.layers, start=1):
        for name in space.searched:
            count = layer.count(name)
            if _fewest(space, name, number) < space.max_samples:
                chosen[f"layer{number}.{name}"] = bool(count) if space.max_samples == 1 else count
    return chosen


def _last_step(space: SearchSpace, architecture: Architecture) -> Params | None:
    """Return who does it, in which order, under which prompt; None if that is not in the space."""
    if architecture.combine == "vote":
        return {}
    if not architecture.aggregator_calls_a_model:
        return None if architecture.order else {}
    chosen: Params = {f"{architecture.combine}.aggregator": str(architecture.aggregator)}
    orders = [one for one in space.orders if space.read_in(one, architecture) == architecture.order]
    if not orders:
        return None
    if len(space.orders) > 1:
        chosen["order"] = orders[0]
    prompts = [one for one in space.prompts if prompt_of(one) == architecture.prompt]
    if not prompts and (architecture.prompt is not None or _has_prompts(space, architecture)):
        return None
    if prompts and len(space.prompts) > 1:
        chosen["prompt"] = prompts[0]
    return chosen


def _has_prompts(space: SearchSpace, architecture: Architecture) -> bool:
    return bool(space.prompts) and architecture.combine == "synthesize"
