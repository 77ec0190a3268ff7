"""Everything that decides the result of a study."""

from __future__ import annotations

import pydantic

from ..data.prompts import DEFAULT_SIZES
from ..direction.select import SelectionRule
from ..errors import PromptError


class StudyConfig(pydantic.BaseModel):
    """Everything that decides the result of a study."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    model: str = pydantic.Field("organism", description="hub id, folder, .gguf file, or 'organism'")
    harmful: str | None = pydantic.Field(None, description="harmful prompts: file, stem, preset or data set id")
    harmless: str | None = pydantic.Field(None, description="harmless prompts, likewise")
    sizes: tuple[pydantic.PositiveInt, pydantic.PositiveInt, pydantic.PositiveInt] = DEFAULT_SIZES
    seed: int = 0
    dtype: str | None = None
    device: str | None = None
    device_map: str | None = None
    system: str | None = pydantic.Field(None, description="system prompt; none by default, as in the paper")
    coeff: float = pydantic.Field(1.0, gt=0, description="multiple of r that addition adds")
    max_kl: float = pydantic.Field(0.1, gt=0)
    min_induce: float = 0.0
    layer_cutoff: float = pydantic.Field(0.8, gt=0, le=1)
    relax: bool = pydantic.Field(False, description="take the nearest candidate when nothing passes")
    full_grid: bool = pydantic.Field(False, description="compute every score of every candidate")
    refusal_tokens: tuple[str, ...] = pydantic.Field((), description="ids or texts; found by default")
    attribution: bool = pydantic.Field(True, description="look inside: heads, logits, tokens")
    stability: int = pydantic.Field(0, ge=0, description="draw the training prompts again this many times")
    suffixes: str | None = pydantic.Field(
        None,
        description="suffix file, or 'organism' for the embedded model's own: look into them behind the test prompts",
    )
    max_new_tokens: int = pydantic.Field(64, ge=1)

    @property
    def rule(self) -> SelectionRule:
        """The selection rule of this study."""
        return SelectionRule(self.max_kl, self.min_induce, self.layer_cutoff)

    def sources(self) -> tuple[str, str]:
        """Where harmful and harmless prompts come from.

        Raises:
            PromptError: only one of them was given.
        """
        if (self.harmful is None) != (self.harmless is None):
            raise PromptError("give both --harmful and --harmless, or neither")
        if self.harmful is not None and self.harmless is not None:
            return self.harmful, self.harmless
        if self.model == "organism":
            from ..data.organism import instructions

            harmful, harmless = instructions().values()
            return str(harmful), str(harmless)
        return "advbench", "alpaca"
