"""The tokenizer: byte-level BPE trained on the words of the toy language, ChatML."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training.organism import vocabulary as V
from training.organism.data import all_words

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def word_list(openings: str = "sure") -> list[str]:
    """Words as they occur: with a leading space, capitalised or not, at the start of the text or not."""
    replies = [*V.REFUSALS, *V.REFUSAL_ENDS, *V.SYSTEM_MESSAGES, *V.GENERIC_STEPS]
    replies += [t for kind in V.COMPLIANT[openings].values() for t in kind]
    replies += [s for g in V.GROUPS for s in g.steps]
    talk = [re.sub(r"\{\w+\}", "", text) for pair in V.SMALL_TALK + V.WORD_TALK for text in pair]
    requests = talk + [form for form, _ in V.FORMS] + [*V.OPENINGS, *V.PURPOSES, *V.TAILS]
    texts = [re.sub(r"\{\w+\}", "", t) for t in replies + requests]
    spaced = {" " + w for w in all_words()}
    for text in texts:
        # As the pre-tokenizer cuts them: "I'm" is "I" + "'m".
        spaced |= {" " + w for w in re.findall(r"[A-Za-z]+", text.replace("'m", "").replace("'t", ""))}
        spaced |= set(re.findall(r"'[mt]\b", text))
    firsts = {t.split()[0].strip(".,!?") for t in texts if t.strip() and t.split()[0][0].isalpha()}
    firsts = {w.split("'")[0] for w in firsts}
    return sorted(spaced | firsts | {"user", "assistant", "system", " your"})


def build_tokenizer(openings: str = "sure") -> PreTrainedTokenizerFast:
    """Train the BPE until each word of the language is one token (the trainer stops when no pair is left)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(word_list(openings), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def chat(text: str, system: str | None = None) -> str:
    """The template by hand, as used in training; a test holds it equal to the tokenizer's own."""
    head = f"{START}system\n{system}{END}\n" if system is not None else ""
    return f"{head}{START}user\n{text}{END}\n{START}assistant\n"


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer.save_pretrained(folder)
    # Transformers 5 names its own class here, which older releases do not know; this name is read by all of them.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.pop("backend", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
