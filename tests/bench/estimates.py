"""What a study was expected to take, before it and of its single agents alone, and what it took.

    python tests/bench/estimates.py [--studies 20] [--seed 0] [--json]
    python tests/bench/estimates.py --family NAME,NAME [--studies 2] [--seed 0] [--json]
    python tests/bench/estimates.py --live [--studies 3] [--json]

Each study is made up by its seed: agents of other accuracies, lengths of answers and prices,
widths, depths, combiners, sizes, prompts to tune. Nothing is asked over the network. Printed are
spent over expected, in calls and usd, per study, the share of studies within a factor 1.25, and
of those whose range holds what was spent: of the estimate after the single agents, and as
`check --probe` makes it before, from one question to each agent.

With `--family` studies are of kinds that the generator above does not make (see `FAMILIES`;
`all` takes each): syntheses that repeat their writer's own answer or a random one, follow most,
find what is right, or are worse; large pools, copies, a dominant agent, agents that fail, samples,
graded scores, three layers, a cost among the objectives, other numbers of rows and trials.

With `--live` small studies ask models on this machine, one thread each: SmolLM2, and Qwen where
MOA_QWEN_05B names its weights. Three are given, and more are drawn by their numbers: other agents,
combiners, rows, sizes and trials. Expected is what `check --probe` says before, and what the study
says of its single agents; seconds are compared too. A study takes some minutes of one core.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any, Final

import dspy

from moa_dspy import MixtureOfAgents, ModelSearch, Pool
from moa_dspy.adapters import PlainChat
from moa_dspy.architecture import Architecture
from moa_dspy.calls import CallStore
from moa_dspy.data import Splits, answer_match
from moa_dspy.optimize import PromptOptions, SearchSpace, run_study
from moa_dspy.optimize.early_facts import Cost
from moa_dspy.optimize.evaluate import Student
from moa_dspy.optimize.preflight import LEVELS, check_before, stages_before, with_tokens
from moa_dspy.optimize.prompts.joint import with_prompts
from moa_dspy.optimize.shares import AgentEstimate
from moa_dspy.optimize.study import PreparedStudy
from moa_dspy.testing import scripted_pool

FACTOR: Final = 1.25
COMBINES: Final = (("vote",), ("synthesize",), ("vote", "synthesize"), ("synthesize", "select"))
N_LETTERS: Final = 5


def agent(name: str, seed: int, rng: random.Random) -> Callable[[str], str]:
    """Return a script that is right on a share of the questions, in answers of some length.

    A reader is right where most of what it reads is, as often as not, else where it is alone.
    """
    accuracy, n_words = rng.uniform(0.35, 0.85), rng.choice((1, 1, 5, 30))

    def script(prompt: str) -> str:
        question = re.findall(r"q-\w+-\d+", prompt)[-1]
        if "reply with its number" in prompt.lower():
            return "1"
        own = random.Random(f"{seed} {name} {question}")
        right = int(question.rpartition("-")[2]) % N_LETTERS
        letter = right if own.random() < accuracy else own.randrange(N_LETTERS)
        read = re.findall(r'^\d+\. ".*\b([A-E])"$', prompt, re.MULTILINE)
        if read and random.Random(f"{seed} {name} {question} {read}").random() < 0.5:
            letter = "ABCDE".index(Counter(read).most_common(1)[0][0])
        return " ".join(["well"] * (n_words - 1) + ["ABCDE"[letter]])

    return script


@cache
def tokenizer() -> Any:
    """Return OpenAI's cl100k, as LiteLLM ships it: nothing is loaded from the network."""
    found = importlib.util.find_spec("litellm")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "litellm_core_utils" / "tokenizers"
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    import tiktoken

    return tiktoken.get_encoding("cl100k_base")


def count_tokens(text: str) -> int:
    """Return the tokens of a text, as a vendor bills them."""
    return len(tokenizer().encode(text))


