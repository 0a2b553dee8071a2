"""Every error this library raises on purpose.

* MoaError
  - ArchitectureError (also a ValueError): a mixture that cannot be built as described
  - PoolError (also a ValueError): an agent that is unknown, missing or badly described
  - DataError (also a ValueError): rows, splits or files that do not fit
  - MetricError (also a ValueError): a metric that raised or returned no finite number
  - StudyError (also a ValueError): a study file, or a run of it, that cannot go on
  - LayerFailedError: fewer proposers of a layer answered than the quorum asks for
  - LocalModelError (also an OSError): weights or a runtime that this machine cannot provide
    - ChecksumError: a file that is not the one the catalogue names
  - CallError: a call that was not answered
    - UnknownCallError (also a LookupError): a replay met a call that was never recorded
    - BudgetReachedError: the next call would go beyond what the user allowed
    - StoreError: the call store cannot be read or written
    - OutageError: an endpoint was down for longer than a study waits for it

A model's failure is data and raises none of these unless nothing is left.
"""

from __future__ import annotations


class MoaError(Exception):
    """Base class: ``except MoaError`` catches everything below."""


class ArchitectureError(MoaError, ValueError):
    """A mixture of agents that cannot be built as described."""


class PoolError(MoaError, ValueError):
    """An agent that is unknown, missing or badly described."""


class DataError(MoaError, ValueError):
    """Rows, splits or files that do not fit."""


class MetricError(MoaError, ValueError):
    """A metric that raised or returned something other than a finite number."""


class StudyError(MoaError, ValueError):
    """A study file, or a run of it, that cannot go on."""


class LayerFailedError(MoaError):
    """Fewer proposers of a layer answered than the quorum asks for; lists every cause."""


class LocalModelError(MoaError, OSError):
    """Weights or a runtime that this machine cannot provide."""


class ChecksumError(LocalModelError):
    """A file whose sha256 is not the one that the catalogue names."""


class CallError(MoaError):
    """A call to a language model that was not answered."""


class UnknownCallError(CallError, LookupError):
    """A replay met a call that was never recorded; names the agent and the example."""


class BudgetReachedError(CallError):
    """The next call would go beyond what the user allowed; says which limit."""


class StoreError(CallError):
    """The call store cannot be read or written."""


class OutageError(CallError):
    """An endpoint was down for longer than a study waits; all that was answered is kept."""


def ours(error: BaseException) -> MoaError | None:
    """Return the error of this library that is or caused ``error``, if there is one.

    DSPy wraps what an engine raises. A ``LayerFailedError`` does not count: models failed.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MoaError) and not isinstance(cause, LayerFailedError):
            return cause
        cause = cause.__cause__
    return None


def all_links(error: BaseException) -> list[BaseException]:
    """Return an error with all that led to it: a traceback prints them all."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links
