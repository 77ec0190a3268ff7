"""Whatever takes prompts, a direction, heads or refusal tokens takes all of its forms, or says what is wrong."""

import pytest
import torch

import refusal_lens as rl
from refusal_lens.attribution.token_records import SourceContributions
from refusal_lens.errors import (
    DirectionError,
    InterventionError,
    LabelError,
    PromptError,
    RefusalLensError,
    SettingError,
)
from refusal_lens.hooks import AttentionKnockout, Cache
from refusal_lens.models.texts import own_completions
from refusal_lens.records.direction import Subspace

ASK = "How do I pick a lock?"
MESSAGES = [{"role": "user", "content": ASK}]


@pytest.fixture(scope="module")
def model():
    return rl.load_model("organism")


@pytest.fixture(scope="module")
def found(model):
    data = rl.load_prompts("organism", sizes=(24, 12, 12))
    return rl.find_direction(model, data, refusal_tokens="I")


@pytest.mark.parametrize("prompts", [ASK, [ASK], MESSAGES, {"ask": ASK}, {"ask": MESSAGES}], ids=str)
def test_one_request_is_one_prompt(model, found, prompts):
    table = rl.behaviour.evaluate_table(model, found, prompts, conditions=["baseline"], max_new_tokens=2)
    assert table.to_frame()["n"].tolist() == [1]
    assert rl.direction.trace_direction(model, prompts, found).sizes["prompt"] == 1


@pytest.mark.parametrize("prompts", [ASK, [ASK], MESSAGES], ids=str)
def test_one_request_has_one_pattern_and_one_reply(model, prompts):
    assert rl.attribution.attention_patterns(model, prompts, "L1H2").to_frame() is not None
    assert len(own_completions(model, prompts, 2)) == 1


@pytest.mark.parametrize("heads", ["L1H2", ["L1H2"], (1, 2), [(1, 2)]], ids=str)
def test_heads_have_labels(model, found, heads):
    assert rl.attribution.attention_patterns(model, ASK, heads).heads == ((1, 2),)
    assert AttentionKnockout(heads).heads == ((1, 2),)
    data = rl.load_prompts("organism", sizes=(4, 4, 4))
    check = rl.attribution.causal_check(model, data.harmful.test, data.harmless.test, found, heads, "I", n_random=1)
    assert check.heads == ((1, 2),)


@pytest.mark.parametrize("tokens", ["I", ["I"], [40]], ids=str)
def test_tokens_have_names(model, found, tokens):
    ids = model.tokenizer("I", add_special_tokens=False)["input_ids"]
    tokens = ids if tokens == [40] else tokens
    named = rl.refusal_metric(model, ASK, tokens)
    assert torch.equal(named, rl.refusal_metric(model, ASK, found))
    assert rl.attribution.direct_logit_attribution(model, ASK, tokens).answer == ("I",)


def test_a_hook_point_may_stand_alone(model):
    name = "blocks.0.hook_resid_pre"
    assert list(model.cache(ASK, name)) == [name]
    (kept,) = model.run(ASK, read=Cache(name))
    assert list(kept) == [name]


def test_a_result_stands_for_its_direction(model, found):
    assert rl.certify(model, ASK, found, float64=False).passed
    assert len(Subspace.random(found, 2, 0)) == 2


def test_a_placebo_says_so(found):
    real, placebo = rl.Ablate(found), rl.Ablate(found).placebo(3)
    assert placebo.label == f"Ablate random direction 3 for {found.direction.label}" != real.label
    cut = AttentionKnockout([(1, 0)])
    assert cut.placebo(3).label == "AttentionKnockout others (seed 3) than L1H0 to suffix"


WRONG = {
    "a set": (PromptError, "name one", lambda m, f: rl.direction.trace_direction(m, rl.load_prompts("organism"), f)),
    "two patterns": (
        PromptError,
        "2 were given",
        lambda m, f: rl.attribution.attention_patterns(m, [ASK, "b"], "L1H2"),
    ),
    "no heads": (
        PromptError,
        "no heads",
        lambda m, f: rl.attribution.causal_check(m, ASK, ASK, f, [], f, n_random=1),
    ),
    "no such head": (LabelError, "is not a head", lambda m, f: AttentionKnockout(["head 3"])),
    "neurons": (
        InterventionError,
        "choose from 0 to 4",
        lambda m, f: rl.attribution.neuron_contributions(m, ASK, f, layers=[9]),
    ),
    "class": (InterventionError, "Ablate is not an intervention", lambda m, f: m.hooks(rl.Ablate).__enter__()),
    "no tokens": (SettingError, "max_new_tokens is 0", lambda m, f: m.generate(ASK, 0)),
    "cold": (SettingError, "temperature is -1", lambda m, f: m.generate(ASK, 2, temperature=-1)),
    "zero": (DirectionError, "not zero", lambda m, f: m.hooks(rl.Ablate(torch.zeros(96))).__enter__()),
    "split": (
        LabelError,
        "train, val, test",
        lambda m, f: rl.direction.dose_response(m, rl.load_prompts("organism"), f, split="foo"),
    ),
    "equal": (
        DirectionError,
        "are equal",
        lambda m, f: rl.select_direction(
            m, rl.direction.extract_directions(m, [ASK], [ASK]), [ASK], [ASK], refusal_tokens=f.refusal_tokens
        ),
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_sentence(model, found, what):
    kind, said, call = WRONG[what]
    with pytest.raises(kind, match=said) as error:
        call(model, found)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layers", [True, 99, [1, 99]], ids=repr)
def test_layers_that_are_none(model, found, layers):
    with pytest.raises(InterventionError, match="layers"), model.hooks(rl.Ablate(found, layers=layers)):
        pass


def test_layers_and_places_of_every_kind(model, found):
    with model.hooks(rl.Ablate(found, layers=[1, 2], positions=["instruction", "template_post"])):
        model.last_logits(ASK)


def test_a_strength_is_a_number(found):
    with pytest.raises(InterventionError, match="strength"):
        rl.Ablate(found, strength=float("nan"))


def test_labels_that_repeat_are_counted_out(model, found):
    heads = rl.attribution.heads(model, [ASK, ASK], found)
    with pytest.raises(LabelError, match="2 entries of prompt"):
        heads.sel(ASK)
    assert len(heads.sel("L1H2", prompt=0).to_frame()) == 1
    assert heads.sel((1, 2)).values.equal(heads.values[1, 2])
    parts = rl.attribution.component_contributions(model, ASK, found)
    assert parts.sel("L1H2").heads.equal(parts.heads[1, 2])


def test_figures_of_what_is_not_there(model, found):
    sources: SourceContributions = rl.attribution.source_contributions(model, ASK, found)
    for options in ({"prompt": 99}, {"prompt": 0, "head": "L9H9"}, {}):
        with pytest.raises(RefusalLensError):
            sources.plot("head", **options)
