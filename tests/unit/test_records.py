"""load(save(x)) = x, whole files only, and broken files named."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_lens.data.prompts import Prompts, PromptSet
from refusal_lens.direction.records import CandidateDirections, Selection, SelectionScores
from refusal_lens.errors import DirectionError, ResultError
from refusal_lens.hijacking.screening import Screened
from refusal_lens.records.base import load_record
from refusal_lens.records.direction import Direction
from refusal_lens.records.files import plain_json
from refusal_lens.refusal.records import Completion, Completions
from refusal_lens.tensors import random_unit


def _equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a, nan=-7), torch.nan_to_num(b, nan=-7))
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return a == b


def _selection() -> Selection:
    grid = torch.full((2, 3), float("nan"), dtype=torch.float64)
    direction = Direction(random_unit(8, 0), 2.5, -1, 1, "raw", "abc", 2.0, "coefficient 2 instead of 1")
    scores = SelectionScores(grid, grid + 1, torch.zeros(2, 3, dtype=torch.float64))
    return Selection(direction, scores, (("", "a", "b"), ("c", "d", "e")), ((-1, 1),), 1.5, -2.0, {"max_kl": 0.1})


def test_nested_records_come_back_bit_for_bit(tmp_path):
    selection = _selection()
    path = selection.save(tmp_path / "s")
    assert path.suffix == ".safetensors" and _equal(Selection.load(tmp_path / "s"), selection)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(), st.text(), st.booleans()), max_size=5))
def test_any_text_survives(tmp_path_factory, items):
    folder = tmp_path_factory.mktemp("records")
    completions = Completions(tuple(Completion(p, r, "baseline", x) for p, r, x in items), "harmful", 8)
    try:
        completions.save(folder / "c")
    except UnicodeEncodeError:
        return  # lone surrogates are no text
    assert Completions.load(folder / "c") == completions
    assert [f.name for f in folder.iterdir()] == ["c.json"]  # no temporary file is left


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    PromptSet("x", Prompts(("a",)), Prompts(("b",)), Prompts(("c",))).save(tmp_path / "p")
    old = (tmp_path / "p.json").read_bytes()
    monkeypatch.setattr("os.fsync", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        PromptSet("y", Prompts(("a",)), Prompts(("b",)), Prompts(("c",))).save(tmp_path / "p")
    assert (tmp_path / "p.json").read_bytes() == old and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"null", b'{"schema": 1, "record": {"$record": "os.system"}}'])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "d.json").write_bytes(content)
    with pytest.raises(ResultError, match=r"d\.json"):
        Direction.load(tmp_path / "d")


def test_kinds_and_schemas_are_checked(tmp_path):
    direction = Direction(random_unit(4, 0), 1.0, -1, 0)
    direction.save(tmp_path / "d")
    with pytest.raises(ResultError, match="holds a Direction, not a Selection"):
        Selection.load(tmp_path / "d")
    with pytest.raises(ResultError, match="no record at"):
        load_record(tmp_path / "e", Direction)
    (tmp_path / "n.json").write_text(json.dumps({"schema": 99, "record": {}}))
    with pytest.raises(ResultError, match="newer"):
        Direction.load(tmp_path / "n")


@pytest.mark.parametrize("note", ["x" * n for n in range(0, 64, 8)])
def test_loaded_tensors_are_aligned_like_those_of_a_run(tmp_path, note):
    """Else a resumed run rounds its sums otherwise than an undisturbed one."""
    Direction(random_unit(96, 0), 1.0, -1, 1, relaxed=note).save(tmp_path / "direction")
    assert load_record(tmp_path / "direction", Direction).unit.data_ptr() % 64 == 0


def test_any_record_loads_in_a_fresh_process(tmp_path):
    made = Screened(torch.zeros(2, 3).double(), torch.zeros(2, 3).double())
    made.save(tmp_path / "screened")
    code = "import sys; from refusal_lens.records import Record, load_record; print(load_record(sys.argv[1], Record))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "screened"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Screened(")


def test_directions_of_different_spaces_do_not_compare():
    a = Direction(random_unit(4, 0), 1.0, -1, 0, "raw", "m1")
    assert a.cosine(a) == pytest.approx(1)
    with pytest.raises(DirectionError, match="different spaces"):
        a.cosine(dataclasses.replace(a, model="m2"))


def test_the_placebo_has_the_same_norm_and_place():
    a = Direction(random_unit(64, 0), 3.0, -2, 5)
    b = a.random_control(1)
    assert (b.norm, b.layer, b.pos) == (a.norm, a.layer, a.pos) and abs(float(a.unit @ b.unit)) < 0.6


def test_a_candidate_without_difference_is_refused():
    zero = torch.zeros(1, 2, 4, dtype=torch.float64)
    with pytest.raises(DirectionError, match="norm 0"):
        CandidateDirections(zero, zero, zero, ("x",), 1, 1, "raw", "m").direction(-1, 0)


def test_json_view_has_no_nan():
    assert plain_json({"a": float("nan"), "b": (1.0, {"c": float("inf")})}) == {"a": None, "b": [1.0, {"c": None}]}
