"""The stages of a study in order; the run, the folder's files and the report's sections follow from ``PIPELINE``."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..attribution import stage as attribution
from ..behaviour import stage as behaviour
from ..direction import stage as direction
from ..engines.stage import Job, Stage
from ..errors import SettingError
from ..exactness import stage as exactness
from ..hijacking import stage as hijacking
from ..refusal import stage as refusal


def _facts(job: Job) -> dict[str, Any]:
    m = job.model
    return {
        "name": m.name,
        "fingerprint": m.fingerprint,
        "backend": m.backend.kind,
        "basis": m.basis,
        "dtype": str(m.dtype).removeprefix("torch."),
        "device": str(m.device),
        **{size: getattr(m, size) for size in ("n_layers", "n_heads", "d_model", "d_vocab")},
        "template": m.chat.render("{instruction}"),
        "chat": m.chat.settings,
        "generation_config": m.backend.generation_requests(),
    }


PIPELINE: tuple[Stage, ...] = (
    *refusal.STAGES,
    direction.CANDIDATES,
    direction.SELECTION,
    direction.TRACE,
    direction.ABLATIONS,
    behaviour.METRICS,
    *behaviour.REPLIES,
    direction.STRENGTHS,
    direction.DOSE,
    direction.CONVERSATIONS,
    direction.HARM,
    direction.CONES,
    direction.SUBSPACES,
    behaviour.EVALUATION,
    behaviour.OVER_REFUSAL,
    direction.STABILITY,
    *attribution.STAGES,
    hijacking.ATTACKS,
    hijacking.SUFFIXES,
    hijacking.MANY,
    hijacking.DETECTORS,
    exactness.CERTIFICATE,
    Stage("model", {"model": dict}, _facts, "the model as loaded"),
)
BY_NAME: Mapping[str, Stage] = {stage.name: stage for stage in PIPELINE}
# Folders inside a result folder that a run writes.
_PARENTS = (file.rpartition("/")[0] for s in PIPELINE if not s.command for file in s.makes if "/" in file)
FOLDERS = tuple(dict.fromkeys(("stages", "items", *_PARENTS, *(folder for s in PIPELINE for folder in s.folders))))


def planned(settings: Any, only: str | None = None) -> Iterator[Stage]:
    """Stages that a run with these settings runs, in order.

    Args:
        settings: ``StudyConfig``.
        only: a stage: it and what it needs.

    Raises:
        SettingError: no such stage, or one that the settings leave out or another command makes.
    """
    wanted = set(BY_NAME)
    if only is not None:
        stage = BY_NAME.get(only)
        if stage is None:
            raise SettingError(f"there is no stage {only!r}; the stages are {', '.join(BY_NAME)}")
        if stage.command:
            raise SettingError(f"the stage {only!r} is made by `{stage.command}`, not by a run")
        if stage.when and not getattr(settings, stage.when):
            raise SettingError(f"the stage {only!r} is left out by these settings: set {stage.when}")
        wanted = _needed(only)
    for stage in PIPELINE:
        if stage.name in wanted and not stage.command and (not stage.when or getattr(settings, stage.when)):
            yield stage


def _needed(name: str) -> set[str]:
    return {name}.union(*(_needed(other) for other in BY_NAME[name].needs))
