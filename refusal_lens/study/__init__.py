"""The main job: settings, stages, results."""

from .config import StudyConfig
from .result import Metrics, Study
from .run import run_study
from .runner import Progress, silent

__all__ = ["Metrics", "Progress", "Study", "StudyConfig", "run_study", "silent"]
