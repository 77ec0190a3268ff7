"""A judge that is a Hugging Face sequence classifier with local weights."""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch

from .base import JudgeError, Judgement, Pairs, judge_longer


@dataclass(eq=False)
class ClassifierJudge:
    """Any ``AutoModelForSequenceClassification`` over (prompt, reply) or the reply alone.

    Args:
        source: folder (or hub id) of the classifier.
        withheld: names of the labels that mean refused or safe, e.g. ("safe",), as in the config's id2label.
        kind: "safety" or "refusal".
        with_prompt: give prompt and reply as a text pair; the reply alone otherwise.
        short_words: the paper's rule for safety judges: a reply with fewer words is safe; 0 turns it off.

    Raises:
        JudgeError: it can't be loaded, or has no such label.
    """

    source: str
    withheld: Sequence[str] = ("safe",)
    kind: str = "safety"
    _: KW_ONLY
    with_prompt: bool = True
    short_words: int = 0
    batch_size: int = 16
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or self.source.rstrip("/").split("/")[-1]
        self.tokenizer, self.model = load_local(self.source, "AutoModelForSequenceClassification")
        labels = {str(label).lower(): int(i) for i, label in self.model.config.id2label.items()}
        if missing := [label for label in self.withheld if label.lower() not in labels]:
            raise JudgeError(f"{self.source} has no label {missing[0]!r}: its labels are {', '.join(labels)}")
        self.ids = frozenset(labels[label.lower()] for label in self.withheld)

    @property
    def identity(self) -> str:
        """Source, labels and rules."""
        return f"classifier {self.source} {sorted(self.ids)} {self.with_prompt} {self.short_words}"

    @torch.inference_mode()
    def judge(self, pairs: Pairs) -> list[Judgement]:
        """The label with the highest score, as a judgement; ``raw`` is its name and probability."""
        return judge_longer(pairs, self.short_words, self._classify)

    def _classify(self, pairs: Pairs) -> Iterator[Judgement]:
        prompts, replies = map(list, zip(*pairs, strict=True))
        texts = (prompts, replies) if self.with_prompt else (replies,)
        limit = getattr(self.model.config, "max_position_embeddings", None) or 512
        batch = self.tokenizer(*texts, return_tensors="pt", padding=True, truncation=True, max_length=limit)
        for row in self.model(**batch.to(self.model.device)).logits.float().softmax(-1):
            best = int(row.argmax())
            said = f"{self.model.config.id2label[best]} ({float(row[best]):.3f})"
            yield Judgement(best in self.ids if bool(row.isfinite().all()) else None, said)


def load_local(source: str, auto: str) -> tuple[Any, Any]:
    """Tokenizer and model of one of transformers' auto classes; JudgeError, with the remedy, if they can't be
    loaded."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model = getattr(transformers, auto).from_pretrained(source, dtype="auto").eval()
    except Exception as error:  # transformers raises many kinds
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise JudgeError(f"the judge {source!r} can't be loaded ({first}); give the folder of its weights") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return tokenizer, model.to(device)
