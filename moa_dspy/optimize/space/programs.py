"""Programs of several mixtures: an architecture for each, and their space; and the baselines."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Final

from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError, StudyError
from moa_dspy.optimize.space.rules import Suggests, without_tie_breaker
from moa_dspy.optimize.space.space import Params, SearchSpace

_BETWEEN: Final = re.compile(r";\s+(?![^()]*\))")
"""Between two mixtures: what is in the brackets of a last step belongs to it."""
_PATH: Final = re.compile(r"[^\s;:()>+*]+")
_PROGRAM: Final = re.compile(rf"\s*{_PATH.pattern}:\s+[^\s>+*(]")


@dataclass(frozen=True, slots=True, eq=False)
class ProgramArchitecture(Architecture):
    """The architectures of all mixtures of a program, by path, in the program's order.

    The text notation names each: ``"rag.query: a; rag.answer: b + c > synthesize(a)"``. It has
    no layers if every mixture is a single agent, which is the program that mixtures are compared
    with. Made by ``of``; ``layers`` are those of all mixtures, one after the other.

    Attributes:
        parts: The path of each mixture, and its architecture.

    Raises:
        ArchitectureError: If there is no mixture, or a path cannot be written.
    """

    parts: tuple[tuple[str, Architecture], ...] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise ArchitectureError("A program's architecture needs at least one mixture.")
        for path, _ in self.parts:
            if not _PATH.fullmatch(path):
                raise ArchitectureError(
                    f"Path {path!r} of a mixture must not be empty or hold spaces or any of "
                    "; : ( ) > + *; keep the mixture under another attribute or key."
                )
        layers = tuple(layer for _, part in self.parts for layer in part.layers)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "_key", tuple((path, part._key) for path, part in self.parts))

    @classmethod
    def of(cls, parts: Mapping[str, Architecture]) -> ProgramArchitecture:
        """Return the architecture with these mixtures."""
        return cls((), None, parts=tuple(parts.items()))

    @classmethod
    def everywhere(cls, paths: Sequence[str], architecture: Architecture) -> ProgramArchitecture:
        """Return the architecture whose mixtures are all ``architecture``."""
        return cls.of(dict.fromkeys(paths, architecture))

    @classmethod
    def parse(cls, text: str) -> ProgramArchitecture:
        """Read the text notation that ``str`` writes.

        Raises:
            ArchitectureError: If a part cannot be read, naming it.
        """
        parts: dict[str, Architecture] = {}
        for part in _BETWEEN.split(text.strip()):
            path, colon, rest = part.partition(": ")
            if not colon or path in parts:
                raise ArchitectureError(
                    f"A program's architecture reads `path: architecture; ...`, each path once, "
                    f"but got {text!r}."
                )
            parts[path] = Architecture.parse(rest)
        return cls.of(parts)

    def at(self, path: str) -> Architecture:
        """Return the architecture of one mixture."""
        return dict(self.parts)[path]

    def with_part(self, path: str, architecture: Architecture) -> ProgramArchitecture:
        """Return the architecture in which one mixture is another."""
        return ProgramArchitecture.of({**dict(self.parts), path: architecture})

    def each(self, change: Callable[[Architecture], Architecture]) -> ProgramArchitecture:
        """Return the architecture with every mixture changed."""
        return ProgramArchitecture.of({path: change(part) for path, part in self.parts})

    @property
    def canonical(self) -> Architecture:
        """The equal architecture in which the names of each layer are sorted."""
        return self.each(lambda part: part.canonical)

    @property
    def agents(self) -> tuple[str, ...]:
        """Every agent that sits somewhere, sorted, each once."""
        return tuple(sorted({name for _, part in self.parts for name in part.agents}))

    @property
    def last_step_rounds(self) -> tuple[tuple[str, ...], ...]:
        """Agents that the last steps ask, round by round."""
        return tuple(round_ for _, part in self.parts for round_ in part.last_step_rounds)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"mixtures": {path: part.to_json() for path, part in self.parts}}

    def __str__(self) -> str:
        return "; ".join(f"{path}: {part}" for path, part in self.parts)


def read_architecture(text: str) -> Architecture:
    """Read the text notation of a mixture, or of a program's mixtures.

    Raises:
        ArchitectureError: If a part cannot be read, naming it.
    """
    is_program = _PROGRAM.match(text) is not None
    return ProgramArchitecture.parse(text) if is_program else Architecture.parse(text)


def mixture_lines(text: str) -> list[str]:
    """Return an architecture's text; of a program one line for each mixture."""
    parts = _BETWEEN.split(text)
    is_program = _PROGRAM.match(text) is not None
    return [f"{part};" for part in parts[:-1]] + parts[-1:] if is_program else [text]


