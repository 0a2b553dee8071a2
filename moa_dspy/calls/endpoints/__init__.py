"""What really asks a model: DSPy's own client, or LiteLLM's."""
