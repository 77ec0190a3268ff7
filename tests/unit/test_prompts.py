"""From every kind of file to disjoint splits; bad files end in one sentence."""

import csv
import json
import pickle
import subprocess
import sys

import pandas as pd
import pytest

from refusal_lens.data.conversation import Conversation
from refusal_lens.data.files import read_file
from refusal_lens.data.prompts import PromptPair, PromptSet, as_prompts, load_prompts
from refusal_lens.data.suffixes import SuffixSet
from refusal_lens.errors import PromptError

TEXTS = [f"Request number {i}" for i in range(40)]


def _write(folder, name, content):
    path = folder / name
    path.write_text(content, "utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "\n".join(TEXTS)),
        ("p.csv", "id,Goal\n" + "\n".join(f"{i},{t}" for i, t in enumerate(TEXTS))),
        ("p.json", json.dumps(TEXTS)),
        ("p.json", json.dumps([{"instruction": t, "category": None} for t in TEXTS])),
        ("p.jsonl", "\n".join(json.dumps({"prompt": t}) for t in TEXTS)),
    ],
)
def test_every_format_gives_the_same_disjoint_splits(tmp_path, name, content):
    found = PromptSet.load(_write(tmp_path, name, content), "harmful", (20, 5, 10), seed=3)
    direct = PromptSet.from_rows(TEXTS, "harmful", (20, 5, 10), seed=3)
    assert found == direct
    assert [len(s) for s in (found.train, found.val, found.test)] == [20, 5, 10]
    assert len({*found.train, *found.val, *found.test}) == 35
    assert PromptSet.from_rows(TEXTS, "harmful", (20, 5, 10), seed=4) != direct


def test_duplicates_and_overlaps_are_dropped_and_reported(tmp_path):
    for split, rows in {"train": [*TEXTS[:6], "request  NUMBER 9"], "val": TEXTS[6:9] * 2, "test": TEXTS[9:12]}.items():
        _write(tmp_path, f"bad_{split}.json", json.dumps(rows))
    found = PromptSet.load(tmp_path / "bad")
    assert (len(found.train), len(found.val), len(found.test)) == (6, 3, 3)
    assert "3 duplicates dropped from val" in found.notes
    assert "1 prompt of train dropped: also in test" in found.notes


@pytest.mark.parametrize("split", [True, False])
def test_unused_prompts_are_spare_and_never_of_the_test(split):
    rows = [f"prompt {i}" for i in range(60)]
    document = {"train": rows[:20], "val": rows[20:40], "test": rows[40:]} if split else rows
    found = PromptSet.from_rows(document, "x", (8, 6, 4))
    used = {*found.train, *found.val, *found.test}
    assert len(used) == 18 and not used & {*found.spare_train, *found.spare_val}
    if split:  # training prompts come from the training file; validation also from what the test leaves over
        assert set(found.spare_train) == set(rows[:20]) - used
        assert set(found.spare_val) == set(rows[20:]) - used
    else:
        assert found.spare_train == found.spare_val and len(found.spare_val) == 42
    assert found == PromptSet.from_rows(document, "x", (8, 6, 4))