_MANY_AGENTS: Final = re.compile(r"\S+(?: \+ \S+){7,}")
_MANY_VALUES: Final = re.compile(r"(weights|order)=([^\s;)]+(?: [^\s;)]+){7,})")


def in_short(line: str) -> str:
    """Return a line of text in which architectures name at most seven agents of a layer.

    For sentences: tables, files and the picture of the pick have them whole.
    """

    def first_of(agents: re.Match[str]) -> str:
        names = agents[0].split(" + ")
        return f"{' + '.join(names[:3])} + {len(names) - 3} more"

    line = _MANY_AGENTS.sub(first_of, line)
    return _MANY_VALUES.sub(lambda values: f"{values[1]} of {len(values[2].split())}", line)


@dataclass(frozen=True)
class ProgramSpace(SearchSpace):
    """The space of a program with several mixtures: each has a space of its own.

    Optuna's parameters stand under the path of their mixture, ``answer.layer1.mini``. What else
    a ``SearchSpace`` says is that of the first mixture. Made by ``of``:

        space = ProgramSpace.of({"query": SearchSpace(agents), "answer": SearchSpace(agents)})
        study.optimize(lambda trial: score(space.suggest(trial)), n_trials=40)

    Attributes:
        mixtures: The path of each mixture, and its space.

    Raises:
        StudyError: If there are not two mixtures at least.
    """

    mixtures: tuple[tuple[str, SearchSpace], ...] = ()

    def __post_init__(self) -> None:
        if len(self.mixtures) < 2:
            raise StudyError(
                f"A `ProgramSpace` needs two mixtures at least, but got {len(self.mixtures)}; the "
                "space of one is a `SearchSpace`."
            )
        if self.ranking:
            object.__setattr__(self, "mixtures", tuple(self._ranked()))

    def _ranked(self) -> Iterator[tuple[str, SearchSpace]]:
        for path, space in self.mixtures:
            ranking = tuple(name for name in self.ranking if name in space.agents)
            yield path, replace(space, ranking=ranking)

    @classmethod
    def of(cls, mixtures: Mapping[str, SearchSpace]) -> ProgramSpace:
        """Return the space of mixtures at these paths."""
        parts = tuple(mixtures.items())
        agents = dict.fromkeys(name for _, space in parts for name in space.agents)
        combines = dict.fromkeys(combine for _, space in parts for combine in space.combines)
        first = parts[0][1] if parts else None
        return cls(
            tuple(agents),
            tuple(combines),
            max_depth=first.max_depth if first else 0,
            min_width=first.min_width if first else 2,
            max_width=first.max_width if first else 2,
            mixtures=parts,
        )

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the mixtures in the program."""
        return tuple(path for path, _ in self.mixtures)

    @property
    def searches_layers(self) -> bool:
        """True if anything beyond single agents can be proposed."""
        return any(space.searches_layers for _, space in self.mixtures)

    def suggest(self, trial: Suggests, ranking: Sequence[str] = ()) -> ProgramArchitecture:
        """Draw the architecture of every mixture."""
        parts = {}
        for path, space in self.mixtures:
            ranked = [name for name in ranking if name in space.agents]
            parts[path] = space.suggest(_UnderPath(trial, path), ranked)
        return ProgramArchitecture.of(parts)

    def suggest_kind(self, trial: Suggests) -> str:
        """Draw the kinds alone."""
        kinds = [space.suggest_kind(_UnderPath(trial, path)) for path, space in self.mixtures]
        return "layers" if "layers" in kinds else kinds[0]

    def params(self, architecture: Architecture) -> Params | None:
        """Return the choices that ``suggest`` turns into ``architecture``; None if none do."""
        all_params: Params = {}
        for path, (space, part) in zip(self.paths, self._parts(architecture) or (), strict=False):
            params = space.params(part)
            if params is None:
                return None
            all_params |= {f"{path}.{name}": value for name, value in params.items()}
        return all_params or None

    def _parts(self, architecture: Architecture) -> list[tuple[SearchSpace, Architecture]] | None:
        """Return the space and the architecture of each mixture; None of another program."""
        if not isinstance(architecture, ProgramArchitecture):
            return None
        if tuple(path for path, _ in architecture.parts) != self.paths:
            return None
        pairs = zip(self.mixtures, architecture.parts, strict=True)
        return [(space, part) for (_, space), (_, part) in pairs]

    @cached_property
    def size(self) -> int | None:
        """Number of different architectures; None where counting them would take too long."""
        sizes = [space.size for _, space in self.mixtures]
        return None if None in sizes else prod(size for size in sizes if size is not None)

    def keeps_constraints(self, architecture: Architecture) -> bool:
        """True if every mixture keeps to what the user demanded of its members."""
        parts = self._parts(architecture)
        return parts is not None and all(space.keeps_constraints(part) for space, part in parts)

    def holds(self, architecture: Architecture) -> bool:
        """True if the study may try ``architecture``, whatever decides the ties of votes."""
        parts = self._parts(architecture)
        return parts is not None and all(space.holds(part) for space, part in parts)

    def seated(self, architecture: Architecture) -> Architecture:
        """Return the architecture with the seats of listed ones in their own order."""
        if not isinstance(architecture, ProgramArchitecture):
            return architecture
        spaces = dict(self.mixtures)
        parts = {path: spaces[path].seated(part) for path, part in architecture.parts}
        return ProgramArchitecture.of(parts)

    def draw(self, rng: random.Random) -> ProgramArchitecture:
        """Return a random architecture of every mixture."""
        return ProgramArchitecture.of({path: space.draw(rng) for path, space in self.mixtures})

    def singles(self) -> Iterator[ProgramArchitecture]:
        """Yield the programs with one agent in all mixtures, as far as each may have it."""
        for name in self.agents:
            if all(name in space.agents for _, space in self.mixtures):
                yield ProgramArchitecture.everywhere(self.paths, Architecture.single(name))


def kinds_of_mixtures(space: SearchSpace) -> dict[str, str]:
    """Return the parameters that every trial has, as a mixture outside of the space has them."""
    if isinstance(space, ProgramSpace):
        return {f"{p}.{n}": v for p, s in space.mixtures for n, v in kinds_of_mixtures(s).items()}
    return {"kind": "layers" if space.searches_layers else "single"}


@dataclass(frozen=True, slots=True)
class _UnderPath:
    """Suggests under names that begin with a path."""

    trial: Suggests
    path: str

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        return self.trial.suggest_categorical(f"{self.path}.{name}", choices)

    def suggest_int(self, name: str, low: int, high: int, /) -> int:
        return self.trial.suggest_int(f"{self.path}.{name}", low, high)


SELF_MOA_SAMPLES = 3
"""Of the mixture that every study tries; on test there are as many as the pick makes calls."""
TOP_K = 3


def top_k(ranking: Sequence[str], k: int, *, combine: str = "vote") -> Architecture:
    """Return the ``k`` best single agents together; the best one decides ties, or synthesizes."""
    return Architecture((tuple(ranking[:k]),), ranking[0], combine).canonical


def self_moa_of(
    ranking: Sequence[str], pool: Mapping[str, Any], *, combine: str = "vote"
) -> Architecture | None:
    """Return some samples of the best agent (arXiv:2502.00674); None if they are copies.

    A greedy agent gives one answer however often it is asked; the same model under
    another name with a temperature stands in for it.
    """
    best = pool[ranking[0]]
    twins = [name for name in ranking if pool[name].identity == best.identity]
    # Without a temperature of its own an agent samples at its vendor's.
    sampled = [name for name in twins if pool[name].temperature != 0]
    if not sampled:
        return None
    return Architecture(((sampled[0],) * SELF_MOA_SAMPLES,), sampled[0], combine)


def baseline_combine(space: SearchSpace) -> str:
    """Return how the baselines combine: a vote where answers can be equal, else the paper's."""
    return "vote" if "vote" in space.combines else "synthesize"


