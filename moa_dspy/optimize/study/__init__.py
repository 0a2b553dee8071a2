"""A study on disk: its file, its run, its database."""

from moa_dspy.optimize.study._database import save_study
from moa_dspy.optimize.study._file import StudyFile, read_study
from moa_dspy.optimize.study._log import RunLog, digest_of
from moa_dspy.optimize.study._prepared import Prepared
from moa_dspy.optimize.study._staged_store import StagedStore

__all__ = [
    "Prepared",
    "RunLog",
    "StagedStore",
    "StudyFile",
    "digest_of",
    "read_study",
    "save_study",
]
