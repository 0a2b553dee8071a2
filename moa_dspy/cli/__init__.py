"""The command ``moa-dspy``: searches, questions, and the small models of this machine.

DSPy and Optuna take seconds to import, so each command imports only what it needs.
"""

from moa_dspy.cli.app import app, main

__all__ = ["app", "main"]
