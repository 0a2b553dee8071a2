"""The search in a program that holds several mixtures: all are searched together, end to end.

Every trial is an architecture for each mixture, and its score is the metric of the whole program:
a mixture reads what the modules before it answered as the program runs. Responses are shared
among trials by mixture and by what it was given.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import dspy

from moa_dspy.aggregators import NORMALISERS, Vote, node_name
from moa_dspy.architecture import Architecture
from moa_dspy.data import Splits
from moa_dspy.errors import ArchitectureError, StudyError
from moa_dspy.files import imported_instance
from moa_dspy.layers import all_predictors
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.early_facts import AgentCosts, EarlyFacts
from moa_dspy.optimize.evaluate import Evaluator, Student, mixtures_of
from moa_dspy.optimize.metric import Outcome
from moa_dspy.optimize.nodes import MixtureStandIn, place_of
from moa_dspy.optimize.options import SearchOptions
from moa_dspy.optimize.result import ComparedSystems, TrialRecord
from moa_dspy.optimize.selection import Evidence, Limits
from moa_dspy.optimize.simulated_answers import MixtureAnswers, mean_costs
from moa_dspy.optimize.space.programs import ProgramArchitecture, ProgramSpace
from moa_dspy.pool import Pool
from moa_dspy.prediction import Response
from moa_dspy.references import count_tokens

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProgramMixtures:
    """The mixtures of a program with the architectures of one trial.

    Attributes:
        architecture: Architecture of all of them.
        by_path: Each mixture.
    """

    architecture: ProgramArchitecture
    by_path: Mapping[str, MixtureOfAgents]

    @property
    def pool(self) -> Pool:
        """The agents."""
        pool: Pool = next(iter(self.by_path.values())).pool
        return pool


@dataclass(frozen=True, slots=True)
class ProgramStudent(Student):
    """A DSPy program and all mixtures in it.

    Attributes:
        mixtures: By path; ``mixture`` is the first.
    """

    mixtures: Mapping[str, MixtureOfAgents] = None  # type: ignore[assignment]  # see `of_several`

    @classmethod
    def of_several(cls, program: Any) -> ProgramStudent:
        """Find the mixtures of ``program``, in its order."""
        mixtures = {
            path.removeprefix("self."): mixture for path, mixture in mixtures_of(program).items()
        }
        return cls(program, next(iter(mixtures.values())), None, mixtures)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the mixtures in the program."""
        return tuple(self.mixtures)

    def lifted(self, architecture: Architecture) -> ProgramArchitecture:
        """Return the architecture of the program; that of a mixture is meant for every one."""
        if isinstance(architecture, ProgramArchitecture):
            return architecture
        return ProgramArchitecture.everywhere(self.paths, architecture)

    def with_architecture(self, architecture: Architecture) -> Any:
        """Return a copy of the program that has the architectures; its seats' prompts are new."""
        return self.with_module(self.mixture_with(architecture))

    def replaced_by(self, module: Any) -> dict[int, Any]:
        """Return what stands in a copy for each mixture: another one, or what asks for it."""
        inside: ProgramMixtures = module.mixture if isinstance(module, MixtureStandIn) else module
        is_asked = isinstance(module, MixtureStandIn)
        return {
            id(self.mixtures[path]): _PartStandIn(mixture, path, module) if is_asked else mixture
            for path, mixture in inside.by_path.items()
        }

    def mixture_with(self, architecture: Architecture) -> Any:
        """Return the ``ProgramMixtures`` that have the architectures."""
        lifted = self.lifted(architecture)
        mixtures = {path: m.with_architecture(lifted.at(path)) for path, m in self.mixtures.items()}
        return ProgramMixtures(lifted, mixtures)


class _PartStandIn(MixtureStandIn):
    """Replaces one mixture of a program; the row is that of the whole program."""

    def __init__(self, mixture: MixtureOfAgents, path: str, whole: MixtureStandIn) -> None:
        super().__init__(mixture)
        self.path, self.whole = path, whole

    def forward(self, **inputs: Any) -> Any:
        # The same agent is asked something else in another mixture, whatever it is given.
        return self.answered(self.whole.row, inputs, (self.path, place_of(inputs)))


