"""Made-up worlds in which every architecture's true score is known, and searches through them."""

from tests.bench.economy._families import FAMILIES
from tests.bench.economy._runs import Run, best_draw, other_draw, ours, tpe
from tests.bench.economy._world import World

__all__ = ["FAMILIES", "Run", "World", "best_draw", "other_draw", "ours", "tpe"]
