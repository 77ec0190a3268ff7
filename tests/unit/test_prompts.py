"""From every kind of file to disjoint splits; bad files end in one sentence."""

import json

import pytest

from refusal_lens.data.prompts import PromptSet
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


def test_few_prompts_are_split_in_proportion_and_said():
    found = PromptSet.from_rows(TEXTS, "x", (128, 32, 100))
    assert [len(s) for s in (found.train, found.val, found.test)] == [19, 4, 15]
    assert "only 40 distinct prompts" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "", "empty"),
        ("p.txt", "\n \n\n", "no valid row"),
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
