from .base import Engine as Engine
from .base import Work as Work
from .choice import MakeEngine as MakeEngine
from .choice import named_engine as named_engine
from .local import LocalEngine as LocalEngine
from .stage import Job as Job
from .stage import Stage as Stage
