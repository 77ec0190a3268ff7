from .base import Engine as Engine
from .base import Work as Work
from .local import LocalEngine as LocalEngine
from .local import MakeEngine as MakeEngine
from .local import named_engine as named_engine
from .stage import Job as Job
from .stage import Stage as Stage
