"""Explore a model by looking: one request, a suffix, an intervention, and what they do inside, beside controls."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
