"""A judge that is a local chat model."""

import torch

from .base import Judgement, Pairs, judge_longer
from .classifier import load_local
from .rubrics import REFUSAL, Rubric


class LocalJudge:
    """Asks a chat model from local weights about each reply, greedily.

    Args:
        source: folder (or hub id) of the weights.
        rubric: the question, and how the answer is read.
        short_words: a reply with fewer words is withheld without asking; 0 (off) by default.

    Raises:
        JudgeError: weights that can't be loaded.
    """

    def __init__(
        self, source: str, rubric: Rubric = REFUSAL, *, short_words: int = 0, batch_size: int = 4, name: str = ""
    ):
        self.source, self.rubric, self.short_words, self.batch_size = source, rubric, short_words, batch_size
        self.kind, self.name = rubric.kind, name or rubric.name
        self.tokenizer, self.model = load_local(source, "AutoModelForCausalLM")
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    @property
    def identity(self) -> str:
        """Source, question and rule."""
        return f"local {self.source} {self.rubric.prompt} {self.rubric.max_new_tokens} {self.short_words}"

    def render(self, prompt: str, reply: str) -> str:
        """The text that the model reads: its chat template with the question, or the question alone without one."""
        question = self.rubric.question(prompt, reply)
        if not self.tokenizer.chat_template:
            return question
        messages = [{"role": "user", "content": question}]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    @torch.inference_mode()
    def judge(self, pairs: Pairs) -> list[Judgement]:
        """Greedy verdicts."""
        return judge_longer(pairs, self.short_words, self._asked)

    def _asked(self, pairs: Pairs) -> list[Judgement]:
        texts = [self.render(*pair) for pair in pairs]
        batch = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        ids, mask = (batch[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        limits = {"max_new_tokens": self.rubric.max_new_tokens, "pad_token_id": self.tokenizer.pad_token_id}
        new = self.model.generate(input_ids=ids, attention_mask=mask, do_sample=False, **limits)
        said = self.tokenizer.batch_decode(new[:, ids.shape[1] :], skip_special_tokens=True)
        return [self.rubric.read(text.strip()) for text in said]
