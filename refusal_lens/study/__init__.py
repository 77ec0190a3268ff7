"""The main job: settings, stages, results."""

from .config import StudyConfig
from .result import Metrics, Study
from .run import run_study

__all__ = ["Metrics", "Study", "StudyConfig", "run_study"]
