"""What ``benchmarks/gpu.sh`` carries to a machine without a network is all that its run imports."""

import re
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from benchmarks import carried

MACHINE = ("torch", "transformers", "accelerate", "einops", "jaxtyping")
ALONE = """
import sys
from importlib.machinery import PathFinder

class Bare:
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        have = top in sys.stdlib_module_names or top in ALLOWED or top.startswith("_")
        return PathFinder.find_spec(name, path, target) if have else None

from benchmarks import carried
sys.meta_path = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
carried.use(None)
import benchmarks.gpu, benchmarks.groups, benchmarks.agreement, benchmarks.launches
from refusal_lens import load_model
load_model("organism")
print(carried.used())
"""


def needed(names):
    """Names of distributions and of all that they require, extras left out."""
    todo, found = list(names), set()
    while todo:
        name = re.sub("[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            some = map(Requirement, metadata.requires(name) or ())
        except metadata.PackageNotFoundError:
            continue
        todo += [r.name for r in some if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.slow
def test_the_gpu_run_imports_nothing_but_what_the_machine_has_the_wheels_and_the_stand_ins():
    have = needed(MACHINE) | {wheel.partition("==")[0] for wheel in carried.WHEELS}
    tops = {
        module
        for module, owners in metadata.packages_distributions().items()
        if any(re.sub("[-_.]+", "-", owner).lower() in have for owner in owners)
    }
    assert not tops & set(carried.STAND_INS)
    code = f"ALLOWED = {sorted(tops | {'refusal_lens', 'benchmarks'})!r}\n{ALONE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Each stand-in is in somebody's place: one that nothing imports would only hide a missing package.
    assert done.stdout.splitlines()[-1] == str(sorted(carried.STAND_INS))


def test_a_stand_in_is_fit_for_an_annotation_and_says_so_when_it_is_used(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, carried.StandIns(("not_there",))])
    import not_there
    from not_there.deep import Table

    assert isinstance(None, Table | None) and not isinstance(1, Table)
    with pytest.raises(ModuleNotFoundError, match=r"not_there.deep.Table was used, and a stand-in is in its place"):
        Table([1])
    with pytest.raises(ModuleNotFoundError, match="stand-in"):
        not_there.io.read("x")