def test_few_prompts_are_split_in_proportion_and_said():
    found = PromptSet.from_rows(TEXTS, "x", (128, 32, 100))
    assert [len(s) for s in (found.train, found.val, found.test)] == [19, 4, 15]
    assert "only 40 distinct prompts" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "", "empty"),
        ("p.txt", "\n \n\n", "is empty"),
        ("p.json", "[]", "empty"),
        ("p.json", "{broken", "can't be read as json"),
        ("p.json", '{"train": ["a"]}', "no val or test split"),
        ("p.json", '"just text"', "must be a list"),
        ("p.jsonl", '{"instruction": ""}\n{"instruction": 7}', "no valid row"),
        ("p.csv", "number,colour\n1,red", "columns number, colour"),
        ("p.pdf", "x", "ending '.pdf'"),
        ("p.txt", "one\ntwo", "at least 3"),
    ],
)
def test_bad_files_end_in_one_sentence(tmp_path, name, content, message):
    with pytest.raises(PromptError, match=message) as caught:
        PromptSet.load(_write(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_missing_file_and_unreachable_data_set(tmp_path):
    with pytest.raises(PromptError, match="no prompts at"):
        PromptSet.load(tmp_path / "nowhere.json")
    with pytest.raises(PromptError, match=r"can.t be loaded .*local file"):
        PromptSet.load("no-such-person/no-such-data-set")


def test_whatever_holds_requests_becomes_a_list():
    data = load_prompts(sizes=(4, 2, 2))
    assert as_prompts("Hello there") == ["Hello there"]
    assert as_prompts(data.harmful.test) == list(data.harmful.test)
    with pytest.raises(PromptError, match=r"name one, for example \.test"):
        as_prompts(data.harmful)
    with pytest.raises(PromptError, match=r"\.harmful\.test"):
        as_prompts(data)
    with pytest.raises(PromptError, match="not int"):
        as_prompts(["Hello", 3])
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    with pytest.raises(PromptError, match="must end with the user's turn"):
        as_prompts(turns)
    (one,) = as_prompts([*turns, {"role": "user", "content": "How are you?"}])
    assert isinstance(one, Conversation) and pickle.loads(pickle.dumps(one)).messages == one.messages


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("p.csv", "prompt\nBake bread, then eat a slice\nPlant it\n", ["Bake bread, then eat a slice", "Plant it"]),
        ("p.csv", 'prompt\n"Bake bread, then\neat a slice"\nPlant it\n', ["Bake bread, then\neat a slice", "Plant it"]),
        ("p.csv", 'prompt\n"He said ""hi"", ok"\na, b\n"c\nd, e"\n', ['He said "hi", ok', "a, b", "c\nd, e"]),
        ("p.csv", 'prompt\na, b\u2028c\n"Bake", then eat\n', ["a, b\u2028c", '"Bake", then eat']),
        ("p.csv", 'id, prompt\n1, "first, of two"\n2, b\n', ["first, of two", "b"]),
        ("p.csv", "id;prompt\n1;a, b\n2;c\n", ["a, b", "c"]),
        ("p.csv", "prompt\n" + "long, " * 40_000 + "text\nb\n", ["long, " * 40_000 + "text", "b"]),
        ("p.csv", 'id,prompt\n1,"' + "x" * 140_000 + '"\n', ["x" * 140_000]),
        ("p.tsv", 'id\tprompt\n1\t"never closed\n2\tb\n', ['"never closed', "b"]),
        ("p.tsv", 'id\tprompt\n1\t"Hello" he said\n2\t"a\tb"\n', ['"Hello" he said', "a\tb"]),
        ("p.jsonl", '{"prompt": "one\u2028line"}\n{"prompt": "b"}\n', ["one\u2028line", "b"]),
    ],
)  # fmt: skip
def test_rows_of_every_file_are_kept_whole(tmp_path, name, content, texts):
    assert [row["prompt"] for row in read_file(_write(tmp_path, name, content))] == texts
    (tmp_path / f"wide_{name}").write_text(content, "utf-16")
    assert [row["prompt"] for row in read_file(tmp_path / f"wide_{name}")] == texts
    assert csv.field_size_limit() == 131_072  # of the process


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "prompt,kind\na,b,c\n", "row 2 has 3 columns .* double quotes"),
        ("p.csv", 'id,prompt\n1,"never, closed\n2,b\n', "row 2 has 3 columns"),
        ("p.csv", "prompt,Prompt\na,b\n", "two columns are called 'prompt'"),
        ("p.csv", b"prompt\ncaf\xe9\n", "save it as UTF-8"),
        ("p.gz", b"\x1f\x8b\x08", "ending '.gz'; use .txt"),
    ],
)
def test_files_that_would_lose_rows_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PromptError, match=message):
        read_file(path)


