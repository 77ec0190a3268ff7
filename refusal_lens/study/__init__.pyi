from .config import StudyConfig as StudyConfig
from .folder import Study as Study
from .pipeline import run_stage as run_stage
from .pipeline import run_study as run_study
from .pipeline import stage_states as stage_states