class ProgramEvaluator(Evaluator):
    """Runs a program with the architecture of each mixture; that of one is meant for all."""

    def measure(
        self, architecture: Architecture, rows: Sequence[dspy.Example]
    ) -> tuple[Outcome, ...]:
        """Return one outcome per row, in the rows' order."""
        return Evaluator.measure(self, self.student.lifted(architecture), rows)

    def knows(self, architecture: Architecture, rows: Sequence[dspy.Example]) -> bool:
        """True if ``measure`` of these rows would ask nothing."""
        return Evaluator.knows(self, self.student.lifted(architecture), rows)

    def answers_alone(
        self, names: Sequence[str], rows: Sequence[dspy.Example]
    ) -> list[MixtureAnswers]:
        """Return what each agent answered in every mixture, in the program's order.

        Empty unless each agent, in all mixtures at once, was asked once per mixture and row, and
        nothing else has been measured yet.
        """
        nodes = {node_name("propose", name): name for name in names}
        mixtures: Mapping[str, MixtureOfAgents] = self.student.mixtures
        found: dict[tuple[str, str], dict[str, tuple[object, Response]]] = {
            (path, name): {} for path in mixtures for name in names
        }
        for (node, where), response in self.node_cache.items():
            example, place = where if isinstance(where, tuple) else (where, None)
            if node not in nodes or not isinstance(place, tuple):
                continue
            heard = found[place[0], nodes[node]]
            if example in heard:
                return []
            heard[str(example)] = place, response
        ids = [str(row["id"]) for row in rows]
        if any(not heard.keys() >= set(ids) for heard in found.values()):
            return []
        return [
            _alone_in(one, {name: [found[path, name][row] for row in ids] for name in names})
            for path, one in mixtures.items()
        ]


def _alone_in(
    mixture: MixtureOfAgents, heard: Mapping[str, Sequence[tuple[object, Response]]]
) -> MixtureAnswers:
    """Return the answers of agents in one mixture, each with its place, row by row."""
    vote = Vote(tuple(mixture.signature.output_fields), NORMALISERS[mixture.normalise])
    replies = {n: [one for _, one in found] for n, found in heard.items()}
    texts: dict[str, list[Hashable]] = {n: [o.text for o in found] for n, found in replies.items()}
    ballots = {n: [vote.ballot(o) or o.text for o in found] for n, found in replies.items()}
    costs: dict[str, AgentCosts] = {}
    for name, found in replies.items():
        rows = (
            (o.calls, o.prompt_tokens + o.completion_tokens, o.usd or 0.0, o.seconds) for o in found
        )
        tokens = ((o.completion_tokens, count_tokens(o.text)) for o in found)
        costs[name] = mean_costs(name, mixture.pool, rows, tokens)
    places = {n: [place for place, _ in found] for n, found in heard.items()}
    return MixtureAnswers(costs, texts, ballots, places)


def with_program_space(options: SearchOptions, student: ProgramStudent) -> SearchOptions:
    """Return the options with the space of all mixtures; one space that is given is of each.

    Raises:
        StudyError: If prompts are to be tuned, a judge decides, or a space is of other mixtures.
    """
    for name, setting in (("prompts", options.prompts), ("judge", options.judge)):
        if setting is not None:
            raise StudyError(
                f"`{name}` can only be used with a student that holds one mixture, but this one "
                f"holds {len(student.paths)}, at {', '.join(student.paths)}: leave it out."
            )
    space = options.space
    if not isinstance(space, ProgramSpace):
        program_space = ProgramSpace.of(dict.fromkeys(student.paths, space))
    elif sorted(space.paths) != sorted(student.paths):
        raise StudyError(
            f"`space` is of the mixtures {', '.join(space.paths)}, but `student` holds "
            f"{', '.join(student.paths)}."
        )
    elif other := next((s for _, s in space.mixtures if set(s.agents) != set(space.agents)), None):
        raise StudyError(
            "The spaces of all mixtures must name the same agents, because each agent is "
            f"measured alone in all mixtures; but one space names {', '.join(other.agents)} of "
            f"{', '.join(space.agents)}."
        )
    else:
        spaces = dict(space.mixtures)
        program_space = ProgramSpace.of({path: spaces[path] for path in student.paths})
    # A path that cannot be written is found now.
    next(program_space.singles(), None)
    return replace(options, space=program_space)


def check_rows(program: Any, splits: Splits) -> None:
    """Check that the rows have the inputs of a mixture that is the whole program.

    Raises:
        DataError: If a row lacks one.
    """
    if isinstance(program, MixtureOfAgents):
        fields: Mapping[str, Any] = program.signature.input_fields
        needed = [name for name, field in fields.items() if field.is_required()]
        splits.check_inputs(needed, of="The signature")