def test_messages_of_parquet_and_parts_of_text(tmp_path):
    parts = [{"type": "text", "text": "How are "}, {"type": "text", "text": "you?"}]
    rows = [[{"role": "user", "content": f"Hello {i}"}] for i in range(3)]
    pd.DataFrame({"messages": rows}).to_parquet(tmp_path / "p.parquet")
    found = PromptSet.load(tmp_path / "p.parquet", sizes=(1, 1, 1))
    assert all(isinstance(text, Conversation) for text in found.test)
    assert Conversation([{"role": "user", "content": parts}]) == "user: How are you?"
    with pytest.raises(PromptError, match="content of text"):
        Conversation([{"role": "user", "content": [{"type": "image", "url": "x"}]}])


def test_no_text_is_no_context():
    rows = [
        {"Behavior": f"request {i}", "ContextString": text} for i, text in enumerate(["nan", "NaN", "None", "Rome"])
    ]
    found = PromptSet.from_rows([*rows, {"Behavior": "nan"}], "x", (1, 2, 1))
    assert {*found.train, *found.val, *found.test} == {
        "request 0",
        "request 1",
        "request 2",
        "Rome\n\n---\n\nrequest 3",
    }
    assert "1 row without a request left out of the given rows" in found.notes


def test_both_kinds_are_never_the_same_prompts():
    one = PromptSet.from_rows(TEXTS, "harmful", (20, 5, 10))
    with pytest.raises(PromptError, match="every harmless train prompt is a harmful prompt, too"):
        PromptPair(one, one)
    with pytest.raises(PromptError, match="is a harmful prompt, too"):
        load_prompts(TEXTS, [text.upper() for text in TEXTS])
    others = {split: [f"{split} {i}" for i in range(6)] for split in ("train", "val", "test")}
    others["val"].append("request  NUMBER 3")
    pair = load_prompts(TEXTS, others, sizes=(6, 7, 6))
    assert pair.harmless.val.texts and "request  NUMBER 3" not in {*pair.harmless.val, *pair.harmless.spare_val}
    assert "1 harmless prompt dropped: also harmful" in pair.harmless.notes and pair.harmful.notes == ()
    assert pair == PromptPair(pair.harmful, pair.harmless)


def test_fewer_prompts_than_wanted_are_said_of_files_with_splits():
    data = load_prompts("organism", sizes=(5000,) * 3)
    assert "splits of [128, 64, 440] instead of [5000, 5000, 5000]" in data.harmful.notes[-1]
    assert load_prompts("organism").harmful.notes == ()


@pytest.mark.parametrize("sizes", [(5, 5), (-1, 5, 5), (5, 5, 5, 5)])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(PromptError, match="sizes are three whole numbers"):
        load_prompts("organism", sizes=sizes)


def test_saved_sets_load_again(tmp_path):
    harmful = load_prompts("organism", sizes=(8, 4, 4)).harmful
    path = harmful.save(tmp_path / "harmful")
    assert PromptSet.load(path) == harmful and PromptSet.load(path, sizes=(2, 4, 4)).train == harmful.train[:2]
    suffixes = SuffixSet.from_rows([" please!"])
    assert SuffixSet.load(suffixes.save(tmp_path / "suffixes")) == suffixes


WRONG_TYPES = """
import refusal_lens as rl
from refusal_lens.data.prompts import load_prompts

calls = [
    (lambda: load_prompts(sizes=5), "sizes are three whole numbers"),
    (lambda: load_prompts(sizes=(1.5, 1, 1)), "sizes are three whole numbers"),
    (lambda: rl.is_refusal(None), "a reply is text, not NoneType"),
    (lambda: rl.StudyConfig(modell="organism"), "there is no setting 'modell'; did you mean model?"),
    (lambda: rl.load_model(reply_prefix=3), "reply_prefix is text, not int"),
    (lambda: rl.load_model(system=["x"]), "system is text, not list"),
    (lambda: rl.load_model(chat_template=3), "no chat template at '3'"),
    (lambda: rl.load_model(thought=("a", 3)), "two texts"),
    (lambda: rl.load_model(template_options=3), "NAME=VALUE texts, not int"),
]
for call, words in calls:
    try:
        call()
    except rl.errors.RefusalLensError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)
"""


def test_values_of_another_type_are_said():
    """In a process of its own: the type checker of the tests would say so first."""
    done = subprocess.run([sys.executable, "-c", WRONG_TYPES], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
