"""What a suffix does inside a model, at which layer, through which heads and tokens, and whether that is the cause."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