def baseline_architectures(
    ranking: Sequence[str], pool: Mapping[str, Any], space: SearchSpace
) -> list[Architecture]:
    """Return what every study tries first: Self-MoA, each top-k, and the paper's full layers."""
    combine = baseline_combine(space)
    widest = min(space.max_width, len(ranking))
    architectures = [top_k(ranking, k, combine=combine) for k in range(2, widest + 1)]
    if (samples := self_moa_of(ranking, pool, combine=combine)) is not None:
        architectures.insert(0, samples)
    if "synthesize" in space.combines:
        layer = tuple(sorted(ranking[:widest]))
        architectures += [
            Architecture((layer,) * depth, ranking[0]) for depth in range(1, space.max_depth + 1)
        ]
    return architectures


def n_listed_untried(space: SearchSpace, pool: Mapping[str, Any], n_trials: int) -> int:
    """Return for how many listed architectures ``n_trials`` leaves no room after the baselines."""
    baselines = baseline_architectures(space.agents, pool, space)
    given = dict.fromkeys(map(without_tie_breaker, [*baselines, *space.listed]))
    mixtures = [architecture for architecture in given if architecture.layers]
    listed = set(map(without_tie_breaker, space.listed))
    return len(listed.intersection(mixtures[max(0, n_trials - len(space.agents)) :]))


