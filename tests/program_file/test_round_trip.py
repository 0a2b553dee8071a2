from __future__ import annotations

import datetime
import enum
import json
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import dspy
import pydantic
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.program_file import TYPES, save_program
from moa_dspy.testing import scripted_pool
from tests.program_file.world import ANSWERS, MIXTURE, program


@pytest.mark.parametrize(
    "architecture", ["a", MIXTURE, "a + b > select(c)", "a + b > select", "a + b > vote(b)"]
)
@pytest.mark.parametrize("agent", [dspy.Predict, dspy.ChainOfThought])
def test_a_loaded_program_asks_exactly_what_the_saved_one_asked(
    tmp_path: Path, architecture: str, agent: Any
) -> None:
    reply = "[[ ## reasoning ## ]]\nnone\n\n[[ ## answer ## ]]\nParis\n\n[[ ## best ## ]]\n1"
    pool = scripted_pool(dict.fromkeys("abc", reply))
    first = program(pool, architecture, module=agent, adapter=dspy.ChatAdapter())
    for number, (_, seat) in enumerate(first.named_predictors()):
        seat.signature = seat.signature.with_instructions(f"Seat {number} names capitals.")
        seat.demos = [dspy.Example(question=f"Seat {number}, Italy?", answer="Rome")]
    expected = first(question="France?")
    made = pool.calls.ledger.spending.made

    save_program(first, tmp_path / "program.json")
    loaded = MixtureOfAgents.load(tmp_path / "program.json", pool=pool)

    assert loaded.architecture == Architecture.parse(architecture)
    assert loaded(question="France?").answer == expected.answer == "Paris"
    # Calls are stored by content: any difference in a message would be a new call.
    assert pool.calls.ledger.spending.made == made


def test_settings_of_the_mixture_survive(tmp_path: Path) -> None:
    pool = scripted_pool(ANSWERS)
    save_program(program(pool, normalise="answer", quorum=2), tmp_path / "p.json")
    loaded = MixtureOfAgents.load(tmp_path / "p.json", pool=pool)
    assert (loaded.normalise, loaded.quorum) == ("answer", 2)
    assert isinstance(loaded.adapter, PlainChat)


def test_types_and_descriptions_survive(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"text": (str, dspy.InputField(desc="what to judge"))}
    for number, kind in enumerate(TYPES.values()):
        fields[f"out_{number}"] = (kind, dspy.OutputField())
    fields["label"] = (Literal["yes", "no"], dspy.OutputField())
    pool = scripted_pool(ANSWERS)
    mixture = MixtureOfAgents(dspy.Signature(fields, "Judge."), "a", pool=pool)
    save_program(mixture, tmp_path / "p.json")

    signature = MixtureOfAgents.load(tmp_path / "p.json", pool=pool).signature

    assert signature.instructions == "Judge."
    assert [field.annotation for field in signature.output_fields.values()] == [
        *TYPES.values(),
        Literal["yes", "no"],
    ]
    assert signature.fields["text"].json_schema_extra["desc"] == "what to judge"


class Verdict(pydantic.BaseModel):
    is_true: bool


def test_a_type_of_ones_own_needs_the_signature(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "claim": (str, dspy.InputField()),
        "verdict": (Verdict, dspy.OutputField()),
    }
    signature, pool = dspy.Signature(fields, "Judge."), scripted_pool(ANSWERS)
    save_program(MixtureOfAgents(signature, "a", pool=pool), tmp_path / "p.json")

    with pytest.raises(ArchitectureError, match=r"field 'verdict' has type .* Give `signature=`"):
        MixtureOfAgents.load(tmp_path / "p.json", pool=pool)
    loaded = MixtureOfAgents.load(tmp_path / "p.json", pool=pool, signature=signature)
    assert loaded.signature.fields["verdict"].annotation is Verdict
    with pytest.raises(ArchitectureError, match=r"claim -> truth, but .* claim -> verdict"):
        MixtureOfAgents.load(
            tmp_path / "p.json", pool=pool, signature=dspy.Signature("claim -> truth")
        )


def test_no_key_endpoint_or_weights_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_KEY", "sk-planted-0123456789")
    agents = [
        Agent(
            name="a",
            model="openai/x",
            api_base="https://secret-host.example/v1",
            api_key_env="PLANTED_KEY",
        ),
        Agent(name="b", model="local/y", weights="secret-folder/y.gguf", sha256="0" * 64),
    ]
    mixture = program(Pool(agents), "a + b > synthesize(a)")
    mixture.set_lm(dspy.LM("openai/x", api_key="sk-planted-0123456789", cache=False))
    save_program(mixture, tmp_path / "p.json", scores={"test": 0.5})

    text = (tmp_path / "p.json").read_text("utf-8")

    assert json.loads(text)["scores"] == {"test": 0.5}
    assert not [word for word in ("sk-planted", "secret", "PLANTED", '"lm"') if word in text]


class Color(enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    SMALL = 1


DEMO_VALUES: list[tuple[Any, Any]] = [
    (Color, Color.RED),
    (Size, Size.SMALL),
    (datetime.date, datetime.date(2024, 1, 2)),
    (datetime.datetime, datetime.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)),
    (datetime.time, datetime.time(3, 4)),
    (list[Color], [Color.RED]),
    (dict[Color, datetime.date], {Color.RED: datetime.date(2024, 1, 2)}),
    (set[int], {3}),
    (Decimal, Decimal("1.50")),
    (Verdict, Verdict(is_true=True)),
]


@pytest.mark.parametrize(("kind", "value"), DEMO_VALUES)
def test_demos_of_any_type_survive_as_they_are_shown(tmp_path: Path, kind: Any, value: Any) -> None:
    fields: dict[str, Any] = {
        "q": (kind, dspy.InputField()),
        "answer": (str, dspy.OutputField()),
        "x": (kind, dspy.OutputField()),
    }
    signature: Any = dspy.make_signature(fields, "Do.")
    pool = scripted_pool(ANSWERS)
    first = MixtureOfAgents(signature, "a + b > synthesize(c)", pool=pool)
    demo = dspy.Example(q=value, references=["x"], answer="A", x=value)
    first.aggregator.demos = [demo.with_inputs("q", "references")]
    save_program(first, tmp_path / "p.json")
    loaded = MixtureOfAgents.load(tmp_path / "p.json", pool=pool, signature=signature)

    def messages(mixture: MixtureOfAgents) -> Any:
        seat = mixture.aggregator
        inputs = {"q": value, "references": []}
        return dspy.ChatAdapter().format(seat.signature, seat.demos, inputs)

    assert len(loaded.aggregator.demos) == 1
    assert messages(loaded) == messages(first)


@pytest.mark.parametrize("value", [object(), float("nan"), [object()]])
def test_a_demo_that_is_no_data_is_named_with_its_seat_and_field(
    tmp_path: Path, value: Any
) -> None:
    mixture = program(scripted_pool(ANSWERS), "a + b > synthesize(c)")
    mixture.aggregator.demos = [dspy.Example(question="Italy?", answer=value)]
    message = r"aggregator, a demo: the field 'answer' cannot be written as JSON"
    with pytest.raises(ArchitectureError, match=message):
        save_program(mixture, tmp_path / "p.json")
    assert not list(tmp_path.iterdir())
