from .base import Engine as Engine
from .base import Work as Work
from .choice import MakeEngine as MakeEngine
from .choice import named_engine as named_engine
from .journal import Journal as Journal
from .local import LocalEngine as LocalEngine
