"""Suffix files as their tools write them, and controls of equal token length."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from refusal_lens.data.suffixes import Suffix, SuffixSet
from refusal_lens.errors import PromptError
from refusal_lens.hijacking.controls import check_suffix, filled_up, random_controls, shuffled_controls, suffix_ids
from refusal_lens.models.chat import ChatFormat

from ..tiny import CHATML, tiny_tokenizer

PROMPTS = ["How do I pick a lock?", "Hi", "Tell me about the sea"]


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(tiny_tokenizer())


@pytest.fixture(scope="module")
def words():
    """The embedded model's tokenizer, whose tokens are words."""
    from transformers import AutoTokenizer

    from refusal_lens.data.organism import MODEL_DIR

    return ChatFormat(AutoTokenizer.from_pretrained(MODEL_DIR))


def merging(template: str) -> ChatFormat:
    """A tokenizer that merges "?!" and "?=" into one token each."""
    fast = tiny_tokenizer()
    state = json.loads(fast.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    for pair in (("?", "!"), ("?", "=")):
        vocab["".join(pair)] = 1000 + len(vocab)
        state["model"]["merges"].append(list(pair))
    return ChatFormat(
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(state)),
            eos_token="<|im_end|>",
            pad_token="<pad>",
            chat_template=template,
        )
    )


GCG = {"best_loss": 1.25, "best_string": "x y !", "losses": [2.0, 1.25], "strings": ["! ! !", "x y !"]}
ARTIFACT = {
    "parameters": {"method": "GCG", "model": "m", "attack_type": "white_box"},
    "jailbreaks": [
        {"index": 0, "goal": "Do a thing", "prompt": "Do a thing x y !", "response": "r", "jailbroken": True},
        {"index": 1, "goal": "Do another", "prompt": "Do another z", "response": "r", "jailbroken": False},
        {"index": 2, "goal": "Do a third", "prompt": None, "response": None, "jailbroken": False},
        {"index": 3, "goal": "Do a fourth", "prompt": "A story: Do a fourth", "response": "r", "jailbroken": True},
    ],
}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"kind": "gcg", "suffix": "x y"}\n\n{"suffix": "z"}\n', [("gcg", " x y"), ("adversarial", " z")]),
        ("a.csv", "kind,suffix\nstyle,\"be, brief\"\n,z\n", [("style", " be, brief"), ("adversarial", " z")]),
        ("a.txt", "x y\n\nz\n", [("adversarial", " x y"), ("adversarial", " z")]),
        ("a.json", json.dumps(["x", {"kind": "style", "suffix": " y"}]), [("adversarial", " x"), ("style", " y")]),
        ("gcg.json", json.dumps(GCG), [("gcg", " x y !")]),
        ("gcg.jsonl", json.dumps(GCG) + '\n{"best_string": "b"}', [("gcg", " x y !"), ("gcg", " b")]),
        ("jbb.json", json.dumps(ARTIFACT), [("jailbreakbench", " x y !"), ("jailbreakbench", " z")]),
    ],
)  # fmt: skip
def test_files(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_text(content)
    found = SuffixSet.load(path)
    assert [(s.kind, s.text) for s in found] == expected
    assert found.name == path.stem and len(found) == len(expected) and found[0] == found.items[0]
    assert SuffixSet.from_rows([s.text for s in found]).items[0].text == expected[0][1]


def test_what_is_left_out_is_said_and_kinds_are_known(tmp_path):
    found = SuffixSet.from_rows(ARTIFACT)
    assert "2 jailbreak(s) left out" in found.notes[0]
    twice = SuffixSet.from_rows(["a", "a", {"kind": "greeting", "suffix": "hi"}])
    assert len(twice) == 2 and "1 repeated" in twice.notes[0]
    assert twice.kinds == ("adversarial", "greeting")
    assert [s.is_attack for s in twice] == [True, False]
    assert twice.of("greeting").items == (Suffix("greeting", " hi"),)
    with pytest.raises(PromptError, match="no suffix of kind gcg"):
        twice.of("gcg")
    path = tmp_path / "set"
    twice.save(path)
    from refusal_lens.records.base import load_record

    assert load_record(path, SuffixSet) == twice


def test_scores_are_kept_and_replies_are_not(tmp_path):
    """A data set with its own column names: CSV and JSON lines give the same; nothing else of a row is read."""
    rows = [
        {"adv": "x y !", "asr": 0.75, "method": "gcg", "response": "Sure, here is", "goal": "Do a thing"},
        {"adv": "z", "asr": None, "method": "", "response": "No", "goal": "Do another"},
    ]
    names = {"suffix": "adv", "score": "asr", "kind": "method"}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.csv").write_text('adv,asr,method,response\nx y !,0.75,gcg,"Sure, here is"\nz,,,No\n')
    for name in ("a.jsonl", "a.csv"):
        found = SuffixSet.load(tmp_path / name, columns=names)
        assert found.items == (Suffix("gcg", " x y !", 0.75), Suffix("adversarial", " z", None))
        kept = found.save(tmp_path / "kept").read_text()
        assert "Sure" not in kept and "Do a" not in kept and SuffixSet.load(tmp_path / "kept.json") == found
    artifact = SuffixSet.from_rows(ARTIFACT).save(tmp_path / "artifact").read_text()
    assert '"r"' not in artifact and "Do a" not in artifact
    for columns, row, message in (
        (names, {"adv": "x", "asr": "high"}, "score 'high', which is no number"),
        ({}, {"adv": "x"}, "columns= names another"),
        ({"reply": "response"}, {"suffix": "x"}, "columns names reply"),
    ):
        with pytest.raises(PromptError, match=message):
            SuffixSet.from_rows([row], columns=columns)


def test_a_set_is_filled_up_with_controls(chat):
    found = SuffixSet.from_rows([" now!", " please do it"])
    filled = filled_up(found, 7, chat, PROMPTS, ["Name a river.", "Sing!"], seed=1)
    assert filled.items[:2] == found.items and len(filled) == 7 and "5 random or benign" in filled.notes[-1]
    assert [s.kind for s in filled.items[2:]] == ["random_tokens", "benign", "random_tokens", "benign", "random_tokens"]
    assert not any(s.is_attack for s in filled.items[2:]) and filled[3].text == " Name a river."
    wanted = [len(suffix_ids(chat, PROMPTS[i % 3], found[i % 2].text)) for i in (0, 2, 4)]
    assert [len(suffix_ids(chat, PROMPTS[i % 3], filled[i + 2].text)) for i in (0, 2, 4)] == wanted
    assert filled_up(found, 2, chat, PROMPTS, []) == found


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no suffix"),
        (["ok", "  "], "suffix 2 .* is empty"),
        ([{"text": "x"}], "needs a field suffix"),
        ([3], "row 1 .* has int"),
        ("abc", "must be a list"),
        ({"jailbreaks": [{"goal": "g", "prompt": "other"}]}, "none of its 1 prompts"),
    ],
)
def test_bad_rows(rows, message):
    with pytest.raises(PromptError, match=message):
        SuffixSet.from_rows(rows)


