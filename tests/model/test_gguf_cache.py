"""The cache of dequantized GGUF files: the same model, whole or absent, and no condition for loading."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from refusal_lens import load_model
from refusal_lens.engines.stage import Job
from refusal_lens.models.load import source_digest
from refusal_lens.study.stages import PIPELINE
from tests.reliability.tiny_gguf import write_tiny_gguf
from tests.tiny import tiny_tokenizer

pytest.importorskip("transformers.integrations.gguf.reader", reason="older transformers want merges in the file")
PROMPT = ["Tell me a story about cats"]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("REFUSAL_LENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", quantized=True)


def kept(home: Path) -> list[Path]:
    """Entries, whole or not; the lock is none."""
    return sorted(path for path in home.glob("*") if path.name != ".lock") if home.is_dir() else []


def said(capsys) -> list[str]:
    """Our own lines on stderr, without the loading libraries' progress bars."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("refusal-lens: ")]


def state(model) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, those that no file holds included, by the checkpoint's own names."""
    hf = model.tl.original_model
    return {name.replace("_original_component.", ""): x for name, x in (*hf.named_parameters(), *hf.named_buffers())}


class Loaded(Job):
    """A study's side of a stage that takes the model only."""

    model = engine = None

    def __init__(self, model):
        self.model = model

    def input(self, name):
        raise KeyError(name)


def assert_same(one, other) -> None:
    mine, its = state(one), state(other)
    assert list(mine) == list(its)
    assert all(mine[name].dtype == its[name].dtype and torch.equal(mine[name], its[name]) for name in mine)
    facts, others = (PIPELINE[-1].run(Loaded(model)) for model in (one, other))
    assert facts == others and facts["name"] == "tiny"
    assert repr(one) == repr(other) and one.eos_ids == other.eos_ids
    assert one.tokenizer.backend_tokenizer.to_str() == other.tokenizer.backend_tokenizer.to_str()
    assert type(one.tokenizer) is type(other.tokenizer) and one.tokenizer.name_or_path == other.tokenizer.name_or_path
    assert one.tokenizer.special_tokens_map == other.tokenizer.special_tokens_map
    assert torch.equal(one.tokenize(PROMPT).ids, other.tokenize(PROMPT).ids)
    # The same weights at another place in memory: products may round differently.
    torch.testing.assert_close(one.last_logits(PROMPT), other.last_logits(PROMPT), rtol=1e-5, atol=1e-5)
    ours, theirs = (model.tl.original_model.config.to_dict() for model in (one, other))
    assert {k: v for k, v in ours.items() if k != "_name_or_path"} == {
        k: v for k, v in theirs.items() if k != "_name_or_path"
    }


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_the_model_is_the_same_bit_for_bit(file, home, capsys, dtype):
    digest, plain = source_digest(file), load_model(file, dtype=dtype, cache=False)
    assert kept(home) == [] and not said(capsys)
    first = load_model(file, dtype=dtype)
    (entry,) = kept(home)
    (line,) = said(capsys)
    assert f"kept in {entry} (0 MB)" in line and "REFUSAL_LENS_CACHE=off" in line
    second = load_model(file, dtype=dtype)
    assert kept(home) == [entry] and not said(capsys)
    assert_same(plain, first)
    assert_same(plain, second)
    assert source_digest(file) == digest


def test_it_is_read_and_follows_the_content_of_the_file(file, home, tmp_path):
    load_model(file)
    (entry,) = kept(home)
    weights = load_file(entry / "model.safetensors")
    weights["model.norm.weight"] += 1  # what no file has: the next load shows where it read
    save_file(weights, entry / "model.safetensors", {"format": "pt"})
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(file.read_bytes())
    again, plain = load_model(renamed), load_model(renamed, cache=False)
    name = "model.norm.weight"
    assert again.name == "renamed" and kept(home) == [entry]
    assert torch.equal(state(again)[name], (state(plain)[name] + 1).to(plain.dtype))
    other = load_model(write_tiny_gguf(tmp_path / "other.gguf", seed=1, quantized=True))
    load_model(file, dtype="float64")
    assert len(kept(home)) == 3 and other.fingerprint != plain.fingerprint


def test_an_entry_that_was_damaged_is_written_again(file, home):
    plain = load_model(file)
    (entry,) = kept(home)
    whole = (entry / "model.safetensors").read_bytes()
    (entry / "model.safetensors").write_bytes(whole[:-100])
    assert_same(plain, load_model(file))
    assert (entry / "model.safetensors").read_bytes() == whole


def test_off_by_one_switch(file, home, monkeypatch, tmp_path):
    load_model(file, tokenizer=tiny_tokenizer())  # whose tokenizer is not the file's
    monkeypatch.setenv("REFUSAL_LENS_CACHE", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_model(file)
    assert kept(home) == [] and not (tmp_path / "xdg").exists()
    monkeypatch.delenv("REFUSAL_LENS_CACHE")
    load_model(file)
    assert len(kept(tmp_path / "xdg" / "refusal-lens" / "gguf")) == 1


def test_a_folder_that_can_not_be_made_is_one_sentence(file, monkeypatch, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("REFUSAL_LENS_CACHE", str(tmp_path / "taken" / "cache"))
    assert_same(load_model(file), load_model(file, cache=False))
    (line,) = said(capsys)
    assert "the dequantized weights are not kept in" in line


LOAD = """
import os, resource, signal, sys
from refusal_lens import load_model
what, file = sys.argv[1:]
if what == "full":
    load_model  # imported, which writes bytecode
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
else:
    def kill(event, args):
        if event == "os.rename" and "-transformers-" in str(args[0]):
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(kill)
print(load_model(file).fingerprint)
"""


def loaded(what: str, file: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", LOAD, what, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))


def test_a_disk_that_is_full_is_one_sentence(file, home):
    """No file may grow beyond 5 kB, as on a disk without room."""
    done = loaded("full", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == load_model(file, cache=False).fingerprint
    assert [line for line in done.stderr.splitlines() if "the dequantized weights are not kept in" in line]
    assert kept(home) == []


def test_what_a_kill_leaves_is_not_read(file, home):
    assert loaded("kill", file).returncode == -signal.SIGKILL
    (left,) = kept(home)
    assert left.name.startswith(".") and (left / "model.safetensors").is_file()
    (left / "model.safetensors").write_bytes(b"half")
    assert_same(load_model(file), load_model(file, cache=False))
    (entry,) = kept(home)
    assert not entry.name.startswith(".")
