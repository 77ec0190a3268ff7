"""The map of a conversation: exact at every token, in regions that cover it, beside random directions."""

from __future__ import annotations

import torch
from pytest import fixture, mark, raises

import refusal_lens as rl
from refusal_lens.data.conversation import Conversation
from refusal_lens.direction import ConversationMap, read
from refusal_lens.direction.figures import plot_conversation, plot_conversation_lines
from refusal_lens.direction.section import conversations_section
from refusal_lens.direction.views import conversation_view
from refusal_lens.errors import DirectionError, LabelError, PromptError, SettingError
from refusal_lens.records.labels import visible
from refusal_lens.tensors import random_units

from .cases import PROMPT, direction_of, model_of

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": PROMPT},
]


@fixture(params=["qwen3", "organism"])
def model(request):
    return request.getfixturevalue("organism") if request.param == "organism" else model_of(request.param)


@fixture(scope="module")
def seen():
    """A tiny model with grouped queries, with everything a map can have."""
    model = model_of("qwen3")
    direction = direction_of(model)
    under = {"ablation": [rl.Ablate(direction)], "addition": [rl.Add(direction)]}
    return read(model, TALK, direction, " now!", reply="<think>Hm?</think>No.", under=under)


def test_it_is_the_stream_of_the_plain_model(model):
    """Of the wrapped transformers model itself, and of TransformerLens's own cache."""
    direction = direction_of(model)
    found = read(model, TALK, direction, " now", reply=" Sure, I")
    for i, suffix in enumerate(("", " now")):
        asked = Conversation([*TALK[:-1], {"role": "user", "content": PROMPT + suffix}])
        text = model.chat.render(asked) + " Sure, I"
        ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            hidden = model.backend.hf(ids, output_hidden_states=True).hidden_states
            last = model.tl.run_with_cache(ids)[1][f"blocks.{model.n_layers - 1}.hook_resid_post"]
        stream = torch.stack([*hidden[:-1], last])[:, 0]
        r, n = direction.unit.to(stream), ids.shape[1]
        tight = {"rtol": 0, "atol": 1e-10 if r.dtype == torch.float64 else 1e-4}
        torch.testing.assert_close(found.projection[i, :, :n], stream @ r, **tight)
        torch.testing.assert_close(found.cosine[i, :, :n], (stream @ r) / stream.norm(dim=-1), **tight)
        others = torch.stack([stream @ unit.to(stream) for unit in random_units(39, model.d_model)])
        torch.testing.assert_close(found.low[i, :, :n], others.amin(0), **tight)
        torch.testing.assert_close(found.high[i, :, :n], others.amax(0), **tight)
        assert bool(found.projection[i, :, n:].isnan().all()) and len(found.tokens[i]) == n


def test_regions_cover_every_token_once(seen):
    assert seen.conditions == ("baseline", "adversarial", "ablation", "addition")
    model = model_of("qwen3")
    for tokens, regions, suffix in zip(seen.tokens, seen.regions, ("", " now!", " now!", " now!"), strict=True):
        said = {name: "".join(t for t, r in zip(tokens, regions, strict=True) if r == name) for name in set(regions)}
        whole = model.chat.render(Conversation([*TALK[:-1], {"role": "user", "content": PROMPT + suffix}]))
        assert "".join(tokens) == whole + "<think>Hm?</think>No."
        assert said["system"] == "Be brief." and said["earlier"].startswith("Hello") and said["earlier"].endswith("Hi.")
        assert said["instruction"] == PROMPT and said.get("suffix", "") == suffix
        assert (said["thought"], said["reply"]) == ("<think>Hm?</think>", "No.")
    counts = seen.to_frame().groupby("condition").size()
    assert counts.to_dict() == {name: len(seen.regions[i]) for i, name in enumerate(seen.conditions)}


def test_a_suffix_changes_nothing_before_it_and_ablation_leaves_nothing(seen):
    same = seen.regions[1].index("suffix")
    torch.testing.assert_close(seen.projection[0, :, :same], seen.projection[1, :, :same], rtol=0, atol=1e-12)
    assert float((seen.projection[0, :, same] - seen.projection[1, :, same]).abs().max()) > 1e-3
    n, direction = len(seen.tokens[2]), seen.direction
    assert float(seen.sel("ablation").projection[:, :n].abs().max()) < 1e-12
    assert float(seen.sel("adversarial").projection[:, :n].abs().max()) > 1e-2
    added = seen.projection[3, direction.layer] - seen.projection[1, direction.layer]
    torch.testing.assert_close(added[:n], torch.full_like(added[:n], direction.norm))


def test_the_band_is_not_made_of_the_placebo_that_acts(organism):
    """Adding a random direction of a small seed does not widen the range that it is compared with."""
    direction = direction_of(organism)
    placebo = rl.Add(direction, 20.0, layers=0).placebo(1)
    found = read(organism, PROMPT, placebo.direction, under={"random_addition": [placebo]})
    assert bool((found.outside()[1, 1:] != 0).all())


