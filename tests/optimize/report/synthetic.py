"""A made-up study of any size, whose texts do all that can go wrong on a page."""

from __future__ import annotations

import random

from moa_dspy.architecture import Architecture
from moa_dspy.cli.report import Report
from moa_dspy.optimize.answers import AskedQuestion, StudyAnswers, SystemAnswers
from moa_dspy.optimize.live_view import printed_text
from moa_dspy.optimize.result import StudyResult, SystemScore, TrialRecord
from moa_dspy.winrate import Interval, Verdict

HOSTILE = [
    "</script><script>window.attacked = 1</script>",
    "<img src=x onerror='window.attacked = 1'>",
    "{{ 7 * 7 }} {% raw %} ]]> --> <!--",
    "line\u2028separator\u2029and \u202eturned\u202c text \ud83d",
    "| a | table | `code` ```\n# heading",
    "a plain answer",
    "",
]
AGENTS = ("haiku", "mini-warm", "flash", "llama<img/8b", "qwen-1.5b", "smollm2")
PICK = "flash + haiku*2 > haiku + llama<img/8b > synthesize(haiku)"


def synthetic_study(
    *, n_trials: int = 1000, n_questions: int = 500
) -> tuple[StudyResult, StudyAnswers]:
    """Return a study with so many trials and test questions."""
    rng = random.Random(0)
    trials = [trial(n, name, rng) for n, name in enumerate(architectures(rng, n_trials))]
    gain = Interval(0.04, 0.012, 0.068, 0.95)
    rows = {
        "pick": score("pick", PICK, 0.71, 9.0),
        "best_single": score("best_single", "haiku", 0.67, 1.0),
        "self_moa": score("self_moa", "haiku*3 > synthesize(haiku)", 0.72, 4.0),
        "oracle": SystemScore("oracle", None, 0.83, 0.8, 0.86, note="best agent of each"),
    }
    result = StudyResult(
        pick=Architecture.parse(PICK),
        recommended=Architecture.parse(PICK),
        verdict=Verdict("mixture", 0.004, gain, n_questions, 0, "Use the mixture: [measured]."),
        val=dict(rows),
        test=rows,
        differences={"best_single": gain, "self_moa": Interval(-0.01, -0.04, 0.02, 0.95)},
        optimism=0.018,
        trials=tuple(trials),
        space_size=None,
        calls_made=123456,
        calls_reused=789,
        usd=12.5,
        seconds=9000.0,
        seed=1,
        versions={"python": "3.12", "moa-dspy": "0.1.0"},
        notes=(HOSTILE[0],),
        expected=Interval(0.7, 0.66, 0.74, 0.95),
        prompts=(
            {"name": "brief", "origin": "gepa", "text": HOSTILE[4], "accepted": True}
            | {"val": {"score": 0.7, "architecture": PICK, "own": 0.68}, "diff": HOSTILE[0]},
            {"name": "refused", "text": HOSTILE[1], "accepted": False},
        ),
    )
    return result, answers(rng, n_questions)


def architectures(rng: random.Random, n: int) -> list[str]:
    found = dict.fromkeys([*AGENTS, PICK])
    while len(found) < n:
        layer = " + ".join(sorted(rng.sample(AGENTS, rng.randint(2, 4))))
        middle = f" > {rng.choice(AGENTS)}*{rng.randint(2, 5)}" if rng.random() < 0.5 else ""
        found[f"{layer}{middle} > synthesize({rng.choice(AGENTS)})"] = None
    return list(found)[:n]


def trial(number: int, name: str, rng: random.Random) -> TrialRecord:
    is_single = ">" not in name
    calls = 1.0 if is_single else rng.uniform(2, 12)
    value = rng.gauss(0.55, 0.03) if is_single else min(0.75, rng.gauss(0.6, 0.05))
    return TrialRecord(
        number,
        name,
        "single" if is_single else "model",
        value,
        value,
        0.0 if is_single else rng.uniform(0.1, 0.8),
        calls,
        calls * rng.uniform(0.0001, 0.001),
        rng.uniform(0.5, 9),
        200,
        is_stopped_early=not is_single and rng.random() < 0.3,
    )


def score(name: str, architecture: str, value: float, calls: float) -> SystemScore:
    low, high, usd = value - 0.04, value + 0.04, calls / 5000
    return SystemScore(name, architecture, value, low, high, calls, usd, calls / 2)


def answers(rng: random.Random, n: int) -> StudyAnswers:
    systems: list[tuple[tuple[str, ...], str]] = [(("pick",), PICK), (("best_single",), "haiku")]
    systems += [(("self_moa",), "haiku*3 > synthesize(haiku)")]
    systems += [((), name) for name in AGENTS[1:]]
    return StudyAnswers(
        questions=tuple(
            AskedQuestion(f"q{k}", f"Question {k}? {HOSTILE[k % 6]} {noise(rng, 300)}", "42")
            for k in range(n)
        ),
        systems=tuple(
            SystemAnswers(
                names,
                name,
                tuple(float(rng.random() < 0.6) for _ in range(n)),
                tuple(f"{HOSTILE[k % 7]} {noise(rng, 400)}" for k in range(n)),
                {"7": "ServiceUnavailable: <b>down</b>"},
            )
            for names, name in systems
        ),
        distances=tuple(tuple(float(a != b) * 0.4 for b in AGENTS) for a in AGENTS),
        agents=AGENTS,
        diversity="Disagreement",
        calls=(
            {"stage": "search", "agent": "haiku", "made": 10, "reused": 3}
            | {"failed": 1, "tokens": 900, "usd": 0.01},
        ),
        study={"name": "synthetic"},
        n_cut=3,
    )


def noise(rng: random.Random, n: int) -> str:
    words = ("the", "because", "answer", "therefore", "model", "seven", "river", "not", "value")
    text = " ".join(rng.choice(words) + str(rng.randrange(99)) for _ in range(n // 8))
    return text[:n]


def report_text(result: StudyResult, width: int = 100) -> str:
    """Return the closing table as the command line prints it."""
    return printed_text(Report(result), width=width)
