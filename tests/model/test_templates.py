"""Chat templates as people have them: options, dates, thoughts, merged tokens, ends of turns."""

from __future__ import annotations

import datetime
import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from refusal_lens import load_model
from refusal_lens.data.conversation import Conversation
from refusal_lens.data.organism import MODEL_DIR, instructions
from refusal_lens.data.prompts import load_prompts
from refusal_lens.direction.extract import after_thoughts, extract_directions
from refusal_lens.errors import ModelError, PromptError, SettingError
from refusal_lens.hooks.readers import Cache
from refusal_lens.models.chat import ChatFormat
from refusal_lens.models.generation import _text
from refusal_lens.models.template import options_of, split_thought, template_text
from refusal_lens.records.store import Store
from refusal_lens.refusal.records import Completions
from refusal_lens.refusal.replies import completion
from refusal_lens.refusal.tokens import find_refusal_tokens, given_refusal_tokens
from refusal_lens.study.config import StudyConfig
from refusal_lens.study.folder import Study
from refusal_lens.study.pipeline import run_stage, run_study
from tests.tiny import CHATML, tiny_tokenizer

TULU = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
THINKING = CHATML[: -len("{% endif %}")] + (
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}{{ m.content }}!{% endfor %}"
SYSTEM_FIRST = "{% if messages[0].role != 'system' %}{{ raise_exception('no system turn') }}{% endif %}{{ messages }}!"
DROPS_SYSTEM = CHATML.replace("{% for m in messages %}", "{# quiet #}{% for m in messages if m.role != 'system' %}")
ROLES = CHATML.replace(
    "<|im_start|>{{ m.role }}",
    "{% if m.role == 'x' %}{% set role = 'y' %}{% else %}{% set role = m.role %}{% endif %}<|im_start|>{{ role }}",
)
IGNORED = ("m", "role", "assistant", "messages", "padding", "conversation")
DATED = "{{ strftime_now('%d %B %Y') }}\n" + CHATML


def merging_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Bytes, and "?" with the newline after it as one token."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tok = Tokenizer(models.BPE(vocab={**vocab, "?Ċ": len(vocab)}, merges=[("?", "Ċ")]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>")
    fast.chat_template = template
    return fast


