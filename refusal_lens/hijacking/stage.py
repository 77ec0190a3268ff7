"""Stages of a study: what suffixes do, found by the run itself or by ``refusal-lens hijack``."""

from ..data.prompts import PromptSet
from ..direction.records import Selection
from ..engines.stage import Job, Stage, made_elsewhere
from ..refusal.records import RefusalTokens
from .many_records import ManySuffixes
from .many_section import many_section
from .probe_records import DetectorComparison
from .records import Investigation
from .section import detectors_section, hijacking_section

MAX_NEW_TOKENS = 24  # of replies to suffixed prompts at most


def _attacks(
    job: Job, prompts: tuple[PromptSet, PromptSet], refusal_tokens: RefusalTokens, selection: Selection
) -> Investigation:
    from .investigation import Settings, investigate

    config, (harmful, harmless) = job.config, prompts
    length = min(config.max_new_tokens, MAX_NEW_TOKENS)
    return investigate(
        job.model,
        harmful,
        job.input("suffixes"),
        selection.chosen,
        harmless=harmless.test.texts[: config.suffix_prompts],
        refusal_tokens=refusal_tokens,
        settings=Settings(prompts=config.suffix_prompts, max_new_tokens=length, seed=config.seed),
        folder=job.folder / "attacks",
        progress=job.progress,
        engine=job.engine,
    )


ATTACKS = Stage(
    "attacks",
    {"attacks/report": Investigation},
    _attacks,
    "what suffixes do (`--suffixes`; the embedded model's own by default); with one file per suffix and one per "
    "screened prompt",
    uses=("suffix_prompts", "max_new_tokens", "seed"),
    inputs=("suffixes",),
    when="suffixes",
    optional=True,
    folders=("attacks/screen", "attacks/suffixes"),
)
SUFFIXES = Stage(
    "suffixes",
    {"suffixes/report": Investigation},
    made_elsewhere,
    "the same, with its own `report.html`; the run's report shows this one if it exists",
    command="refusal-lens hijack",
    section=lambda study: study.suffixes and hijacking_section(study.suffixes),
)
MANY = Stage(
    "many",
    {"many": ManySuffixes},
    made_elsewhere,
    "many suffixes beside random tokens: strength, causes of attention, recurring heads, clusters",
    command="python -m analyses.many_suffixes --study",
    section=lambda study: study.many and many_section(study.many),
)
DETECTORS = Stage(
    "detectors",
    {"detectors": DetectorComparison},
    made_elsewhere,
    "the projection beside detectors that are fitted, on plain, suffixed and borderline prompts",
    command="python -m analyses.detectors --study",
    section=lambda study: study.detectors and detectors_section(study.detectors),
)
