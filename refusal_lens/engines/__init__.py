"""Where the work of a stage runs: in this process, or on the workers of a Ray cluster, with the same results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
