"""Programs as JSON files: who sits where, prompts and demos; never a key, an endpoint or code."""

from moa_dspy.program_file._load import load_program, restore_program
from moa_dspy.program_file._save import save_program
from moa_dspy.program_file._types import TYPES

__all__ = ["TYPES", "load_program", "restore_program", "save_program"]