def listed_notes(space: SearchSpace, n_untried: int, n_trials: int) -> tuple[str, ...]:
    """Return a note on listed architectures that are not tried; none if no mixture is tried."""
    if not n_untried or n_trials <= len(space.agents):
        return ()
    return (
        f"{n_untried} of {len(space.listed)} `listed` architectures are not tried: single agents "
        f"and baselines come first, and `n_trials` is {n_trials}. Set it to "
        f"{n_trials + n_untried} or more.",
    )


def with_n_calls(architecture: Architecture, n_calls: int) -> Architecture:
    """Return Self-MoA with as many calls as the pick; other mixtures as they are."""
    if isinstance(architecture, ProgramArchitecture) or len(set(architecture.layers[-1])) > 1:
        return architecture
    n = max(len(architecture.layers[-1]), n_calls - len(architecture.last_step_rounds))
    return replace(architecture, layers=(architecture.layers[-1][:1] * n,))


def in_every_mixture(
    architectures: Iterable[Architecture], space: SearchSpace
) -> list[Architecture]:
    """Return the architectures as a study in ``space`` measures them: of a program, everywhere."""
    if not isinstance(space, ProgramSpace):
        return list(architectures)
    return [
        ProgramArchitecture.everywhere(space.paths, architecture) for architecture in architectures
    ]


def fixed_baselines(
    ranking: Sequence[str], pool: Mapping[str, Any], space: SearchSpace
) -> tuple[Architecture | None, Architecture | None]:
    """Return Self-MoA and top-k, which are compared on test whatever is picked.

    None is one that cannot be run: samples that are copies, or the best of one agent.
    """
    combine, k = baseline_combine(space), min(TOP_K, len(ranking))
    several = top_k(ranking, k, combine=combine) if k > 1 else None
    return self_moa_of(ranking, pool, combine=combine), several


MOST_REPEATS: Final = 200
"""Known architectures in a row after which the space counts as drawn empty."""


def random_draws(
    space: SearchSpace, canonical: Callable[[Architecture], Architecture], seed: int
) -> Iterator[Architecture]:
    """Yield the architectures of the random baseline, each once, always in the same order."""
    rng = random.Random(f"random-{seed}")
    seen: set[Architecture] = set()
    repeats = 0
    while repeats < MOST_REPEATS:
        architecture = canonical(space.draw(rng))
        repeats = repeats + 1 if architecture in seen else 0
        if repeats == 0:
            seen.add(architecture)
            yield architecture
