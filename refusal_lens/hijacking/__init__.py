"""What a suffix does inside a model, at which layer, through which heads and tokens, and whether that is the cause."""

from .causal import causal_tests
from .causal_records import CausalTest, CausalTests
from .detector_records import Detectors
from .detectors import detectors
from .interventions import KnockOut, PatchComponent, PatchPattern, Push, SetComponent
from .observe import observe, split_drop
from .records import HijackingReport, Observation, Split, SuffixResult, TokenEffects
from .run import Settings, hijacking
from .screen import screen
from .verdicts import Mechanism, summary_frame, verdict

__all__ = [
    "CausalTest",
    "CausalTests",
    "Detectors",
    "HijackingReport",
    "KnockOut",
    "Mechanism",
    "Observation",
    "PatchComponent",
    "PatchPattern",
    "Push",
    "SetComponent",
    "Settings",
    "Split",
    "SuffixResult",
    "TokenEffects",
    "causal_tests",
    "detectors",
    "hijacking",
    "observe",
    "screen",
    "split_drop",
    "summary_frame",
    "verdict",
]
