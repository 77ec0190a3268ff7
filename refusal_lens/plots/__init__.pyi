# ruff: noqa: F403
from ..attribution.figures import *
from ..attribution.views import *
from ..behaviour.figures import *
from ..direction.figures import *
from ..exactness.figures import *
from ..hijacking.figures import *
from ..hijacking.views import *