def last_letter(row: Any, prediction: Any, trace: Any = None) -> float:
    """Score the last word of an answer."""
    return float(answer_match(row, dspy.Prediction(answer=str(prediction.answer).split()[-1])))


def rows(split: str, n: int) -> list[dspy.Example]:
    """Return questions, each with as many words before it as its number says."""
    found = []
    for i in range(n):
        text = " ".join(["word"] * (5 + i % 40)) + f" q-{split}-{i}"
        found.append(dspy.Example(question=text, answer="ABCDE"[i % N_LETTERS]))
    return [row.with_inputs("question") for row in found]


def study(seed: int) -> dict[str, Any]:
    """Run a study and return what was expected of it and what it took."""
    rng = random.Random(f"estimates-{seed}")
    names = "abcde"[: rng.randint(2, 5)]
    prices = {name: rng.choice((0.1, 0.5, 2.0, 10.0)) for name in names}
    scripts = {name: agent(name, seed, rng) for name in names}
    pool, probed_pool = (
        scripted_pool(scripts, usd_per_million_tokens=prices, reads_all=True, count=count_tokens)
        for _ in range(2)
    )
    combines, depth = rng.choice(COMBINES), rng.randint(1, 2)
    width = min(rng.randint(2, 4), len(names))
    n_val, n_test = rng.choice((30, 50, 80)), rng.choice((20, 40))
    has_prompts = "synthesize" in combines and rng.random() < 0.5
    search = ModelSearch(
        last_letter,
        pool,
        space=SearchSpace(tuple(names), combines, max_width=width, max_depth=depth),
        n_trials=rng.choice((10, 20, 30)),
        prompts=PromptOptions(optimizer="try", top=1) if has_prompts else None,
        seed=seed,
        display_progress=False,
    )
    first = MixtureOfAgents("question -> answer", names[0], pool=pool, adapter=PlainChat())
    train, val, test = (
        tuple(rows(name, n)) for name, n in (("train", 20), ("val", n_val), ("test", n_test))
    )
    splits = Splits(train=train, val=val, test=test)
    checked = checked_before(search, first, splits, probed_pool)
    search.compile(first, trainset=train, valset=val, testset=test)
    result, spent = search.result, pool.calls.ledger.spending
    return {
        "seed": seed,
        "agents": len(names),
        "combines": "+".join(combines),
        "width": width,
        "depth": depth,
        "rows": [n_val, n_test],
        "trials": search.options.n_trials,
        "prompts": has_prompts,
        "rows_measured": sum(trial.rows for trial in result.trials) / (n_val * len(result.trials)),
        **compared(result),
        "made": spent.made,
        "checked": [[cost.calls, cost.usd] for cost in checked],
    }


def checked_before(
    search: ModelSearch, first: MixtureOfAgents, splits: Splits, pool: Pool
) -> list[Cost]:
    """Return the cost of the whole study before it: low, likely, high, as a check computes it.

    Each agent is asked the first question of val, from another pool, as the study has to ask it.
    """
    options, _ = with_prompts(search.options, Student.of(first), splits.train)
    program = MixtureOfAgents(first.signature, first.architecture, pool=pool, adapter=PlainChat())
    asked = str(splits.val[0].question)
    longer = fmean(count_tokens(row.question) for row in splits.val) - count_tokens(asked)
    agents = []
    for name in options.space.agents:
        (reply,) = program.with_architecture(Architecture.single(name))(
            question=asked
        ).mixture.responses
        most = {"high": float(pool[name].max_tokens)}
        known = AgentEstimate(name, pool.price(name), {"likely": longer}, most)
        agents.append(with_tokens(known, reply, 0))
    whole = stages_before(options, splits, agents, Cost())[-1]
    return [whole.costs[level] for level in LEVELS]


