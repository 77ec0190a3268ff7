"""The store: values by content key, whole or not there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refusal_lens.records.store import BATCH, Store, content_key
from refusal_lens.refusal.records import RefusalTokens

RECORD = RefusalTokens((1, 2), ("a", "b"))


@pytest.mark.parametrize("value", [["a", "ü\u2028"], {"x": [1.5]}, torch.tensor([1.5, 2], dtype=torch.float64), RECORD])
def test_a_value_is_given_for_its_keys_only_and_torn_files_are_none(tmp_path, value):
    store = Store(tmp_path)
    assert store.put("place/name", value, "one", "two") is value
    for key in ("one", "two", None):
        found = store.get("place/name", key)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
    assert store.get("place/name", "three") is None and store.get("place/other", "one") is None
    store.put("place/name", value, "three")
    assert store.get("place/name", "one") is None, "it was replaced"
    (file,) = (tmp_path / "place").iterdir()
    file.write_bytes(file.read_bytes()[:7])
    assert store.get("place/name", "three") is None
    assert Store(None).put("name", value, "one") is value and Store(None).get("name", "one") is None


@given(sizes=st.lists(st.integers(0, 80), max_size=6), torn=st.integers(0, 3))
def test_entries_are_those_of_every_whole_file(tmp_path_factory, sizes, torn):
    store = Store(tmp_path_factory.mktemp("store"))
    store.add("replies/set-000001", {"of": "another name"})
    batches = [{f"{i} {j}": [i, "ü", j] for j in range(size)} for i, size in enumerate(sizes)]
    for batch in batches:
        store.add("replies/set", batch)
    whole = {k: v for batch in batches for k, v in batch.items()}
    assert store.entries("replies/set") == whole
    files = sorted(store.folder.glob("replies/set-??????.json"))
    assert len(files) <= 1 + len(whole) // BATCH
    if torn < len(files):
        lost = json.loads(files[torn].read_text())
        files[torn].write_bytes(files[torn].read_bytes()[:-1])
        store.add("replies/set", {"new": "entry"})
        left = {k: v for k, v in whole.items() if k not in lost}
        assert store.entries("replies/set") == left | {"new": "entry"}


def test_what_decides_a_key():
    @dataclass(frozen=True)
    class Other:
        ids: tuple
        texts: tuple

    parts = [
        1, 1.5, "1", None, [1], {"a": 1}, Path("a"), torch.tensor([1.0]), torch.tensor([1]), torch.tensor([[1.0]]),
        torch.tensor([1.0], dtype=torch.bfloat16), RECORD, RefusalTokens((1,), ("a",)), Other((1,), ("a",)),
    ]  # fmt: skip
    keys = [content_key(part) for part in parts]
    assert len(set(keys)) == len(keys) and keys == [content_key(part) for part in parts]
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1}) and content_key(1, 2) != content_key([1, 2])
    with pytest.raises(TypeError, match="has no content key"):
        content_key(len, lambda: 0)