def test_a_reply_is_generated_or_given(organism):
    direction, under = direction_of(organism), {"ablation": [rl.Ablate(direction_of(organism))]}
    made = read(organism, PROMPT, direction, reply=6, under=under)
    with organism.hooks(*under["ablation"]):
        said = organism.generate(PROMPT, 6)
    texts = ["".join(t for t, r in zip(*row, strict=True) if r == "reply")
             for row in zip(made.tokens, made.regions, strict=True)]  # fmt: skip
    assert texts == [organism.generate(PROMPT, 6), said]
    given = read(organism, PROMPT, direction, reply=dict(zip(made.conditions, texts, strict=True)), under=under)
    torch.testing.assert_close(given.projection, made.projection, equal_nan=True)
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": texts[0]}]
    ended = read(organism, turns, direction)
    torch.testing.assert_close(ended.projection[0], made.projection[0, :, : ended.projection.shape[-1]])


@mark.parametrize(
    ("conversation", "options", "error", "said"),
    [
        ("", {}, PromptError, "an empty prompt has no instruction"),
        (["a", "b"], {}, PromptError, "one conversation, and 2 were given"),
        (PROMPT, {"reply": "x" * 300}, PromptError, r"has \d+ tokens with its reply and tiny-qwen3 takes 256: shorten"),
        (PROMPT, {"reply": 300}, PromptError, "ask for fewer new tokens"),
        (PROMPT, {"reply": {"ablation": ""}}, LabelError, "no condition 'baseline'; reply has ablation"),
        (PROMPT, {"n_random": 0}, SettingError, "at least one random direction"),
        (
            [*TALK, {"role": "assistant", "content": "No."}],
            {"reply": 4},
            PromptError,
            "leave that turn out to generate",
        ),
        (TALK[:1], {"reply": 4}, PromptError, "must end with the user's turn, not with one of 'system'"),
        (rl.load_prompts("organism", sizes=(8, 4, 4)).harmful, {}, PromptError, "name one, for example .test"),
    ],
)
def test_bad_input_is_one_sentence(conversation, options, error, said):
    model = model_of("qwen3")
    with raises(error, match=said) as caught:
        read(model, conversation, direction_of(model), **options)
    assert "\n" not in str(caught.value)


def test_a_direction_of_another_width_is_refused(organism):
    with raises(DirectionError, match="belongs to another model"):
        read(organism, PROMPT, direction_of(model_of("qwen3")))


def test_the_record_is_kept_and_has_a_table(seen, tmp_path):
    loaded = ConversationMap.load(seen.save(tmp_path / "map"))
    assert (
        torch.equal(loaded.projection.nan_to_num(7), seen.projection.nan_to_num(7)) and loaded.regions == seen.regions
    )
    assert repr(seen) == f"ConversationMap(condition 4, layer 4, token {len(seen.tokens[1])})"
    frame = seen.to_frame(layer=-1)
    assert len(frame) == sum(map(len, seen.tokens)) and not frame["projection"].isna().any()
    inside = frame[~frame["outside"]]
    assert bool((inside["projection"] <= inside["high"]).all()) and 0 < len(inside) < len(frame)
    rows = frame[frame["condition"] == "adversarial"]
    shown = seen.outside()[1, -1, : len(rows)]
    assert ((shown != 0).tolist()) == rows["outside"].tolist()
    for call in (lambda: seen.to_frame(9), lambda: seen.plot("by token", layer=9), lambda: seen.plot(conditions=["x"])):
        with raises(LabelError, match="a ConversationMap has"):
            call()


def test_figures_and_view_show_the_record(seen):
    figure = plot_conversation(seen, ["adversarial", "ablation"])
    z = torch.tensor(figure.data[0].z, dtype=torch.float64)
    torch.testing.assert_close(z, seen.outside()[1, :, : z.shape[1]], rtol=1e-4, atol=1e-6)
    assert not any(any(row) for row in figure.data[1].z)  # ablated: white
    open_map = plot_conversation(seen, ["baseline"], value="cosine", band=False).data[0]
    n = len(seen.tokens[0])
    torch.testing.assert_close(torch.tensor(open_map.z).double(), seen.cosine[0, :, :n], rtol=1e-4, atol=1e-6)
    assert open_map.customdata[0][0] == f"{visible(seen.tokens[0][0])} ({seen.regions[0][0]})"
    band, *lines = plot_conversation_lines(seen).data
    assert [line.name for line in lines] == list(seen.conditions) and len(band.x) == 2 * n
    torch.testing.assert_close(torch.tensor(lines[0].y).double(), seen.projection[0, seen.direction.layer, :n])
    view = conversation_view(seen, "adversarial", 2)
    assert view.component == "ColoredTokens" and view.props["tokens"] == [visible(t) for t in seen.tokens[1]]
    values = torch.tensor(view.props["values"]).double()
    torch.testing.assert_close(values, seen.outside()[1, 2, : len(values)], rtol=1e-3, atol=1e-6)


def test_a_section_says_how_many_tokens_lie_outside(seen):
    section = conversations_section((seen, seen))
    n = int(seen.to_frame().query("condition == 'baseline'")["outside"].sum())
    assert f"baseline {n} of {len(seen.tokens[0])}" in section.text[0] and "5% would be" in section.text[0]
    picker = section.items[1]
    assert [option.value for option in picker.options] == ["1", "0", "2", "3"] and len(picker.options[0].items) == 4
