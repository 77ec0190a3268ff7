"""Judges of replies, pluggable: phrases, local classifiers, Llama Guard, any OpenAI-compatible endpoint."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
