"""Entry point of ``python -m moa_dspy``, the same as the command ``moa-dspy``."""

from __future__ import annotations

from moa_dspy.cli.app import main

main()
