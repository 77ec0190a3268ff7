"""Real tokenizers with their templates: regions, positions, ends of turns, and whole studies of tiny models.

``REFUSAL_LENS_TOKENIZERS`` names a folder with one folder per family, as the script that fetches them makes it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from refusal_lens.data.organism import instructions
from refusal_lens.models.chat import ChatFormat
from refusal_lens.study.config import StudyConfig
from refusal_lens.study.pipeline import run_study
from tests.refusing import SIZES, refusing_folder

FOLDER = Path(os.environ.get("REFUSAL_LENS_TOKENIZERS", "nowhere"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="no tokenizers: set REFUSAL_LENS_TOKENIZERS"),
]
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST] ' }}"
    "{% else %}{{ m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
    "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|channel|>final<|message|>"
    "{% endif %}"
)
TEMPLATES = {"llama2": LLAMA2, "gptoss": HARMONY}  # these two come without one
FAMILIES = {
    "gemma3": ("<end_of_turn>", 5),
    "llama3": ("<|eot_id|>", 5),
    "llama3_1": ("<|eot_id|>", 5),
    "qwen3": ("<|im_end|>", 9),  # with a closed thought
    "deepseek_v3": ("<｜end▁of▁sentence｜>", 1),
    "llama2": ("</s>", 5),
    "gptoss": ("", 6),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_and_regions(family):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / family)
    chat = ChatFormat(tokenizer, chat_template=TEMPLATES.get(family))
    end, n_post = FAMILIES[family]
    ids, text = chat.template.turn_end()
    assert [tokenizer.decode([i]) for i in ids] == ([end] if end else []) and text == ""
    assert chat.n_post == n_post == len(chat.post_labels())
    for request in ("Hello", "Is it?", "Write a poem about rain.", "Sum: f(x);", "東京はどこ？"):
        encoded = chat.encode(request, " please now")
        start, stop = encoded.spans.instruction
        inside = encoded.text[encoded.offsets[start][0] : encoded.offsets[stop - 1][1]]
        assert inside.strip() == request
        start, stop = encoded.spans.suffix
        assert encoded.text[encoded.offsets[start][0] : encoded.offsets[stop - 1][1]] == " please now"
        assert encoded.spans.template_post[1] - encoded.spans.template_post[0] == n_post


def test_the_switch_of_qwen3_puts_the_thought_back():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "qwen3")
    assert ChatFormat(tokenizer, template_options={"enable_thinking": True}).n_post == 5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_study(family, tmp_path):
    folder = refusing_folder(FOLDER / family, tmp_path / family, TEMPLATES.get(family))
    prompts = {name: str(path) for name, path in instructions().items()}
    settings = {"sizes": SIZES, "max_new_tokens": 10, "inside_prompts": 8, "relax": True}
    config = StudyConfig(model=str(folder), **prompts, **settings)
    study = run_study(config, tmp_path / "run")
    rates = study.summary["refusal"]
    assert rates["harmful"]["baseline"]["rate"] > 0.8 and rates["harmless"]["baseline"]["rate"] < 0.2
    assert len(study.candidates.positions) == FAMILIES[family][1]
    replies = [item.response for item in study.completions["harmful"].of("baseline")]
    assert max(map(len, replies)) < 40  # each ends with its turn
    assert (tmp_path / "run" / "report.html").stat().st_size > 100_000 and not study.missing
