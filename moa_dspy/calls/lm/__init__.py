"""Engines below DSPy's LM: they answer from the calls, and stream."""
