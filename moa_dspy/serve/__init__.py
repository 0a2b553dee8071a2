"""A mixture anywhere a language model goes: as a DSPy LM, in LiteLLM, and as a server."""

from moa_dspy.serve.lm import MixtureLM

__all__ = ["MixtureLM"]
