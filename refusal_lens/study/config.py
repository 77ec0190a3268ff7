"""Settings of a study: all that determine its result. The options of ``refusal-lens run`` are derived from them."""

from __future__ import annotations

import dataclasses
import difflib
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..data.paper import LAYER_CUTOFF, MAX_KL, SIZES
from ..errors import PromptError, SettingError
from ..records.labels import POINTS

BOUNDS = (("above", "above", operator.gt), ("least", "at least", operator.ge), ("most", "at most", operator.le))
SIZE_FIELDS = ("n_train", "n_val", "n_test")
CHAT = ("system", "chat_template", "template_options", "reply_prefix", "date", "thought")  # of conversations
DTYPE = (
    "float(16|32|64)?|b?float16|half|double",
    "not a floating-point dtype; use float32, bfloat16, float16 or float64",
)
DEVICE = (r"(cpu|cuda|mps|xpu|hpu|npu|mlu|musa|xla)(:\d+)?", "no device; use cpu, cuda, cuda:1, mps ...")
LOADING = ("dtype", "device", "device_map", *CHAT)  # what ``load_model`` takes


def _field(default: Any, help: str, **more: Any) -> Any:
    """A setting; ``more``: bounds (``above``, ``least``, ``most``), ``choices``, ``form`` of text (pattern, words),
    ``embedded`` (default of the command line for the embedded model), ``option`` (its name there, where it differs)."""
    return dataclasses.field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class StudyConfig:
    """Settings of a study.

    Raises:
        SettingError: a value of the wrong type or out of bounds.

    Example:
        >>> rl.StudyConfig(model="organism", max_kl=0.2).sizes
        (128, 32, 100)
        >>> rl.StudyConfig(max_kl=-1.0)
        Traceback (most recent call last):
        refusal_lens.errors.SettingError: max_kl is -1.0; it must be above 0
    """

    model: str = _field("organism", "Hub id, folder, .gguf file, or 'organism' (the embedded model).")
    harmful: str | None = _field(None, "Harmful prompts: file, stem of _train/_val/_test files, preset or data set id.")
    harmless: str | None = _field(None, "Harmless prompts, likewise.")
    sizes: tuple[int, int, int] = _field(SIZES, "Training, validation and test prompts of each kind.", least=1)
    seed: int = _field(0, "Seed of the splits and of the random directions.")
    dtype: str | None = _field(None, "float32, bfloat16 ... (default: chosen for model and device).", form=DTYPE)
    device: str | None = _field(None, "cpu, cuda ... (default: a GPU if there is one).", form=DEVICE)
    device_map: str | None = _field(None, "'auto' spreads the model over several GPUs.")
    system: str | None = _field(None, "System prompt (default: none added, as in the paper).")
    chat_template: str | None = _field(None, "Chat template: a Jinja file, or its text (default: the tokenizer's own).")
    template_options: tuple[str, ...] = _field(
        (),
        "Template variable, as NAME=VALUE (enable_thinking=true); repeatable (default: thoughts before "
        "answers are skipped where the template allows it).",
        option="template_option",
        form=(r"[^=]+=.*", "no NAME=VALUE, such as enable_thinking=false"),
    )
    reply_prefix: str = _field("", "Text that every reply begins with, such as a closed thought.")
    date: str | None = _field(
        None,
        "Date for templates that print today's date (default: the day the study began).",
        form=(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", "not of the form 2026-01-31"),
    )
    thought: tuple[str, ...] = _field(
        (), "Begin or end marker of a thought, if not known already: give both, in order.", option="thought_marker"
    )
    coeff: float = _field(1.0, "Coefficient: the multiple of r that is added.", above=0)
    max_kl: float = _field(MAX_KL, "Selection: highest KL allowed.", above=0)
    min_induce: float | None = _field(None, "Selection: lowest induce score allowed (default: the filter's point).")
    layer_cutoff: float = _field(LAYER_CUTOFF, "Selection: share of the layers to search.", above=0, most=1)
    ablation: str = _field(
        "paper",
        "Form of ablation, for selection and rates: paper, stream, affine or scaled.",
        choices=("paper", "stream", "affine", "scaled"),
    )
    relax: bool = _field(False, "If no candidate passes, take the nearest one and say so.")
    full_grid: bool = _field(
        False, "Compute every score of every candidate, for plots (default: embedded model only).", embedded=True
    )
    refusal_tokens: tuple[str, ...] = _field(
        (), "A refusal token, as id or text; repeatable (default: found from replies).", option="refusal_token"
    )
    filter: str = _field(
        POINTS[0],
        "Point of the refusal metric above which a prompt counts as refused, and addition as inducing: calibrated "
        "(Youden's point on training prompts), accuracy, equal_error (other points of that curve), or paper (0).",
        choices=POINTS,
    )
    max_new_tokens: int = _field(64, "Length limit of replies.", least=1)
    attribution: bool = _field(True, "Attribute the direction to heads, logits and tokens.")
    inside_prompts: int = _field(32, "Number of test prompts for the slower parts of attribution.", least=1)
    stability: int = _field(
        0,
        "Resample the training prompts this many times and select again (default: 10 for the embedded model, 0 for "
        "others).",
        least=0,
        embedded=10,
    )
    suffixes: str | None = _field(
        None,
        "Suffix file to investigate, or 'none' (default: for the embedded model its own, else none).",
        embedded="organism",
    )
    suffix_prompts: int = _field(48, "Number of refused test prompts to test each suffix on.", least=2)

    def __new__(cls, *values: Any, **settings: Any) -> StudyConfig:
        cls._check_names(settings)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self._check_types(vars(self))
        for field in dataclasses.fields(self):
            value, limits = getattr(self, field.name), field.metadata
            if value not in limits.get("choices", (value,)):
                raise SettingError(f"{field.name} is {value!r}; it must be one of {', '.join(limits['choices'])}")
            for number in value if isinstance(value, tuple) else (value,):
                # Before torch and the model are loaded, which say more exactly what they can't take.
                pattern, words = limits.get("form", ("", ""))
                if pattern and number is not None and not re.fullmatch(pattern, number, re.DOTALL):
                    raise SettingError(f"{field.name} is {number!r}, which is {words}")
                for bound, words, holds in BOUNDS:
                    if bound in limits and not holds(number, limits[bound]):
                        raise SettingError(f"{field.name} is {number}; it must be {words} {limits[bound]}")

    @classmethod
    def _check_types(cls, settings: Mapping[str, Any]) -> None:
        from ..records.fields import misfit  # after the command line's help, which needs no torch

        if wrong := misfit(cls, settings).removeprefix(f"{cls.__name__}."):
            raise SettingError(wrong)

    @classmethod
    def _check_names(cls, settings: Mapping[str, Any]) -> None:
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise SettingError(f"there is no setting {name!r}" + (f"; did you mean {near[0]}?" if near else ""))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> StudyConfig:
        """Settings by name, as a TOML or JSON file has them (lists for tuples).

        Raises:
            SettingError: an unknown name, or an invalid value.
        """
        cls._check_names(settings)
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
        cls._check_types(values)  # before the settings are made: a type checker would stop there in its own words
        return cls(**values)

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