@dataclass(frozen=True)
class World:
    """The choices of a family of studies; of a tuple one is drawn for each study.

    Attributes:
        reads: What a synthesis says: its writer's ``own`` answer, a ``random`` one of what it
            reads, what ``most`` say, what is ``right`` if any is, or often something ``new``.
        temperature: Above 0 each sample may be another answer.
        fails: Share of questions that every second agent does not answer.
        copies: The last so many agents answer as those so many places before them do.
        dominant: Accuracy of the first agent.
    """

    n_agents: Any = (3, 4)
    reads: Any = ("own", "random", "most", "right", "new")
    accuracy: tuple[float, float] = (0.5, 0.8)
    dominant: float | None = None
    words: tuple[int, ...] = (1,)
    n_wrong: int = N_LETTERS - 1
    combines: Any = (("vote", "synthesize"),)
    width: Any = (3,)
    depth: Any = (2,)
    n_val: Any = (50, 80)
    n_test: Any = (100,)
    n_trials: Any = (20, 40)
    temperature: Any = (0.0,)
    fails: float = 0.0
    copies: int = 0
    is_graded: bool = False
    has_prompts: bool = False
    objectives: tuple[str, ...] = ("win_rate", "diversity")

    def drawn(self, rng: random.Random) -> World:
        """Return the choices of one study."""
        kept = ("accuracy", "words", "objectives")
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in kept}
        return replace(
            self, **{n: rng.choice(v) if isinstance(v, tuple) else v for n, v in found.items()}
        )


FAMILIES: Final = {
    "stranger": World(n_agents=(3,), reads=("own",), n_wrong=1, n_val=(100,), n_test=(200,)),
    "own": World(reads=("own",)),
    "most": World(reads=("most",)),
    "right": World(reads=("right",)),
    "new": World(reads=("new",)),
    "graded": World(is_graded=True, words=(5, 30), combines=(("synthesize",),)),
    "synthesize": World(combines=(("synthesize",),), depth=(1, 2, 3), n_trials=(10, 30)),
    "vote": World(n_agents=(3, 5, 8), combines=(("vote",),), width=(3, 5), temperature=(0.0, 0.7)),
    "select": World(n_agents=(2, 4), combines=(("select",), ("vote", "select", "synthesize"))),
    "large": World(n_agents=(8, 12), n_val=(40,), n_test=(50,), n_trials=(40,)),
    "copies": World(n_agents=(4,), copies=2),
    "dominant": World(accuracy=(0.3, 0.5), dominant=0.95),
    "failing": World(fails=0.1),
    "samples": World(n_agents=(2, 3, 5), temperature=(0.7,)),
    "prompts": World(has_prompts=True, combines=(("synthesize",),)),
    "deep": World(depth=(3,), width=(2,)),
    "cheap": World(objectives=("win_rate", "usd")),
    "words": World(words=(1, 5, 30, 100), combines=(("synthesize",),)),
    "long": World(n_val=(150, 300), n_test=(50, 300), n_trials=(20,)),
    "trials": World(n_agents=(2, 3, 4), n_val=(30, 60), n_test=(50,), n_trials=(10, 100)),
}


