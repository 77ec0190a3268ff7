"""Stand-ins for packages that ``benchmarks/gpu.sh`` does not carry."""

import sys

import pytest

from benchmarks import carried


def test_a_stand_in_is_fit_for_an_annotation_and_says_so_when_it_is_used(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, carried.StandIns(("not_there",))])
    import not_there
    from not_there.deep import Table

    assert isinstance(None, Table | None) and not isinstance(1, Table)
    with pytest.raises(ModuleNotFoundError, match=r"not_there.deep.Table was used, and a stand-in is in its place"):
        Table([1])
    with pytest.raises(ModuleNotFoundError, match="stand-in"):
        not_there.io.read("x")
