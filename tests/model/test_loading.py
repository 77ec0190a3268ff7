"""load_model: every source, sensible dtypes, and one sentence for what can't be loaded."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from refusal_lens import HookedChatModel, load_model
from refusal_lens.data.organism import MODEL_DIR
from refusal_lens.errors import ModelError
from refusal_lens.models.load import source_digest
from tests.tiny import tiny_bridge, tiny_folder, tiny_hf, tiny_tokenizer

PROMPT = ["Tell me a story about cats"]


def test_a_folder_loads_with_its_own_weights_and_template():
    model = load_model(tiny_folder("qwen2"))
    ids = model.tokenize(PROMPT).ids
    with torch.inference_mode():
        expected = tiny_hf("qwen2")(input_ids=ids).logits[:, -1]
    assert torch.allclose(model.last_logits(PROMPT), expected, atol=1e-4)
    assert model.dtype is torch.float32 and model.basis == "raw"  # small: float32 by default
    assert not any(p.requires_grad for p in model.tl.original_model.parameters())


def test_dtype_by_name_and_a_model_that_one_has():
    assert load_model(str(tiny_folder("llama")), dtype="bfloat16").dtype is torch.bfloat16
    wrapped = load_model(tiny_bridge("llama"), tokenizer=tiny_tokenizer(), system="Be kind.")
    assert isinstance(wrapped, HookedChatModel) and "Be kind." in wrapped.chat.render("x")
    with pytest.raises(ModelError, match="not a floating-point dtype"):
        load_model(tiny_folder("llama"), dtype="int8")


def test_the_embedded_model_is_float32_whatever_its_file(organism):
    assert organism.dtype is torch.float32 and organism.name == "organism"
    assert sum(p.numel() for p in organism.tl.original_model.parameters()) < 2_000_000


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nobody/no-such-model", "can't be loaded"),
        ("/no/such/folder", "there is no model at"),
        ("./weights.gguf", "there is no file"),
        (__file__, "is a file"),
    ],
)
def test_sources_that_can_not_be_loaded(source, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_model(source)
    assert "\n" not in str(caught.value)


def test_a_gguf_file_that_is_none(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ModelError, match="not a usable GGUF file"):
        load_model(tmp_path / "broken.gguf")


def test_the_digest_follows_the_content(tmp_path):
    assert source_digest("organism") == source_digest(MODEL_DIR) != source_digest(tiny_folder("llama"))
    assert source_digest("someone/model") == "someone/model"


def test_importing_and_loading_changes_no_global_state(organism):
    assert torch.is_grad_enabled() and torch.get_default_dtype() is torch.float32


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_tensors_keep_their_pages_between_uses():
    """Without the setting each use of 40 MB costs 9766 new pages, which the system clears first. In a process of its
    own: how a heap looks after many models came and went is another matter."""
    script = """
import resource, torch
from refusal_lens import load_model
model = load_model("organism")
faults = []
for _ in range(6):
    torch.empty(10_000_000).fill_(1.0)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[0])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 3 * 9766  # five uses; without the setting 5 * 9766
