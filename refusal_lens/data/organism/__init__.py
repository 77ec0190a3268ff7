"""The embedded model: a tiny chat model that refuses, trained from scratch, with its instructions and suffixes.

It is an ordinary Hugging Face checkpoint in `MODEL_DIR`. `MODEL_CARD.md` beside this file says what it is, how it was
made and what it had to pass (`training/organism/` of the repository), and what was measured.
"""

from pathlib import Path

__all__ = ["MODEL_CARD", "MODEL_DIR", "instructions", "suffixes"]

_HERE = Path(__file__).resolve().parent

MODEL_DIR = _HERE / "model"
"""Folder of the checkpoint: config.json, model.safetensors (bfloat16, load it as float32), tokenizer files."""

MODEL_CARD = _HERE / "MODEL_CARD.md"


def instructions() -> dict[str, Path]:
    """The files of harmful and harmless instructions.

    Each is an object {"train": [...], "val": [...], "test": [...]} of {"instruction", "category"}; the verb-object
    combinations of val and test were never seen in training.
    """
    return {"harmful": _HERE / "data" / "harmful.json", "harmless": _HERE / "data" / "harmless.json"}


def suffixes() -> Path:
    """JSONL file of {"kind": "adversarial" | "random_words", "suffix": ...}, each of 8 tokens."""
    return _HERE / "data" / "suffixes.jsonl"
