"""load_model: every source, sensible dtypes, and one sentence for what can't be loaded."""

from __future__ import annotations

import copy
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from refusal_lens import HookedChatModel, load_model
from refusal_lens.data.organism import MODEL_DIR
from refusal_lens.errors import ModelError
from refusal_lens.models.load import source_digest
from tests.reliability.tiny_gguf import write_tiny_gguf
from tests.tiny import ARCHITECTURES, tiny_bridge, tiny_folder, tiny_hf, tiny_tokenizer

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
    # The second sentence is that of transformers before its own reader of GGUF files.
    with pytest.raises(ModelError, match=r"not a usable GGUF file|the tokenizer of 'broken' can't be loaded"):
        load_model(tmp_path / "broken.gguf")


def test_the_digest_follows_the_content(tmp_path):
    assert source_digest("organism") == source_digest(MODEL_DIR) != source_digest(tiny_folder("llama"))
    assert source_digest("someone/model") == "someone/model"


STATE = """
import json, logging, os, random, resource, signal, sys, warnings
import importlib.metadata as metadata
import numpy, torch, transformers, transformer_lens
from transformers import PreTrainedTokenizerFast
from transformer_lens.model_bridge import TransformerBridge
import refusal_lens as rl

def loggers():
    found = {name: one.level for name, one in logging.root.manager.loggerDict.items() if hasattr(one, "level")}
    return {"root": logging.root.level, "off": logging.root.manager.disable, **found}

def state():
    on = torch.backends
    return {
        "warnings": repr(warnings.filters), "environment": dict(os.environ), "loggers": loggers(),
        "path": list(sys.path),
        "random": repr(random.getstate()), "numpy": repr(numpy.random.get_state()), "cwd": os.getcwd(),
        "torch random": torch.get_rng_state().tolist(), "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(), "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()), "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(), "print": repr(torch._tensor_str.PRINT_OPTS),
        "flush": torch.set_flush_denormal(False), "anomaly": torch.is_anomaly_enabled(),
        "sdp": [on.cuda.flash_sdp_enabled(), on.cuda.math_sdp_enabled(), on.cuda.mem_efficient_sdp_enabled()],
        "cudnn": [on.cudnn.benchmark, on.cudnn.deterministic, on.cudnn.allow_tf32, on.mkldnn.enabled],
        "verbosity": transformers.logging.get_verbosity(), "interrupt": repr(signal.getsignal(signal.SIGINT)),
        "hook": repr(sys.excepthook), "recursion": sys.getrecursionlimit(),
    }

def pages():
    faults = []
    for _ in range(6):
        torch.empty(10_000_000).fill_(1.0)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return faults[-1] - faults[0]

def packages():
    return sorted((d.name, d.version) for d in metadata.distributions())

torch.manual_seed(5)
rl.load_model, rl.HookedChatModel  # imported
started, installed = [], packages()
watched = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.system")
sys.addaudithook(lambda event, args: started.append(f"{event} {args}") if event in watched else None)
before, seen = state(), []
def changed(what):
    now = state()
    seen.append([what, sorted(k for k in before if before[k] != now[k] and k != "loggers")
                 + [k for k, level in before["loggers"].items() if now["loggers"][k] != level]])
model = rl.load_model("organism")
changed("load")
with rl.HookedChatModel(model.tl, model.tokenizer) as twin:
    changed("wrap")
    twin.generate(["hello"], 3)
    twin.generate(["hello"], 3, temperature=1.0)
    changed("generate")
changed("close")
plain = pages()
rl.models.keep_freed_memory()
kept = pages()
for source in sys.argv[1:]:
    rl.load_model(source)
print(json.dumps({"changed": seen, "pages": [plain, kept], "started": started, "same": packages() == installed}))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> dict[str, Any]:
    """What a process that loads, wraps and generates finds out about itself."""
    vision_folder(folder := tmp_path_factory.mktemp("loading") / "vision")
    command = [sys.executable, "-c", STATE, str(folder), str(tiny_folder("qwen2"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_loading_wrapping_and_generating_change_nothing_of_the_process(elsewhere):
    assert elsewhere["changed"] == [["load", []], ["wrap", []], ["generate", []], ["close", []]]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_on_request_only(elsewhere):
    """Each use of 40 MB costs 9766 new pages, which the system clears first, unless the process asked to keep them."""
    plain, kept = elsewhere["pages"]
    assert kept < 3 * 9766 < plain  # five uses; without the setting 5 * 9766


def vision_folder(folder: Path) -> Any:
    """A tiny random Gemma 3 with a vision tower and no image processor; returns its Hugging Face model."""
    text = {**ARCHITECTURES["gemma3"][1]}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma3Config(
        text_config=text,
        vision_config={**sizes, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4, image_token_index=5, boi_token_index=6, eoi_token_index=7,
    )  # fmt: skip
    torch.manual_seed(0)
    hf = Gemma3ForConditionalGeneration(config).eval()
    hf.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return hf


def test_of_a_vision_language_checkpoint_the_text_model_is_loaded(tmp_path):
    hf = vision_folder(tmp_path)
    model = load_model(tmp_path)
    ids = model.tokenize(PROMPT).ids
    with torch.inference_mode():
        expected = hf(input_ids=ids).logits[:, -1]
    assert torch.allclose(model.last_logits(PROMPT), expected, atol=1e-5)
    assert type(model.tl.original_model).__name__ == "Gemma3ForCausalLM" and model.n_layers == 3
    assert model.writing_weights()


def test_a_load_starts_no_process_and_installs_nothing(elsewhere):
    """TransformerLens 4.3 runs ``pip install torchvision`` for a checkpoint whose processor needs it."""
    assert elsewhere["started"] == [] and elsewhere["same"]


def test_gguf_weights_are_dequantized_by_request(tmp_path, caplog):
    """With the package ``kernels`` installed transformers keeps them packed unless told otherwise; without it, it warns
    that it can't, which it does not when dequantization is what was requested."""
    from transformers.utils import logging

    pytest.importorskip("transformers.integrations.gguf.reader", reason="older transformers want merges in the file")
    logging.enable_propagation()
    try:
        model = load_model(write_tiny_gguf(tmp_path / "tiny.gguf", quantized=True))
    finally:
        logging.disable_propagation()
    assert "Dequantizing the whole model" not in caplog.text
    assert all(p.is_floating_point() for p in model.tl.parameters())
    assert copy.deepcopy(model.tl.original_model) is not None and model.writing_weights()


def test_a_device_that_is_not_there_is_one_sentence():
    for device in ("cuda:7", "nonsense"):
        with pytest.raises(ModelError, match=f"there is no device '{device}'") as caught:
            load_model("organism", device=device)
        assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    shutil.copytree(tiny_folder("llama"), tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(tmp_path / "m")
