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
        self._offered: set[tuple[str, str]] = set()

    def announce(self, wanted: Iterable[tuple[Architecture, Sequence[dspy.Example]]]) -> None:
        """See the protocol."""
        pairs = dict.fromkeys((str(one), row.id) for one, rows in wanted for row in rows)
        if fresh := [pair for pair in pairs if pair not in self._offered]:
            self._board.publish(Task(*pair, self._ledger.share) for pair in fresh)
            self._offered.update(fresh)

    def ready(
        self, architecture: Architecture, rows: Sequence[dspy.Example]
    ) -> Iterator[dspy.Example]:
        """See the protocol."""
        self.announce([(architecture, rows)])
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
