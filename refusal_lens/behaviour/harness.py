"""EleutherAI's LM Evaluation Harness on the wrapped model, with interventions active (paper Tables 3 and 8).

Needs the extra ``evals`` (``pip install refusal-lens[evals]``), which is imported only when used.
"""

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch

from ..errors import ModelError
from ..hooks.conditions import Conditions
from ..models.chat import no_regions, padded
from ..models.model import HookedChatModel
from ..models.texts import Scored, predictions, scored_batches
from .records import HarnessScore, HarnessScores

# The paper's benchmarks by their official task names.
TASKS = {
    "MMLU": "mmlu",
    "ARC": "arc_challenge",
    "GSM8K": "gsm8k",
    "TruthfulQA": "truthfulqa_mc2",
    "WinoGrande": "winogrande",
    "TinyHellaSwag": "tinyHellaswag",
}
MAX_NEW_TOKENS = 256
SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


def _lm_eval() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        need = "the LM Evaluation Harness is not installed: pip install 'refusal-lens[evals]' (or lm-eval)"
        raise ModelError(need) from error
    return lm_eval


@lru_cache(maxsize=1)
def _lm_class() -> type:
    _lm_eval()
    from lm_eval.api.model import TemplateLM

    class HookedLM(TemplateLM):
        """A ``HookedChatModel`` as the harness sees a model."""

        def __init__(self, model: HookedChatModel):
            super().__init__()
            self.hooked, self.tokenizer = model, model.tokenizer

        @property
        def eot_token_id(self) -> int:
            return int(self.tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            bos = self.tokenizer.bos_token_id
            return self.eot_token_id if bos is None else int(bos)

        @property
        def tokenizer_name(self) -> str:
            return self.hooked.name

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            options = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
            return self.tokenizer.apply_chat_template(chat_history, **options)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            # A chat template has written its own special tokens; a bare text gets what the tokenizer gives.
            add = not string.startswith(self.tokenizer.bos_token or "\0") if add_special_tokens is None else False
            return list(self.tokenizer(string, add_special_tokens=add)["input_ids"])

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
            limit = self.hooked.n_ctx or 1 << 30
            rows = [([*context, *continuation][-limit:], len(continuation)) for _, context, continuation in requests]
            return score(self.hooked, [Scored(tuple(ids), max(1, len(ids) - new)) for ids, new in rows])

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            # Disjoint windows with one token of context, as the harness defines a document's likelihood.
            limit = self.hooked.n_ctx or 2048
            totals = []
            for (string,) in (request.args for request in requests):
                ids = [self.prefix_token_id, *self.tok_encode(string, add_special_tokens=False)]
                windows = [ids[start : start + limit] for start in range(0, len(ids) - 1, limit - 1)]
                found = score(self.hooked, [Scored(tuple(w), 1) for w in windows if len(w) > 1])
                totals.append(sum(value for value, _ in found))
            return totals

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return [self._until(*request.args) for request in requests]

        def _until(self, context: str, options: dict[str, Any]) -> str:
            stops = options.get("until") or []
            new = int(options.get("max_gen_toks", MAX_NEW_TOKENS))
            if options.get("do_sample") and float(options.get("temperature", 0) or 0) > 0:
                raise ModelError("this model decodes greedily only; remove temperature and do_sample from the task")
            room = (self.hooked.n_ctx or 1 << 30) - new
            ids = self.tok_encode(context)[-room:]
            tokens = padded([ids], [no_regions(len(ids))], self.hooked.chat.pad_id)
            (text,) = self.hooked.generate(tokens.to(self.hooked.device), new)
            for stop in [stops] if isinstance(stops, str) else stops:
                text = text.split(stop)[0] if stop else text
            return text

    return HookedLM


@torch.inference_mode()
def score(model: HookedChatModel, texts: Sequence[Scored]) -> list[tuple[float, bool]]:
    """(log-likelihood in nats of the tokens that count, whether greedy decoding would give them), in batches."""
    out: list[tuple[float, bool]] = [(0.0, True)] * len(texts)
    for tokens in scored_batches(model, texts):
        found = predictions(partial(model.logits, tokens), tokens, [texts[i] for i in tokens.indices])
        for index, (rows, targets) in zip(tokens.indices, found, strict=True):
            scores = rows.double().log_softmax(-1)
            value = float(scores.gather(-1, targets[:, None]).sum())
            out[index] = value, bool((scores.argmax(-1) == targets).all())
    return out


def harness_model(model: HookedChatModel) -> Any:
    """The model as an ``lm_eval.api.model.LM``, under its interventions; ModelError where lm-eval is not installed."""
    return _lm_class()(model)


def run_harness(
    model: HookedChatModel,
    conditions: Conditions,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
    task_manager: Any = None,
    seed: int = 1234,
) -> HarnessScores:
    """Run the harness under each condition.

    Args:
        tasks: the harness's task names, or the paper's (``TASKS``).
        num_fewshot: examples in the context; the task's own default if None.
        limit: the most documents per task.
        apply_chat_template: format questions as chat turns (the paper's harness runs do not).
        task_manager: an ``lm_eval.tasks.TaskManager``, for tasks of your own.
        seed: of the harness's shuffles.

    Raises:
        ModelError: lm-eval is not installed, or does not know a task.
    """
    lm_eval = _lm_eval()
    lm, names = harness_model(model), [TASKS.get(task, task) for task in tasks]
    items: list[HarnessScore] = []
    how: Any = {"num_fewshot": num_fewshot, "limit": limit, "apply_chat_template": apply_chat_template}
    how |= {"task_manager": task_manager, "log_samples": False, "bootstrap_iters": 0, **dict.fromkeys(SEEDS, seed)}
    for condition, edits in conditions.items():
        with model.hooks(*edits):
            try:
                found = lm_eval.simple_evaluate(model=lm, tasks=names, **how)
            except (KeyError, FileNotFoundError) as error:
                raise ModelError(f"the harness can't run {', '.join(names)}: {error}") from error
        for task, results in found["results"].items():
            counted = int(found.get("n-samples", {}).get(task, {}).get("effective", 0))
            numbers = {metric: float(value) for metric, value in results.items() if isinstance(value, (int, float))}
            for metric, value in numbers.items():
                if "_stderr" not in metric and metric not in ("sample_len", "sample_count"):
                    name, _, kind = metric.partition(",")
                    stderr = numbers.get(f"{name}_stderr,{kind}", math.nan)
                    items.append(HarnessScore(condition, task, metric, value, stderr, counted))
    return HarnessScores(tuple(items), str(getattr(lm_eval, "__version__", "")))
