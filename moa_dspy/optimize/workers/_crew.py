"""The coordinator's side: it offers tasks, works on them too, and says when a row is ready."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Ledger
from moa_dspy.optimize.workers._hands import Hands
from moa_dspy.optimize.workers._tasks import Task, TaskBoard


class TaskCrew:
    """A ``Crew`` of all processes that work on a study.

    Args:
        board: Where tasks are offered.
        hands: Of this process.
        ledger: Says which part of the budget the stage may use.
    """

    def __init__(self, board: TaskBoard, hands: Hands, ledger: Ledger) -> None:
        self._board, self._hands, self._ledger = board, hands, ledger
        self._offered: dict[tuple[str, str], bool] = {}

    def announce(
        self, wanted: Iterable[tuple[Architecture, Sequence[dspy.Example]]], *, is_urgent: bool
    ) -> None:
        """See the protocol."""
        pairs = dict.fromkeys((str(one), row.id) for one, rows in wanted for row in rows)
        known = self._offered
        fresh = [pair for pair in pairs if pair not in known or (is_urgent and not known[pair])]
        if fresh:
            tasks = [Task(*pair, self._ledger.share) for pair in fresh]
            self._board.publish(tasks, is_urgent=is_urgent)
            known.update(dict.fromkeys(fresh, is_urgent))

    def ready(
        self, architecture: Architecture, rows: Sequence[dspy.Example]
    ) -> Iterator[dspy.Example]:
        """See the protocol."""
        self.announce([(architecture, rows)], is_urgent=True)
        waiting = {row.id: row for row in rows}
        while True:
            self._hands.turn()
            still_open = self._board.open_examples(str(architecture))
            for name in [name for name in waiting if name not in still_open]:
                yield waiting.pop(name)
                if self._hands.has_news:
                    self._hands.turn()
            if not waiting:
                return
            self._hands.rest()