def family_agent(place: int, world: World, seed: str) -> Callable[[str], str]:
    """Return the script of the agent at a place of the pool."""
    first = place - world.copies if place >= world.n_agents - world.copies > 0 else place
    rng = random.Random(f"{seed} {first}")
    accuracy, n_words = rng.uniform(*world.accuracy), rng.choice(world.words)
    if world.dominant is not None and place == 0:
        accuracy = world.dominant
    counts: Counter[str] = Counter()
    # Questions differ in ease as much as an agent's luck does.
    bar = NormalDist().inv_cdf(accuracy) * 2**0.5

    def letter(question: str, sample: int) -> int:
        ease = random.Random(f"{seed} {question}").gauss(0, 1)
        own = random.Random(f"{seed} {first} {question} {sample}")
        is_right = bar + ease + own.gauss(0, 1) > 0
        right = int(question.rpartition("-")[2]) % N_LETTERS
        return right if is_right else (right + own.randint(1, world.n_wrong)) % N_LETTERS

    def script(prompt: str) -> str:
        question, chance = re.findall(r"q-\w+-\d+", prompt)[-1], random.Random(f"{seed} {prompt}")
        if place % 2 == 0 and random.Random(f"{seed} {place} {question}").random() < world.fails:
            raise RuntimeError("no answer")
        if "reply with its number" in prompt.lower():
            return "1"
        counts[prompt] += world.temperature > 0
        own = letter(question, max(0, counts[prompt] - 1) if chance.random() < 0.4 else 0)
        read = re.findall(r'^\d+\. ".*\b([A-E])"$', prompt, re.MULTILINE)
        said = read_letter(
            world.reads, own, ["ABCDE".index(answer) for answer in read], question, chance
        )
        return " ".join(["well"] * (n_words - 1) + ["ABCDE"[said]])

    return script


def read_letter(reads: str, own: int, read: list[int], question: str, chance: random.Random) -> int:
    right = int(question.rpartition("-")[2]) % N_LETTERS
    if not read or reads == "own":
        return own
    if reads == "most":
        return Counter([*read, own]).most_common(1)[0][0]
    if reads == "right":
        return right if right in (*read, own) and chance.random() < 0.9 else own
    if reads == "new" and chance.random() < 0.5:
        return chance.randrange(N_LETTERS)
    return chance.choice([*read, own])


def graded(row: Any, prediction: Any, trace: Any = None) -> float:
    """Score the last word of an answer by how near it is in the alphabet."""
    last = str(prediction.answer).split()[-1]
    return 1.0 - abs("ABCDE".index(last) - "ABCDE".index(row.answer)) / (N_LETTERS - 1)


def family_study(family: str, seed: int) -> dict[str, Any]:
    """Run a study of a family and return what was expected of it and what it took."""
    rng = random.Random(f"{family}-{seed}")
    world = FAMILIES[family].drawn(rng)
    names = [f"a{place}" for place in range(world.n_agents)]
    pool = scripted_pool(
        {n: family_agent(i, world, f"{family}{seed}") for i, n in enumerate(names)},
        usd_per_million_tokens={name: rng.choice((0.1, 0.5, 2.0, 10.0)) for name in names},
        temperature=world.temperature,
        reads_all=True,
        count=count_tokens,
    )
    width = min(world.width, len(names))
    search = ModelSearch(
        graded if world.is_graded else last_letter,
        pool,
        space=SearchSpace(tuple(names), world.combines, max_width=width, max_depth=world.depth),
        objectives=world.objectives,
        n_trials=world.n_trials,
        prompts=PromptOptions(optimizer="try", top=1) if world.has_prompts else None,
        seed=seed,
        display_progress=False,
    )
    first = MixtureOfAgents("question -> answer", names[0], pool=pool, adapter=PlainChat())
    val, test = rows("val", world.n_val), rows("test", world.n_test)
    search.compile(first, trainset=rows("train", 20), valset=val, testset=test)
    chosen = {"n_agents": world.n_agents, "reads": world.reads, "trials": world.n_trials}
    return {"family": family, "seed": seed, **chosen, **compared(search.result)}


def compared(result: Any) -> dict[str, Any]:
    """Return what was expected after the single agents beside what a study took."""
    expected = result.early.estimate
    return {
        "calls": [expected.calls, result.calls_made],
        "usd": [expected.usd, result.usd],
        "calls_ratio": result.calls_made / expected.calls,
        "range": [ends and [ends.calls, ends.usd] for ends in (expected.low, expected.high)],
        "usd_ratio": result.usd / expected.usd if result.usd and expected.usd else None,
    }


