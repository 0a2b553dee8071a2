"""``python -m moa_dspy`` is the command ``moa-dspy``."""

from moa_dspy.cli import main

main()
