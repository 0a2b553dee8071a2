"""The command ``moa-dspy``: search, ask, and the small models of this machine.

DSPy and Optuna take seconds to import, so every command imports what it needs on its own.
"""

from moa_dspy.cli.app import app, main

__all__ = ["app", "main"]
