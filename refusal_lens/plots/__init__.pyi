# ruff: noqa: F403
from ..attribution.figures import *
from ..attribution.views import *
from ..behaviour.figures import *
from ..direction.cone_figures import *
from ..direction.figures import *
from ..direction.views import *
from ..exactness.figures import *
from ..hijacking.circuits import plot_circuit as plot_circuit
from ..hijacking.curve_figures import *
from ..hijacking.figures import *
from ..hijacking.grid_figures import *
from ..hijacking.many_figures import *
from ..hijacking.views import *
