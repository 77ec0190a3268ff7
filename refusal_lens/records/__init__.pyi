from .base import Record as Record
from .base import load_record as load_record
from .direction import Direction as Direction
from .direction import Subspace as Subspace
from .store import Store as Store
from .stream import MassiveToken as MassiveToken
from .stream import StreamStatistics as StreamStatistics
