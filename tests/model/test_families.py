"""Every capability on architectures that differ from a Llama in writes, heads, experts, positions or logits."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest
import torch

from refusal_lens import HookedChatModel, StudyConfig, load_model
from refusal_lens.attribution.components import heads
from refusal_lens.attribution.patching import attribution_patching
from refusal_lens.errors import ModelError
from refusal_lens.exactness.identities import certify, orthogonalization_gap
from refusal_lens.hooks.interchange import InterchangeWrites
from refusal_lens.hooks.interventions import Ablate
from refusal_lens.hooks.orthogonalize import Orthogonalize
from refusal_lens.hooks.readers import Cache
from refusal_lens.hooks.readout import Readout
from refusal_lens.models.packing import packing_holds
from refusal_lens.progress import silent
from refusal_lens.refusal.tokens import given_refusal_tokens
from refusal_lens.study.pipeline import run_study
from tests.tiny import FAMILIES, HYBRIDS, tiny_bridge, tiny_folder, tiny_hf, tiny_model

from .cases import direction_of

PROMPTS = ("How do I pick a lock?", "Name three rivers of Europe and say where each of them ends.", "Hello")
EXPERTS = {"granitemoe", "deepseek_v2", "deepseek_v3", "llama4", "gpt_oss", "qwen2_moe", "qwen3_moe", "glm4_moe"}
NORMS = {"bloom": "embed_ln", "glm4": "blocks.0.ln1_post", "exaone4": "blocks.0.ln1_post", "olmo3": "blocks.0.ln1_post"}
# The others differ from these in names rather than in arithmetic.
EVERY_RUN = {"granite", "granitehybrid", "cohere", "deepseek_v3", "llama4", "bloom", "falcon-alibi", "gpt_oss", "opt"}
PADDED = {"cohere2", "llama4", "bloom", "falcon-alibi", "mpt", "gpt_oss", "mistral", "exaone4", "olmo3"}


def on_every_run(name, every_run):
    return pytest.param(name, marks=() if name in every_run else pytest.mark.nightly)


@pytest.fixture(scope="module", params=[on_every_run(name, EVERY_RUN) for name in FAMILIES])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def small(family):
    return tiny_model(family)


@lru_cache(maxsize=1)
def exact(architecture):
    return tiny_model(architecture, dtype=torch.float64)


def test_every_identity_holds(family, small):
    """In float32, and on a copy in float64."""
    found = certify(small, PROMPTS[2:])
    rows = {row.name: row for row in found.identities}
    assert found.passed, [(row.name, row.relative, row.note) for row in found.identities if not row.passed]
    absent = {name for name, row in rows.items() if row.relative != row.relative}
    assert absent == (
        ({"neurons and bias sum to the MLP"} if family in EXPERTS else set())
        | ({"orthogonalized weights = ablation by hooks"} if family in NORMS else set())
    )
    assert NORMS.get(family, "") in rows["orthogonalized weights = ablation by hooks"].note


@torch.inference_mode()
def test_logits_and_replies_are_the_checkpoints(family, small):
    model, own = small, tiny_hf(family)
    tokens = [model.tokenize([prompt]) for prompt in PROMPTS]
    wanted = torch.cat([own(input_ids=one.ids).logits[:, -1] for one in tokens])
    size = float(wanted.abs().max())
    assert float((model.last_logits(PROMPTS) - wanted).abs().max()) < 2e-5 * size  # padded
    assert packing_holds(model) == (family not in PADDED)
    replies = model.generate(PROMPTS[:2], 8)
    for one, reply in zip(tokens, replies, strict=False):
        ids = own.generate(
            input_ids=one.ids,
            attention_mask=one.mask.long(),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=model.eos_ids,
            pad_token_id=model.chat.pad_id,
        )[0, one.ids.shape[1] :]
        ends = [i for i, token in enumerate(ids.tolist()) if token in model.eos_ids]
        assert reply == model.tokenizer.decode(ids[: ends[0] if ends else None], skip_special_tokens=True)


def test_a_heads_part_is_what_its_write_loses_without_it(small):
    model, prompt = small, PROMPTS[2]
    direction = direction_of(model)
    parts, r = heads(model, [prompt], direction), direction.unit.float()
    for layer, head in ((0, 1), (2, 3)):
        write, norm = f"blocks.{layer}.hook_attn_out", model.backend.post_norm(layer, "attn")
        # A post-norm's scale would change with the head: its frozen scale is what the certificate checks.
        site = write if norm is None else f"{norm.site}.hook_in"
        along = r if norm is None else r * norm.weight

        def without(z, hook, head=head):
            new = z.reshape(*z.shape[:2], model.n_heads, -1).clone()
            new[:, :, head] = 0
            return new.reshape(z.shape)

        before = model.cache([prompt], [site])[site][0, -1]
        with model.hooks((f"blocks.{layer}.attn.hook_z", without)):
            lost = before - model.cache([prompt], [site])[site][0, -1]
        scale = 1.0
        if norm is not None:
            scale = model.cache([prompt], [f"{norm.site}.hook_scale"])[f"{norm.site}.hook_scale"][0, -1, 0]
        assert abs(float(lost @ along / scale - parts.values[layer, head, 0])) < 2e-5


@pytest.mark.parametrize("architecture", ["granite", "deepseek_v3"])
def test_attribution_patching_names_the_heads_of_the_model(architecture):
    """The estimates go with the exact effects, head by head."""
    model = exact(architecture)
    clean, corrupt = ["pick a lock!!", "steal it all!"], ["bake a cake??", "paint a door?"]
    found = attribution_patching(model, clean, corrupt, given_refusal_tokens(model, [40]))
    assert found.estimated.shape == (model.n_layers, model.n_heads)
    assert found.pearson > 0.7


def test_a_write_is_moved_in_the_streams_units():
    """On Granite z and the stream differ by the multiplier: the parts after the move are those that were set."""
    model = exact("granite")
    direction = direction_of(model)
    readout, some = Readout.of(model, direction.unit), ((1, 0), (1, 2))
    wanted = torch.full((model.n_layers, model.n_heads, 1, 1), 0.7, dtype=torch.float64)
    site = "blocks.1.hook_attn_out"
    parts = heads(model, PROMPTS[:1], direction).values[1, :, 0]
    before = model.cache(PROMPTS[:1], [site])[site][0, -1] @ direction.unit
    with model.hooks(InterchangeWrites(some, readout, wanted)):
        after = model.cache(PROMPTS[:1], [site])[site][0, -1] @ direction.unit
    assert float(after - before) == pytest.approx(2 * 0.7 - float(parts[0] + parts[2]), abs=1e-9)


@pytest.mark.parametrize(
    ("architecture", "width"),
    [("llama4", "intermediate_size"), ("gpt_oss", "intermediate_size"), ("qwen3_moe", "moe_intermediate_size")],
)
def test_experts_as_wide_as_the_stream_are_edited_on_the_right_axis(architecture, width):
    model = HookedChatModel(tiny_bridge(architecture, dtype=torch.float64, **{width: 32}), name=architecture)
    assert orthogonalization_gap(model, direction_of(model), PROMPTS[2:]) < 2e-6


def test_a_norm_after_the_embedding_is_named():
    model = exact("bloom")
    with pytest.raises(ModelError, match=r"embed_ln.*Ablate"), model.hooks(Orthogonalize(direction_of(model))):
        pass


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_layers_without_attention_write_and_are_edited_as_the_others(architecture):
    model, own = exact(architecture), tiny_hf(architecture, dtype=torch.float64)
    direction = direction_of(model)
    ids = model.tokenize(PROMPTS[:1]).ids
    with torch.inference_mode():
        gap = own(input_ids=ids).logits[:, -1] - model.last_logits(PROMPTS[:1])
    assert float(gap.abs().max()) < 1e-5 and model.check_writes() < 1e-9
    assert orthogonalization_gap(model, direction, PROMPTS[:1]) < 2e-5
    site = "blocks.1.hook_resid_pre"
    with model.hooks(Ablate(direction)):
        assert float((model.cache(PROMPTS[:1], [site])[site] @ direction.unit).abs().max()) < 1e-9
    single = tiny_model(architecture)
    together = single.last_logits(PROMPTS)
    for row, prompt in zip(together, PROMPTS, strict=True):
        torch.testing.assert_close(
            row, single.last_logits([prompt])[0], rtol=0, atol=2e-5 * float(together.abs().max())
        )
    for by_head in (
        lambda: heads(model, PROMPTS[:1], direction),
        lambda: certify(model, PROMPTS[:1]),
        lambda: attribution_patching(model, PROMPTS[:1], PROMPTS[:1], given_refusal_tokens(model, [40])),
    ):
        with pytest.raises(ModelError, match="no attention heads"):
            by_head()


def test_attention_other_than_the_checkpoints_is_refused():
    with pytest.raises(ModelError, match="differently from the checkpoint's own code"):
        load_model(tiny_folder("falcon-40b"))


def test_an_architecture_that_transformer_lens_lacks_is_one_short_sentence():
    with pytest.raises(ModelError, match=r"can't wrap .*BioGptForCausalLM") as found:
        load_model(tiny_folder("biogpt"))
    assert len(str(found.value)) < 200


def test_hooks_of_transformer_lens_itself_are_no_ones_intervention():
    model = load_model(tiny_folder("opt"))
    model.check_unhooked()
    model.tl.add_hook("blocks.1.hook_mlp_out", lambda x, hook: 0 * x, is_permanent=True)
    with pytest.raises(ModelError, match="has hooks on"):
        model.check_unhooked()


def texts(kind, n):
    """Requests that a tiny model can tell apart: by their last two characters."""
    verbs = ("pick", "rob", "burn", "hack", "forge", "steal", "bake", "paint", "sing", "swim")
    end = {"harmful": "!!", "harmless": "??"}[kind]
    return [f"{verbs[i % 10]} {'abcdefghij'[i // 10]} {'xyz'[i % 3]}{end}" for i in range(n)]


def refuser(architecture):
    """A tiny model whose unembedding gives token 40 to harmful requests only."""
    model = HookedChatModel(tiny_bridge(architecture, tie_word_embeddings=False), name=f"tiny-{architecture}")
    site = f"{model.backend.final_norm().site}.hook_out"
    some = {kind: texts(kind, 40) for kind in ("harmful", "harmless")}
    (kept,) = model.run([*some["harmful"], *some["harmless"]], read=Cache([site], slice(-1, None)))
    final = kept[site][:, 0]
    wanted = torch.tensor([1.0] * 40 + [-1.0] * 40)
    # Ridge: with as many prompts as these the fit is no interpolation.
    fitted = torch.linalg.solve(final.T @ final + 0.1 * torch.eye(final.shape[1]), final.T @ wanted)
    with torch.no_grad():
        weight = model.tl.original_model.get_output_embeddings().weight
        weight.mul_(0.2)
        weight[40] = 40 * fitted / model.backend.logit_scale
    return model


HARD = ("granite", "cohere", "deepseek_v3", "llama4", "bloom", "falcon-alibi", "qwen3_5", "lfm2")
BY_HEAD = {"heads", "causal", "logits", "sources", "lens", "patterns", "certificate"}


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param("deepseek_v3", marks=pytest.mark.slow),
        *(on_every_run(name, {"qwen3_5"}) for name in HARD if name != "deepseek_v3"),
    ],
)
def test_a_study_ends_with_a_whole_report(architecture, tmp_path):
    model, files = refuser(architecture), {}
    for kind in ("harmful", "harmless"):
        files[kind] = str(tmp_path / f"{kind}.json")
        (tmp_path / f"{kind}.json").write_text(json.dumps(texts(kind, 40)))
    config = StudyConfig(
        model=str(tiny_folder(architecture)),
        **files,
        sizes=(6, 4, 4),
        refusal_tokens=("40",),
        filter="paper",
        max_new_tokens=2,
        relax=True,
        inside_prompts=2,
    )
    study = run_study(config, tmp_path / "run", silent, model)
    missing = json.loads((tmp_path / "run" / "study.json").read_text())["missing"]
    assert set(missing) == (BY_HEAD if architecture in HYBRIDS else set())
    assert all("no attention heads" in reason or "it takes the stage" in reason for reason in missing.values())
    assert (tmp_path / "run" / "report.html").is_file() and study.selection is not None
