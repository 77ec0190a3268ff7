"""load_model: every source, sensible dtypes, and one sentence for what can't be loaded."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from refusal_lens import HookedChatModel, load_model
from refusal_lens.errors import ModelError
from refusal_lens.loading import source_digest
from refusal_lens.organism import MODEL_DIR
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
def test_large_tensors_keep_their_pages_between_uses(organism):
    """Without the setting each use of 40 MB costs 9766 new pages, which the system clears first."""

    def use() -> None:
        torch.empty(10_000_000).fill_(1.0)

    use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        use()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 9766
