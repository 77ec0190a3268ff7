"""Appendix J, Fig. 24: the chat model's direction in the activations of its base model, by layer.

The embedded model has no base model; an untrained model of its shape stands in, as a control.

    python -m analyses.base_vs_chat [MODEL] [--base MODEL] [--out DIR]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from analyses.common import finish, parser, prepared
from refusal_lens import HookedChatModel, load_model
from refusal_lens.direction.section import trace_section
from refusal_lens.direction.transfer import base_chat_trace


def untrained(chat: HookedChatModel, seed: int = 0) -> HookedChatModel:
    """A model of the embedded model's shape with random weights."""
    from refusal_lens.data.organism import MODEL_DIR

    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL_DIR)).save_pretrained(folder)
        chat.tokenizer.save_pretrained(folder)
        return load_model(Path(folder), dtype="float32")


def main() -> None:
    arguments = parser(__doc__, "base_vs_chat")
    arguments.add_argument("--base", help="the base model of MODEL")
    args = arguments.parse_args()
    model, study = prepared(args)
    if args.base is None and args.model != "organism":
        arguments.error("give --base, the model that MODEL was tuned from")
    base = load_model(args.base, tokenizer=model.tokenizer) if args.base else untrained(model)
    sets = {"harmful": study.harmful.test.texts, "harmless": study.harmless.test.texts}
    found = base_chat_trace(model, base, study.selection.chosen, sets)
    means = found.cosine.mean(-1)
    for condition, row in zip(found.conditions, means, strict=True):
        print(f"{condition:>14}: " + " ".join(f"{x:+.2f}" for x in row.tolist()))
    title = "Base against chat" if args.base else "Chat against an untrained model"
    finish(args, title, [trace_section(found, "base-chat", title)], trace=found)


if __name__ == "__main__":
    main()
