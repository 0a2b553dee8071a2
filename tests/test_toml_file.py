from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from moa_dspy.errors import PoolError, StudyError
from moa_dspy.files import check_table, options_table, read_toml


class Seat(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = 1
    depth: int = 1


class Plan(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    seats: list[Seat] = []
    best: Seat | None = None
    by_name: dict[str, Seat] = {}


def refused(value: object) -> str:
    with pytest.raises(StudyError, match=r"^plan") as caught:
        check_table(Plan, value, where="plan", error=StudyError)
    return str(caught.value)


def test_a_file_becomes_its_content(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('name = "é"\n[[seats]]\nwidth = 2\n', encoding="utf-8")
    content = read_toml(path, error=PoolError)
    plan = check_table(Plan, content, where="plan", error=PoolError)
    assert (plan.name, plan.seats) == ("é", [Seat(width=2)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"p\.toml cannot be read: No such file or directory\."),
        (b"name = '\xff'", r"p\.toml is not UTF-8: byte 8 cannot be decoded\."),
        (b"name = \n", r"p\.toml is not TOML: .*line 1"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "p.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PoolError, match=message):
        read_toml(path, error=PoolError)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "plan.name: this key is missing."),
        (
            {"nam": "a", "name": "a"},
            "plan.nam: unknown key; known ones are best, by_name, name, seats. "
            "Did you mean 'name'?",
        ),
        (
            {"name": "a", "seats": [{}, {"widht": 1}]},
            "plan.seats[1].widht: unknown key; known ones are depth, width. Did you mean 'width'?",
        ),
        (
            {"name": "a", "best": {"deep": 1}},
            "plan.best.deep: unknown key; known ones are depth, width. Did you mean 'depth'?",
        ),
        (
            {"name": "a", "by_name": {"x": {"colour": 1}}},
            "plan.by_name.x.colour: unknown key; known ones are depth, width.",
        ),
    ],
)
def test_an_unknown_or_missing_key_is_named_with_its_place(
    value: dict[str, Any], message: str
) -> None:
    assert refused(value) == message


def test_a_wrong_type_is_named_with_place_and_value() -> None:
    value = {"name": "a", "seats": [{"width": "wide"}]}
    assert refused(value).startswith("plan.seats[0].width: input should be a valid integer")
    assert refused(value).endswith("but got 'wide'.")


def test_a_key_in_the_wrong_place_is_not_printed_even_in_the_traceback() -> None:
    # People do write api_key = "..." into such files.
    key = "-".join(["sk", "planted"])  # in pieces: a traceback shows this file's lines as well
    with pytest.raises(StudyError, match="unknown key") as caught:
        check_table(Plan, {"name": "a", "api_key": key}, where="plan", error=StudyError)
    assert key not in "".join(traceback.format_exception(caught.value))


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_bytes(b'\xef\xbb\xbfname = "a"\n')
    assert read_toml(path, error=PoolError) == {"name": "a"}


def test_values_nested_too_deeply_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(f"x = {'[' * 5000}{']' * 5000}", "utf-8")
    with pytest.raises(PoolError, match=r"p\.toml is not TOML"):
        read_toml(path, error=PoolError)


def test_an_old_key_names_the_new_one() -> None:
    with pytest.raises(
        StudyError, match=r"^plan\.best\.deep: this key is now called `best\.depth`"
    ):
        check_table(
            Plan,
            {"name": "a", "best": {"deep": 1}},
            where="plan",
            error=StudyError,
            renamed={"best.deep": "best.depth"},
        )


def test_a_text_that_may_be_a_key_is_not_shown() -> None:
    value = {"name": "a", "best": {"width": "sk-1"}}
    with pytest.raises(StudyError, match="but got a text of 4 characters") as caught:
        check_table(Plan, value, where="plan", error=StudyError, may_hold_keys=True)
    assert "sk-1" not in str(caught.value)
    # Elsewhere only a text as long as a key is kept back.
    assert refused({"name": "a", "best": {"width": "x" * 25}}).endswith("a text of 25 characters.")


@dataclass(frozen=True)
class Options:
    width: int = 3
    names: tuple[str, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)
    inner: object = None


def test_a_table_of_options_has_their_names_types_and_defaults() -> None:
    table = options_table(Options, without=("inner",), names=(tuple[str, ...], ("a",)))
    made = check_table(table, {"width": 4}, where="t", error=StudyError)
    assert made.model_dump() == {"width": 4, "names": ("a",), "texts": {}}
    with pytest.raises(
        StudyError, match=r"^t\.inner: unknown key; known ones are names, texts, wid"
    ):
        check_table(table, {"inner": 1}, where="t", error=StudyError)
