"""The aggregator's prompt, optimised alone and together with the layers; prints one JSON object.

    python optimize/aggregator_prompt.py > docs/results/aggregator_prompt.json

Needs the weights that `optimize/pools/local.toml` names. A second run answers from the store.
"""

import json
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt.gepa import InstructionProposer

from moa_dspy import Architecture, MixtureOfAgents, Pool
from moa_dspy.calls import Budget, Calls, CallStore, Recording
from moa_dspy.optimize import (
    ModelSearch,
    PromptReport,
    ReferenceDemos,
    SearchSpace,
    TryPrompts,
    optimize_aggregator,
)
from moa_dspy.optimize.prompts import PromptOptions
from moa_dspy.optimize.study_file import StudyFile, check_study
from moa_dspy.winrate import mean_interval, paired_interval

HERE = Path(__file__).parent
STORE = HERE.parent / "runs" / "aggregator_prompt" / "calls.sqlite"
WRITER = "writer"


def optimizers(table: dict[str, Any], pool: Pool, metric: Any) -> Iterator[tuple[str, Any]]:
    """Yield the arms of the study that the table names, the cheapest first."""
    if "written" in table:
        yield "written", TryPrompts(**table["written"], num_threads=4)
    if "demos" in table:
        yield "demos", ReferenceDemos(**table["demos"])
    if "gepa" in table:
        yield (
            "gepa",
            dspy.GEPA(
                metric=metric,
                max_metric_calls=table["gepa"]["max_metric_calls"],
                reflection_lm=pool.lm(WRITER),
                # A small writer breaks JSON; the chat format it can follow.
                instruction_proposer=InstructionProposer(adapter=dspy.ChatAdapter()),
                num_threads=4,
            ),
        )


def make_pool(study: StudyFile, table: dict[str, Any]) -> Pool:
    """Return the agents, and the writer: one of them with room for a prompt."""
    agents, _ = study.make_agents()
    listed = {agent.name: agent for agent in agents}
    if gepa := table.get("gepa"):
        sampling = {"temperature": gepa["temperature"], "max_tokens": gepa["max_tokens"]}
        listed[WRITER] = replace(listed[gepa["writer"]], name=WRITER, **sampling)
    recording = Recording.read(study.calls.recording) if study.calls.recording else None
    return Pool(listed.values(), calls=Calls(CallStore(STORE), recording=recording))


def joint(table: dict[str, Any], study: StudyFile, pool: Pool, student: Any) -> dict[str, Any]:
    """Search layers and prompt together, on the same rows; the prompts are those of the arms."""
    arm, metric, splits = table["joint"], study.make_metric(), study.make_splits()
    architecture = Architecture.parse(table["architecture"])
    written = table.get("written", {}).get("prompts", [])
    tuner = dict(optimizers(table, pool, metric)).get(arm["optimizer"])
    search = ModelSearch(
        metric,
        pool,
        space=SearchSpace(
            architecture.layers[0],
            combines=("synthesize",),
            aggregators=(str(architecture.aggregator),),
            max_depth=1,
        ),
        prompts=PromptOptions(
            texts={f"written-{n}": text for n, text in enumerate(written, start=1)},
            optimizer=tuner,
            share=arm["share"],
            top=arm["top"],
        ),
        n_trials=arm["n_trials"],
        budget=Budget(calls=arm["calls"]),
        random_share=0.0,
        num_threads=study.search["num_threads"],
        seed=study.seed,
        callbacks=[lambda _, trial: print(trial.user_attrs["architecture"], file=sys.stderr)],
    )
    search.compile(
        student,
        trainset=list(splits.train),
        valset=list(splits.val),
        testset=list(splits.test),
    )
    return search.result.to_json()


def scores(program: Any, rows: Any, metric: Any) -> list[float]:
    """Return the metric of the program on every row."""
    return [float(metric(row, program(**row.inputs()))) for row in rows]


def run(path: Path) -> dict[str, Any]:
    """Run every arm on the same rows, each against the incumbent, and the single agent too."""
    content = tomllib.loads(path.read_text("utf-8"))
    table = content.pop("prompt")
    study = check_study(content, where=str(path)).with_paths_from(path.parent)
    started, splits, metric = time.monotonic(), study.make_splits(), study.make_metric()
    pool = make_pool(study, table)
    student = study.make_student(pool)
    architecture = Architecture.parse(table["architecture"])
    program: MixtureOfAgents = student.with_architecture(architecture)
    single = student.with_architecture(Architecture.single(str(architecture.aggregator)))
    alone = scores(single, splits.test, metric)
    options: Any = {"num_threads": study.search["num_threads"], "seed": study.seed}
    arms: dict[str, Any] = {}
    for name, optimizer in optimizers(table, pool, metric):
        train, val, test = splits.train, splits.val, splits.test
        result = optimize_aggregator(
            program, optimizer, train, val, testset=test, metric=metric, **options
        )
        print(PromptReport(result), file=sys.stderr)
        minus = paired_interval(scores(result.program, test, metric), alone)
        arms[name] = {**result.to_json(), "test_minus_single": asdict(minus)}
    together = {"joint": joint(table, study, pool, student)} if "joint" in table else {}
    return {
        "architecture": str(architecture),
        "rows": {name: len(getattr(splits, name)) for name in ("train", "val", "test")},
        "single": {"agent": architecture.aggregator, "test": asdict(mean_interval(alone))},
        "arms": arms,
        **together,
        "seconds": round(time.monotonic() - started),
    }


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):
        # DSPy's optimizers print; what is printed here is one JSON object.
        found = run(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "aggregator_prompt.toml")
    print(json.dumps(found, indent=1, ensure_ascii=False))