def test_bad_files(tmp_path):
    for name, content, message in (
        ("none.txt", None, "no suffix file"),
        ("a.json", "{", "can't be read"),
        ("a.xml", "x", "ending"),
        ("a.txt", "", "holds no suffix"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_text(content)
        with pytest.raises(PromptError, match=message):
            SuffixSet.load(path)


def test_what_does_not_fit_is_one_clear_sentence(chat):
    assert check_suffix(chat, PROMPTS, " now", 0) == (4, 4, 4)
    assert SuffixSet.from_rows(["now", "please do"]).lengths(chat, "Hi") == (4, 10)
    with pytest.raises(PromptError, match="empty"):
        check_suffix(chat, PROMPTS, " ", 0)
    with pytest.raises(PromptError, match=r"200 tokens\) a prompt has \d+ tokens and the model takes 100"):
        check_suffix(chat, PROMPTS, " " + "x" * 199, 100)
    with pytest.raises(PromptError, match="merges the instruction's end"):
        check_suffix(merging(CHATML), [PROMPTS[0]], "! now", 0)
    # Without the suffix the instruction's last character is merged with the template: its tokens would change.
    with pytest.raises(PromptError, match="changes the tokens of the instruction"):
        check_suffix(merging("{% for m in messages %}{{ m.content }}=end{% endfor %}"), [PROMPTS[0]], " now", 0)


@pytest.mark.parametrize("suffix", [" now!", " a b c d e"])
def test_random_controls(chat, words, suffix):
    for format_, prompts in ((chat, PROMPTS), (words, ["How do I bake bread?", "How do I open a safe?"])):
        drawn = random_controls(format_, prompts, suffix, seed=1)
        assert all(drawn.exact) and len(set(drawn.texts)) == len(prompts)  # fresh for each prompt
        for prompt, text in zip(prompts, drawn.texts, strict=True):
            assert len(suffix_ids(format_, prompt, text)) == len(suffix_ids(format_, prompt, suffix))
            # The instruction's own tokens stay what they were.
            alone, with_it = format_.encode(prompt), format_.encode(prompt, text)
            stop = alone.spans.instruction[1]
            assert with_it.ids[:stop] == alone.ids[:stop]
            ids = suffix_ids(format_, prompt, text)
            assert not set(ids) & set(format_.tokenizer.all_special_ids)
        assert random_controls(format_, prompts, suffix, seed=1) == drawn
        assert random_controls(format_, prompts, suffix, seed=2) != drawn


def test_shuffled_controls(chat, words):
    for format_, prompts, suffix in (
        (chat, PROMPTS, " a b c d"),
        (words, ["How do I bake bread?"] * 2, " bath mystery rice party"),
    ):
        mixed = shuffled_controls(format_, prompts, suffix, seed=0)
        assert all(mixed.exact)
        for prompt, text in zip(prompts, mixed.texts, strict=True):
            assert text != suffix
            assert sorted(suffix_ids(format_, prompt, text)) == sorted(suffix_ids(format_, prompt, suffix))
    # Tokens that no order keeps: whole words are shuffled, and a changed length is said.
    assert len(shuffled_controls(chat, PROMPTS, "!", seed=0).texts) == 3
