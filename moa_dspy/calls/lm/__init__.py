"""Engines below DSPy's LM, which answer through ``Calls`` and can stream."""
