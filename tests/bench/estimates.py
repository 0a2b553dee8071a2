"""What a study was expected to take, of its single agents alone, against what it took.

    python tests/bench/estimates.py [--studies 20] [--seed 0] [--json]

Each study is made up by its seed: agents of other accuracies, lengths of answers and prices,
widths, depths, combiners, sizes, prompts to tune. Nothing is asked over the network. Printed are
spent over expected, in calls and usd, per study, and the share of studies within a factor 1.25.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import dspy

from moa_dspy import MixtureOfAgents, ModelSearch
from moa_dspy.adapters import PlainChat
from moa_dspy.data import answer_match
from moa_dspy.optimize import PromptOptions, SearchSpace
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
    pool = scripted_pool(
        {name: agent(name, seed, rng) for name in names},
        usd_per_million_tokens=prices,
        reads_all=True,
        count=count_tokens,
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
    search.compile(
        first, trainset=rows("train", 20), valset=rows("val", n_val), testset=rows("test", n_test)
    )
    result, spent = search.result, pool.calls.ledger.spending
    assert result.early is not None
    assert result.early.estimate is not None
    expected = result.early.estimate
    return {
        "seed": seed,
        "agents": len(names),
        "combines": "+".join(combines),
        "width": width,
        "depth": depth,
        "rows": [n_val, n_test],
        "trials": search.options.n_trials,
        "prompts": has_prompts,
        "rows_measured": sum(one.rows for one in result.trials) / (n_val * len(result.trials)),
        "calls": [expected.calls, result.calls_made],
        "usd": [expected.usd, result.usd],
        "calls_ratio": result.calls_made / expected.calls,
        "range": [ends and [ends.calls, ends.usd] for ends in (expected.low, expected.high)],
        "usd_ratio": result.usd / expected.usd if result.usd and expected.usd else None,
        "made": spent.made,
    }


def main() -> None:
    """Run the studies and print their ratios."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = []
    for seed in range(asked.seed, asked.seed + asked.studies):
        found.append(study(seed))
        if not asked.json:
            print(json.dumps(found[-1]), flush=True)
    within = {
        name: sum(1 / FACTOR <= one[f"{name}_ratio"] <= FACTOR for one in found) / len(found)
        for name in ("calls", "usd")
    }
    summary = {"within": within, "studies": found} if asked.json else {"within": within}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