def program_of(name: str, predictor: str, *, beside: Path | None, **rules: Any) -> Any:
    """Return a program of the user's own with a mixture in the place of its predictor.

    Args:
        name: ``package.module:name`` of a program, or of what makes one.
        predictor: Its path in the program.
        beside: Folder of the study file, where the module may stand.
        rules: Rules of the mixture.

    Raises:
        StudyError: If it cannot be made or copied, or has no such predictor.
    """
    program = imported_instance("task.program", name, (), has="named_predictors", beside=beside)
    if not isinstance(program, dspy.Module):
        raise StudyError(
            f"`task.program`: {name!r} must be a dspy.Module, or a class or function that makes "
            f"one, but is a {type(program).__name__}."
        )
    if others := mixtures_of(program, with_frozen=True):
        paths = ", ".join(path.removeprefix("self.") for path in others)
        # They have a pool of their own, whose calls would be counted in no budget.
        raise StudyError(
            f"`task.program`: {name!r} holds a mixture of its own, at {paths}. Search "
            "such a program in Python, with ModelSearch, or make a predictor of it."
        )
    try:
        return MixtureOfAgents.in_place_of(program, predictor, **rules)
    except ArchitectureError as error:
        raise StudyError(f"`task.predictor`: {error}") from error
    except Exception as error:
        raise StudyError(f"`task.program`: {name!r} cannot be copied: {error}.") from error


def program_evidence(evidence: Evidence) -> Evidence:
    """Return the evidence of programs, where no vote can be counted before it is measured.

    What an agent alone is to one mixture, a program of single agents is here: the pick is compared
    with the best of them.
    """
    alone = [
        candidate
        for candidate in evidence.measured
        if not candidate.architecture.layers and candidate.is_whole
    ]
    singles = {str(candidate.architecture): candidate.scores for candidate in alone}
    return replace(evidence, singles=singles, ballots=None, smoothed=None, ways=None)


def plural_facts(facts: EarlyFacts) -> EarlyFacts:
    """Return the facts on single agents, each of which was measured in all mixtures at once."""
    where = "in every mixture"
    second = None if facts.runner_up is None else f"{facts.runner_up} {where}"
    return replace(facts, leader=f"{facts.leader} {where}", runner_up=second)


def plural_verdicts(compared: ComparedSystems) -> ComparedSystems:
    """Return what was compared with the verdict in words for the mixtures of a program."""
    note = "the best agent of each question, in every mixture"
    val, test = (
        {n: replace(o, note=note) if n == "oracle" and o.score is not None else o for n, o in rows}
        for rows in (compared.val.items(), compared.test.items())
    )
    advice, colon, rest = compared.verdict.text.partition(":")
    text = f"{_PLURAL_ADVICE.get(advice, advice)}{colon}{rest}"
    return replace(compared, val=val, test=test, verdict=replace(compared.verdict, text=text))


_PLURAL_ADVICE: Final = {
    "Use the mixture": "Use the mixtures",
    "Keep the single model": "Keep the single models",
}
"""The advice of a verdict, for a program."""


def warn_of_dropped_prompts(mixtures: Iterable[MixtureOfAgents]) -> None:
    """Warn of demos and instructions of a student that no architecture of the search has."""
    dropped = []
    for mixture in mixtures:
        new = dict(all_predictors(mixture.with_architecture(mixture.architecture)))
        for name, seat in all_predictors(mixture):
            own = seat.demos, seat.signature.instructions
            if own != (new[name].demos, new[name].signature.instructions):
                dropped.append(name)
    if dropped:
        _logger.warning(
            "The search gives every agent its first prompt: the demos and instructions that "
            "`student` has in %s are not used. Compile the prompts of what the search returns.",
            ", ".join(dropped),
        )


def best_single_of(
    ranking: Sequence[str], records: dict[Architecture, TrialRecord], limits: Limits
) -> Architecture:
    """Return the best single agent within the limits; without any, the best of all."""
    singles = [Architecture.single(name) for name in ranking]
    return next((single for single in singles if limits.admit(records[single])), singles[0])


def best_program(
    records: Mapping[Architecture, TrialRecord], limits: Limits
) -> ProgramArchitecture:
    """Return the best program of single agents within the limits; without any, of all.

    With all agents measured in each mixture it has the best single agent of every one, on val.
    """
    alone = [program for program, record in records.items() if not record.is_stopped_early]
    programs = [o for o in alone if isinstance(o, ProgramArchitecture) and not o.layers]
    allowed = [program for program in programs if limits.admit(records[program])]
    return min(
        allowed or programs, key=lambda program: (-round(records[program].score, 12), program.calls)
    )
