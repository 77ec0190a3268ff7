from .config import StudyConfig as StudyConfig
from .folder import Study as Study
from .pipeline import run_study as run_study
