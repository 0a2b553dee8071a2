"""A mixture as a language model: as a DSPy LM, in LiteLLM, and as an OpenAI-compatible server."""

from moa_dspy.serve.lm import MixtureLM

__all__ = ["MixtureLM"]
