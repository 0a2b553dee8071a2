"""The committed recording is what its card says, and answers the whole space of its study."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from moa_dspy.agent import read_agents
from moa_dspy.calls import Recording
from moa_dspy.optimize import run_study
from moa_dspy.optimize.study_file import read_study

ROOT = Path(__file__).parent.parent.parent
HERE = ROOT / "data/quickstart"


@pytest.fixture(scope="module")
def recorder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record", HERE / "record.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_card_numbers_are_those_of_the_file(recorder: ModuleType) -> None:
    kept = json.loads((HERE / "recording.json").read_text("utf-8"))
    again = recorder.summarize(Recording.read(HERE / "calls.parquet"), kept["architectures"])
    machine = ("xllamacpp", "cores")  # of the machine that recorded
    assert {k: v for k, v in kept.items() if k not in machine} == {
        k: v for k, v in again.items() if k not in machine
    }


def test_size_of_the_study_is_the_size_that_was_announced() -> None:
    study = read_study(ROOT / "optimize/quickstart.toml")
    agents, notes = study.make_agents()
    kept = json.loads((HERE / "recording.json").read_text("utf-8"))
    assert notes == ()
    assert study.make_space(agents).size == kept["architectures"]


def test_recordings_name_the_weights_of_the_pool() -> None:
    agents = read_agents(ROOT / "optimize/pools/quickstart.toml")
    identities = {agent.identity for agent in agents}
    assert {call.identity for call in Recording.read(HERE / "calls.parquet")} == identities
    assert {call.identity for call in Recording.read(HERE / "syntheses.parquet")} <= identities
    assert len({identity.partition("sha256:")[2] for identity in identities}) == 3


@pytest.mark.slow
def test_every_architecture_of_the_space_is_answered(tmp_path: Path) -> None:
    text = (ROOT / "optimize/quickstart.toml").read_text("utf-8")
    text = text.replace('"../', f'"{ROOT}/').replace('"pools/', f'"{ROOT}/optimize/pools/')
    study = tmp_path / "all.toml"
    study.write_text(text.replace("n_trials = 40", "n_trials = 1000"), "utf-8")
    result = run_study(study, out=tmp_path / "out")
    assert len(result.trials) == result.space_size
    assert (result.calls_made, result.failures) == (0, {})
    assert [row.note for row in result.test.values() if row.score is None] == []


def test_every_set_of_agents_is_synthesized_by_the_two_smaller_models(recorder: ModuleType) -> None:
    agents = read_agents(ROOT / "optimize/pools/quickstart.toml")
    layers = [*recorder.every_set({agent.name: agent for agent in agents}), *recorder.SAMPLES]
    sets = json.loads((ROOT / "docs/results/layers.json").read_text("utf-8"))["sets"]
    found = {run["architecture"] for run in sets}
    # Of five agents 10 pairs, 10 triples, 5 quadruples and one of all; and two of samples.
    assert len(layers) == 28
    for name in ("smollm2-135m", "qwen-0.5b"):
        assert set(map(str, recorder.synthesized(layers, name))) <= found
    assert len(found) == len(sets) >= 60


@pytest.mark.slow
def test_quickstart_in_python_is_short_and_says_its_verdict() -> None:
    script = ROOT / "optimize/quickstart.py"
    assert len(script.read_text("utf-8").splitlines()) < 30
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    verdict, answer = done.stdout.splitlines()
    assert verdict.startswith(("Use the mixture", "Keep the single model", "Not enough examples"))
    assert " answers " in answer
