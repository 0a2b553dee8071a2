"""``run.json``: which study a folder is of, how far it got, and what it spent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moa_dspy.calls import Spending, canonical_json
from moa_dspy.errors import StudyError
from moa_dspy.optimize.context import StageCounts


@dataclass(frozen=True, slots=True)
class Before:
    """What earlier runs of the same study leave behind."""

    spent: Spending | None = None
    counts: StageCounts | None = None


class RunLog:
    """``run.json``: which study this folder is of, how far it got, and what it spent.

    Args:
        path: The file.
        parts: Every part of the study by name, as plain data.
    """

    def __init__(self, path: Path, parts: Mapping[str, Any]) -> None:
        self.path = path
        self.parts = {name: digest_of(value) for name, value in parts.items()}
        self._budget: dict[str, Any] = {}

    @property
    def digest(self) -> str:
        """What names the study by its content, and not this run of it."""
        return digest_of(self.parts)

    def continued(self, *, resume: bool, budget: dict[str, Any]) -> Before:
        """Return what this run starts from.

        Raises:
            StudyError: If ``resume`` finds no run, or one of another study, naming what changed.
        """
        self._budget = budget
        old = self._read()
        if old is None:
            if resume:
                raise StudyError(f"There is nothing to resume: {self.path} does not exist.")
            return Before()
        changed = [name for name, value in self.parts.items() if old["parts"].get(name) != value]
        if resume and changed:
            raise StudyError(
                f"{self.path.parent} holds another study: {', '.join(changed)} changed since. "
                "Run without --resume, or with another --out."
            )
        is_same = not changed and old["budget"] == budget
        if is_same and old["status"] == "finished":
            return Before(Spending(**old["spent"]), _counts(old["counts"]))
        return Before(Spending(**old["spent"])) if resume else Before()

    def write(self, status: str, spent: Spending, counts: StageCounts | None = None) -> None:
        """Write the state; the old file stays until the new one is whole."""
        state = {
            "status": status,
            "parts": self.parts,
            "budget": self._budget,
            "spent": asdict(spent),
            "counts": asdict(counts) if counts else None,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(state, indent=2) + "\n", "utf-8")
        partial.replace(self.path)

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = json.loads(self.path.read_text("utf-8"))
        except ValueError as error:
            raise StudyError(f"{self.path} is not a run of moa-dspy: {error}.") from error
        return state


def digest_of(value: Any) -> str:
    """Return 16 hexadecimal digits that name plain data by its content."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def _counts(plain: dict[str, Any]) -> StageCounts:
    return StageCounts(**{**plain, "phases": tuple(plain.get("phases", ()))})
