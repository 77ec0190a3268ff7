"""From every kind of file to disjoint splits; bad files end in one sentence."""

import json
import pickle

import pytest

from refusal_lens.data.conversation import Conversation
from refusal_lens.data.files import read_file
from refusal_lens.data.prompts import PromptSet, as_prompts, load_prompts
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


def test_rows_of_every_file_are_kept_whole(tmp_path):
    (tmp_path / "commas.csv").write_text("prompt\nBake bread, then eat a slice\nPlant a tree, then water it\n")
    rows = read_file(tmp_path / "commas.csv")
    assert [row["prompt"] for row in rows] == ["Bake bread, then eat a slice", "Plant a tree, then water it"]
    (tmp_path / "quoted.csv").write_text('prompt\n"Bake bread, then\neat a slice"\nPlant a tree\n')
    assert [row["prompt"] for row in read_file(tmp_path / "quoted.csv")] == [
        "Bake bread, then\neat a slice",
        "Plant a tree",
    ]
    (tmp_path / "separator.jsonl").write_text('{"prompt": "one line\u2028and another"}\n{"prompt": "two"}\n', "utf-8")
    assert [row["prompt"] for row in read_file(tmp_path / "separator.jsonl")] == ["one line\u2028and another", "two"]
    (tmp_path / "wide.csv").write_text("prompt,kind\na,b,c\n")
    with pytest.raises(PromptError, match="row 2 has 3 columns"):
        read_file(tmp_path / "wide.csv")