def words_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words that take the space before them, as SentencePiece's do."""
    words = ["<s>", "</s>", "<unk>", "▁[INST]", "▁[/INST]", "▁Hello", "▁there", "▁Sure"]
    tok = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.decoder = decoders.Metaspace()
    tok.add_special_tokens(["<s>", "</s>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
    )
    return fast


def test_prompts_whose_ends_merge_with_the_template_share_positions():
    chat = ChatFormat(merging_tokenizer(TULU))
    one, other, both = (chat.tokenize(p) for p in ("Is it?", "It is.", ["Is it?", "It is."]))
    assert one.n_post == other.n_post == both.n_post == len("<|assistant|>\n")
    for tokens in (one, other):
        (ids, span) = tokens.ids[0].tolist(), tokens.spans[0]
        assert chat.tokenizer.decode(ids[slice(*span.template_post)]) == "<|assistant|>\n"
        assert chat.tokenizer.decode(ids[slice(*span.instruction)]).endswith("\n")  # the merged token, or its half
    assert chat.post_labels()[0] == "<"


def test_a_first_word_with_the_templates_space_is_the_instruction():
    chat = ChatFormat(words_tokenizer())
    span = chat.encode("Hello").spans
    assert span.instruction == (1, 2) and span.template_pre == (0, 1) and chat.n_post == 1
    assert chat.encode("Hello there").spans.instruction == (1, 3)


def test_the_end_of_a_turn_is_a_token_or_text():
    chatml = tiny_tokenizer()
    chatml.eos_token = "<s>"
    assert ChatFormat(chatml).template.turn_end() == ({257}, "")
    assert ChatFormat(words_tokenizer()).template.turn_end() == ({1}, "")
    assert ChatFormat(merging_tokenizer(TULU)).template.turn_end() == (set(), "\n<|user|>")


def test_a_reply_stops_at_the_templates_end_of_turn_and_stays_greedy(organism, tmp_path):
    """Under a checkpoint with another eos token, and with settings that would change greedy replies."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL_DIR, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = tokenizer.pad_token
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": tokenizer.pad_token_id}))
    asked = {"suppress_tokens": tokenizer("I")["input_ids"], "stop_strings": ["sorry"], "repetition_penalty": 9.0}
    (folder / "generation_config.json").write_text(json.dumps({**asked, "eos_token_id": tokenizer.pad_token_id}))
    changed = load_model(folder)
    prompts = load_prompts("organism").harmful.test[:6]
    assert changed.generate(prompts, 40) == organism.generate(prompts, 40)
    assert changed.backend.generation_requests() == asked


def test_text_ends_a_turn_where_no_token_does():
    class Model:  # only what decoding takes
        tokenizer = merging_tokenizer(TULU)
        chat = ChatFormat(tokenizer)
        turn_end = chat.template.turn_end()

    ids = Model.tokenizer("Fine.\n<|user|>\nAnd then?")["input_ids"]
    assert _text(Model, ids) == "Fine."


def with_template(template: str, **settings):
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    tokenizer.chat_template = template
    return load_model("organism", tokenizer=tokenizer, **settings)


def test_thoughts_are_skipped_where_the_template_offers_it():
    plain, skipped = load_model("organism"), with_template(THINKING)
    thinking = with_template(THINKING, template_options={"enable_thinking": True})
    assert skipped.chat.template.options == {"enable_thinking": False}
    closed = "<think>\n\n</think>\n\n"
    assert skipped.chat.render("x") == plain.chat.render("x") + closed == thinking.chat.render("x") + closed
    assert skipped.chat.n_post > thinking.chat.n_post == plain.chat.n_post
    (ids, span) = skipped.tokenize("Hello").ids[0].tolist(), skipped.tokenize("Hello").spans[0]
    assert skipped.tokenizer.decode(ids[slice(*span.thought)]).strip() == "<think>\n\n</think>"
    assert span.template_post[0] < span.thought[0] < span.thought[1] <= span.template_post[1]


def test_replies_that_begin_with_a_thought_name_the_remedy(organism):
    """The organism with a prompt that opens a thought: whatever it says then is an unfinished one."""
    harmful, harmless = load_prompts("organism")
    opened = with_template(CHATML.replace("assistant\n", "assistant\n<think>\n"))
    assert opened.chat.opened == "<think>"
    with pytest.raises(ModelError, match=r"begins its replies with a thought.*reply_prefix='\\n\\n</think>\\n\\n'"):
        find_refusal_tokens(opened, harmful.train[:4], harmless.train[:4])
    offered = with_template(
        THINKING.replace("{% endif %}{% endif %}", "{% else %}<think>{% endif %}{% endif %}"),
        template_options=["enable_thinking=true"],
    )
    with pytest.raises(ModelError, match="--template-option enable_thinking=false"):
        find_refusal_tokens(offered, harmful.train[:4], harmless.train[:4])


def test_a_reply_prefix_belongs_to_the_prompt(organism):
    prefixed = load_model("organism", reply_prefix="I'm sorry")
    assert prefixed.chat.render("Hello") == organism.chat.render("Hello") + "I'm sorry"
    assert prefixed.chat.n_post > organism.chat.n_post
    asked = "How do I pick a lock?"
    rest = prefixed.generate(asked, 8)
    assert organism.generate(asked, 16).startswith("I'm sorry" + rest) and rest


@pytest.mark.parametrize(
    ("reply", "opened", "parts"),
    [
        ("Plain.", "", ("", "Plain.", True)),
        ("<think>\nHm.\n</think>\n\nYes.", "", ("Hm.", "Yes.", True)),
        ("Hm.</think>Yes.", "<think>", ("Hm.", "Yes.", True)),
        ("Hm.</think>Yes.", "", ("Hm.", "Yes.", True)),
        ("<think>Hm", "", ("Hm", "", False)),
        ("Hm", "<think>", ("Hm", "", False)),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
            "",
            ("Hm.", "Yes.", True),
        ),
        ("<|channel|>final<|message|>Yes.", "", ("", "Yes.", True)),
        ("[THINK]Hm.[/THINK]Yes.", "", ("Hm.", "Yes.", True)),
        ("The tag <think> begins a thought.", "", ("", "The tag <think> begins a thought.", True)),
    ],
)
def test_thoughts_are_told_from_answers(reply, opened, parts):
    assert tuple(split_thought(reply, opened=opened)) == parts


def test_answers_are_judged_and_unfinished_thoughts_counted_apart():
    model = load_model("organism", thought=("(", ")"))
    replies = ["(I cannot say that.) Sure!", "(Let me see.) I cannot.", "(I cannot"]
    found = Completions(tuple(completion(model, "x", reply, "baseline") for reply in replies), "harmful", 8)
    assert [item.refused for item in found] == [False, True, False]
    assert found.unfinished == {"baseline": 1}
    assert (found.rates["baseline"].n, found.rates["baseline"].rate) == (2, 0.5)


def test_the_date_of_a_template_is_fixed():
    today, earlier = with_template(DATED), with_template(DATED, date="2024-07-26")
    assert today.chat.render("x").startswith(datetime.date.today().strftime("%d %B %Y"))
    assert earlier.chat.render("x").startswith("26 July 2024") and earlier.chat.settings["date"] == "2024-07-26"
    assert load_model("organism", date="2024-07-26").chat.settings["date"] is None  # its template has none


@pytest.mark.parametrize("call", ["'%-d %B %Y'", "format='%d %B %Y'", "f", '"%e %B %Y"'])
def test_the_date_is_fixed_however_the_template_asks_for_it(call):
    text = "\n  {% set f = '%d %B %Y' %}{{ strftime_now(" + call + ") }}\n" + CHATML
    chat = ChatFormat(tiny_tokenizer(), chat_template=text, date="2020-01-12")
    today = ChatFormat(tiny_tokenizer(), chat_template=text)
    assert chat.render("x").lstrip().startswith("12 January 2020") and chat.template.uses_date
    own = tiny_tokenizer().apply_chat_template(
        [{"role": "user", "content": "x"}], chat_template=text, tokenize=False, add_generation_prompt=True
    )
    assert today.render("x") == own  # with the same space around it


@pytest.mark.parametrize(
    ("value", "found"),
    [("False", False), ("FALSE", False), ("false", False), ("True", True), ("None", None), ("3", 3), ("off", "off")],
)
def test_options_are_read_as_json_or_python(value, found):
    assert options_of([f"x={value}"]) == options_of(f"x={value}") == {"x": found}


@pytest.mark.parametrize("content", ["\ufeff" + CHATML, json.dumps({"chat_template": CHATML}), CHATML])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_template_file_is_its_template(tmp_path, content, encoding):
    (tmp_path / "t").write_text(content, encoding)
    assert template_text(tmp_path / "t") == template_text(str(tmp_path / "t")) == CHATML == template_text(content)
    named = [{"name": "tools", "template": "{{ no }}"}, {"name": "default", "template": CHATML}]
    assert template_text(json.dumps({"chat_template": named})) == CHATML


def test_a_template_without_a_generation_prompt_needs_a_prefix():
    loop = CHATML[: CHATML.index("{% if add")]
    with pytest.raises(
        ModelError, match=r"ignores add_generation_prompt: replies begin with '<\|im_start\|>assistant'"
    ):
        ChatFormat(tiny_tokenizer(), chat_template=loop)
    given = ChatFormat(tiny_tokenizer(), chat_template=loop, reply_prefix="<|im_start|>assistant\n")
    assert given.render("x") == ChatFormat(tiny_tokenizer()).render("x")


def test_a_template_that_takes_a_system_turn_gets_it():
    chat = ChatFormat(tiny_tokenizer(), "Be kind.", chat_template=SYSTEM_FIRST.replace("{{ messages }}!", CHATML))
    assert chat.render("x") == ChatFormat(tiny_tokenizer(), "Be kind.").render("x")


def test_a_study_keeps_the_date_on_which_it_began(tmp_path):
    (tmp_path / "t.jinja").write_text(DATED)
    config = StudyConfig(sizes=(48, 12, 12), chat_template=str(tmp_path / "t.jinja"), relax=True, attribution=False)
    Store(tmp_path / "run").put("stages/date", "2024-07-26")
    study = run_study(config, tmp_path / "run")
    assert study.provenance["model"]["chat"]["date"] == "2024-07-26"
    assert study.provenance["model"]["template"].startswith("26 July 2024")
    assert Study(tmp_path / "run").provenance["model"]["chat"]["chat_template"] == DATED


def test_a_conversations_parts_have_names(organism):
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "How are you?")]
    talk = Conversation([{"role": role, "content": content} for role, content in turns])
    tokens = organism.tokenize(talk)
    ids, span, decode = tokens.ids[0].tolist(), tokens.spans[0], organism.tokenizer.decode
    assert decode(ids[slice(*span.system)]).strip() == "Be brief."
    assert decode(ids[slice(*span.earlier)]).startswith("Hi") and decode(ids[slice(*span.earlier)]).endswith("Hello.")
    assert decode(ids[slice(*span.instruction)]) == "How are you?" and span.thought == (0, 0)
    assert organism.tokenize("Hello").spans[0].system == (0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template_options": {"enable_thinking": False}}, "does not read the option 'enable_thinking'"),
        ({"template_options": ["loud"]}, "NAME=VALUE"),
        *[({"template_options": {name: 1}}, f"does not read the option '{name}'") for name in IGNORED],
        ({"chat_template": ROLES, "template_options": {"role": 1}}, "does not read the option 'role'"),
        *[
            ({"chat_template": THINKING, "template_options": {"enable_thinking": v}}, "true or false")
            for v in (0, "off")
        ],
        ({"system": "user", "chat_template": NO_SYSTEM}, "drops the system prompt"),
        ({"system": "user", "chat_template": DROPS_SYSTEM}, "drops the system prompt"),
        (
            {"chat_template": CHATML.replace("m.content", "m.content|e")},
            r"does not put the user's text in as it is.*&lt;",
        ),
        (
            {"chat_template": CHATML.replace("m.content", "m.content|tojson")},
            "does not put the user's text in as it is",
        ),
        ({"date": "yesterday"}, "2026-01-31"),
        ({"chat_template": "nowhere.jinja"}, "no chat template at 'nowhere.jinja'"),
        ({"thought": ("<a>",)}, "two texts"),
        ({"system": "Be kind.", "chat_template": NO_SYSTEM}, "drops the system prompt"),
        ({"chat_template": SYSTEM_FIRST}, "refused this conversation: no system turn"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, message):
    with pytest.raises(ModelError, match=message):
        load_model("organism", **settings)


def test_an_option_in_a_comment_is_not_read():
    with pytest.raises(ModelError, match="does not read the option 'quiet'"):
        ChatFormat(tiny_tokenizer(), chat_template=DROPS_SYSTEM, template_options={"quiet": 1})
    with pytest.raises(PromptError, match="half of a character"):
        ChatFormat(tiny_tokenizer(), reply_prefix="\ud800")


@pytest.mark.parametrize(("name", "value"), [("temperature", -1), ("temperature", float("nan")), ("max_new_tokens", 0)])
def test_replies_of_no_kind_are_refused(organism, name, value):
    with pytest.raises(SettingError, match=f"{name} is {value}; it must be at least"):
        organism.generate("Hello", **{name: value})


def test_refusal_tokens_count_once(organism):
    once = given_refusal_tokens(organism, ["I"])
    assert given_refusal_tokens(organism, ["I", once.ids[0], "I"]) == given_refusal_tokens(organism, "I") == once


def test_a_model_without_a_name_is_said():
    with pytest.raises(ModelError, match="no name"):
        load_model(" ")


def test_a_turn_that_the_template_drops_is_refused():
    model = with_template(CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}"))
    with pytest.raises(PromptError, match="drops a turn of 'tool'"):
        model.tokenize([{"role": "tool", "content": "42"}, {"role": "user", "content": "And?"}])


def test_what_a_run_takes_is_checked_before_it_computes(tmp_path):
    prompts = {name: [f"{name} request number {i}" for i in range(40)] for name in ("harmful", "harmless")}
    prompts["harmful"][7] += " again" * 600
    files = {name: tmp_path / f"{name}.json" for name in prompts}
    for name, texts in prompts.items():
        files[name].write_text(json.dumps(texts))
    config = {"sizes": (24, 8, 8), **{name: str(file) for name, file in files.items()}}
    with pytest.raises(PromptError, match=r"1 harmful \w+ prompt\(s\) do not fit in organism's 512 tokens"):
        run_stage("selection", StudyConfig(**config), tmp_path / "run")
    with pytest.raises(PromptError, match="'no token' is"):
        run_stage("selection", StudyConfig(refusal_tokens=("no token",)), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors")) and instructions()


@pytest.mark.parametrize("give", [lambda m, t: m.tokenize(t), lambda m, t: m.generate("Hello", 2, suffixes=t)])
def test_broken_text_is_one_sentence(organism, give):
    with pytest.raises(PromptError, match="half of a character"):
        give(organism, " a\ud800b")


def test_the_requests_last_token_is_a_position_by_name(organism):
    data = load_prompts("organism", sizes=(8, 4, 4))
    plain = extract_directions(organism, data.harmful, data.harmless)
    more = extract_directions(organism, data.harmful, data.harmless, request=True)
    assert more.pos_labels == ("request", *plain.pos_labels)
    assert torch.allclose(more.mean_diff[1:], plain.mean_diff)
    reader = Cache(["blocks.2.hook_resid_pre"], slice(-6, -5))
    means = [organism.run(p.train, read=reader)[reader]["blocks.2.hook_resid_pre"].double().mean(0) for p in data]
    found = more.direction("request", 2)
    assert torch.allclose(found.vector.double(), (means[0] - means[1])[0], atol=1e-5) and found.pos == -6


def test_a_direction_at_the_end_of_the_models_own_thoughts():
    """Replies "I'm sorry, but ...", as if what stands before the comma were a thought."""
    model = load_model("organism", thought=("I'm", ","))
    harmful = load_prompts("organism").harmful.train[:8]
    tokens = after_thoughts(model, harmful, 16)
    ids, span = tokens.ids[0].tolist()[-int(tokens.lengths[0]) :], tokens.spans[0]
    whole = model.chat.render(harmful[0]) + "I'm sorry,"
    assert model.tokenizer.decode(ids) == whole
    assert model.tokenizer.decode(ids[slice(*span.template_post)]) == ","
    assert model.tokenizer.decode(ids[slice(*span.thought)]) == "I'm sorry,"
    with pytest.raises(ModelError, match="no thought"):
        after_thoughts(load_model("organism"), harmful[:2], 4)