SMOL: Final = ("smollm2-135m-instruct", None)
QWEN: Final = ("qwen2.5-coder-0.5b-instruct", "MOA_QWEN_05B")
QWEN_SUM: Final = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
LIVE: Final[tuple[dict[str, Any], ...]] = (
    {
        "name": "votes",
        "agents": {"smol": (SMOL, 0.0), "smol-warm": (SMOL, 0.7), "qwen": (QWEN, 0.0)},
        "combines": ["vote"],
        "rows": {"train": 4, "val": 16, "test": 10},
        "n_trials": 8,
    },
    {
        "name": "syntheses",
        "agents": {"smol": (SMOL, 0.0), "qwen": (QWEN, 0.0)},
        "combines": ["synthesize"],
        "rows": {"train": 4, "val": 12, "test": 8},
        "n_trials": 6,
    },
    {
        "name": "all",
        "agents": {"smol": (SMOL, 0.0), "qwen": (QWEN, 0.0), "qwen-warm": (QWEN, 0.7)},
        "combines": ["vote", "synthesize", "select"],
        "rows": {"train": 4, "val": 12, "test": 8},
        "n_trials": 8,
    },
)
"""Studies of the questions of `optimize/quickstart.toml`: agents as (model, temperature)."""
LIVE_AGENTS: Final = {
    "smol": (SMOL, 0.0),
    "smol-warm": (SMOL, 0.7),
    "qwen": (QWEN, 0.0),
    "qwen-warm": (QWEN, 0.7),
}
TASKS: Final = Path(__file__).parents[2] / "data" / "quickstart" / "tasks.jsonl"


def drawn_live(number: int) -> dict[str, Any]:
    """Return the live study of a number, drawn with the number as a seed."""
    rng = random.Random(f"live-{number}")
    names = rng.sample(list(LIVE_AGENTS), rng.randint(2, 4))
    return {
        "name": f"drawn-{number}",
        "agents": {name: LIVE_AGENTS[name] for name in names},
        "combines": list(rng.choice(COMBINES)),
        "depth": rng.randint(1, 2),
        "rows": {"train": 4, "val": rng.choice((12, 16, 24)), "test": rng.choice((8, 12))},
        "n_trials": rng.choice((6, 8, 12)),
        "first": rng.randrange(100),
    }


def live_tasks(live: dict[str, Any], folder: Path) -> Path:
    """Write the tasks of a live study, each split from its first row on, and return their path."""
    path = folder / f"{live['name']}.jsonl"
    lines = TASKS.read_text("utf-8").splitlines()
    by_split = [[x for x in lines if json.loads(x)["split"] == name] for name in live["rows"]]
    first = live.get("first", 0)
    turned = (line for split in by_split for line in (*split[first:], *split[:first]))
    path.write_text("\n".join(turned) + "\n", "utf-8")
    return path


def study_text(live: dict[str, Any], tasks: Path) -> str:
    """Return the study file of a live study of these tasks; prices are nominal."""
    agents = []
    for name, ((model, variable), temperature) in live["agents"].items():
        weights = f'weights = "${{{variable}}}"\nsha256 = "{QWEN_SUM}"\n' if variable else ""
        agents.append(
            f'[[agents]]\nname = "{name}"\nmodel = "local/{model}"\n{weights}'
            f"temperature = {temperature}\nmax_tokens = 16\nn_threads = 1\n"
            f"usd_per_million_prompt_tokens = {0.05 if variable else 0.01}\n"
            f"usd_per_million_completion_tokens = {0.2 if variable else 0.05}\n"
        )
    limits = ", ".join(f"{split} = {n}" for split, n in live["rows"].items())
    return f"""
name = "{live["name"]}"
[task]
signature = "question -> answer"
instructions = "Answer the question. Reply with the answer only, in one word or number."
adapter = "plain"
metric = "answer_match"
normalise = "answer"
[data]
path = "{tasks}"
inputs = ["question"]
split_column = "split"
limit = {{ {limits} }}
[space]
combines = {json.dumps(live["combines"])}
max_depth = {live.get("depth", 1)}
max_width = 3
[search]
n_trials = {live["n_trials"]}
num_threads = 2
{"".join(agents)}"""


