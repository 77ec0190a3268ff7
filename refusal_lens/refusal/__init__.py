"""How refusing is measured: refusal tokens, the refusal metric, refusal phrases, replies."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