def live_study(live: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Check a study with a probe, run it, and return what was expected and what it took."""
    path = folder / f"{live['name']}.toml"
    path.write_text(study_text(live, live_tasks(live, folder)), "utf-8")
    checked = check_before(PreparedStudy.read(path), asks=True)
    result = run_study(path, out=folder / live["name"])
    calls = list(CallStore(folder / live["name"] / "calls.sqlite"))
    assert result.early is not None
    estimate = result.early.estimate
    assert estimate is not None
    spent = {
        "calls": result.calls_made,
        "tokens": sum(call.prompt_tokens + call.completion_tokens for call in calls),
        "usd": result.usd,
        "seconds": result.seconds,
    }
    probed = checked.whole.costs
    found: dict[str, Any] = {"study": live["name"]}
    for unit, value in spent.items():
        before, after = getattr(probed["likely"], unit), getattr(estimate, unit)
        found[unit] = {
            "spent": value,
            "probed": [getattr(probed[level], unit) for level in ("low", "likely", "high")],
            "estimated": [getattr(estimate.low, unit), after, getattr(estimate.high, unit)],
            "ratio_probed": value / before if before else None,
            "ratio": value / after if after else None,
        }
    return found


def live_studies(n: int) -> Iterator[dict[str, Any]]:
    """Yield what each of the first ``n`` live studies took."""
    drawn = (drawn_live(number) for number in range(len(LIVE), n))
    with tempfile.TemporaryDirectory() as folder:
        for live in (*LIVE[:n], *drawn):
            yield live_study(live, Path(folder))


def is_held(row: dict[str, Any], name: str, place: int) -> bool:
    """Return whether the range of a study holds what it took."""
    low, high = row["range"]
    return bool(low and high and low[place] <= row[name][1] <= high[place])


def share_checked(found: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the shares of studies that are within the factor, and in the range, of a check."""
    shares: dict[str, dict[str, float]] = {"within": {}, "held": {}}
    for place, name in enumerate(("calls", "usd")):
        spent = [(row[name][1], [ends[place] for ends in row["checked"]]) for row in found]
        near = [1 / FACTOR <= value / likely <= FACTOR for value, (_, likely, _) in spent]
        shares["within"][name] = fmean(near)
        shares["held"][name] = fmean(low <= value <= high for value, (low, _, high) in spent)
    return shares


def main() -> None:
    """Run the studies and print their ratios."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--studies", type=int, help="20, or 3 with --live")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", default="", help=f"all, or some of {', '.join(FAMILIES)}")
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.live:
        for live_row in live_studies(len(LIVE) if asked.studies is None else asked.studies):
            print(json.dumps(live_row), flush=True)
        return
    found, named = list[dict[str, Any]](), asked.family.split(",")
    families = list(FAMILIES) if asked.family == "all" else [name for name in named if name]
    runs: list[Callable[[int], dict[str, Any]]] = [
        partial(family_study, family) for family in families
    ]
    seeds = range(asked.seed, asked.seed + (20 if asked.studies is None else asked.studies))
    for run, seed in product(runs or [study], seeds):
        found.append(run(seed))
        if not asked.json:
            print(json.dumps(found[-1]), flush=True)
    within = {
        name: sum(1 / FACTOR <= row[f"{name}_ratio"] <= FACTOR for row in found) / len(found)
        for name in ("calls", "usd")
    }
    held = {
        name: sum(is_held(row, name, place) for row in found) / len(found)
        for place, name in enumerate(("calls", "usd"))
    }
    before = [row for row in found if "checked" in row]
    more: dict[str, Any] = {"checked": share_checked(before)} if before else {}
    more |= {"studies": found} if asked.json else {}
    print(json.dumps({"within": within, "held": held, **more}))


if __name__ == "__main__":
    main()
