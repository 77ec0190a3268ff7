"""The wheel: what it holds, the same bytes from two builds, and that it works offline in an empty environment."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from .outcomes import ROOT, record

ORGANISM = {
    "MODEL_CARD.md", "model/config.json", "model/model.safetensors", "model/tokenizer.json",
    "model/tokenizer_config.json", "model/chat_template.jinja", "data/harmful.json", "data/harmless.json",
    "data/suffixes.jsonl",
}  # fmt: skip


def _build(out: Path, copy: Path) -> Path:
    """A wheel from a fresh copy of what belongs to the package, without the network."""
    shutil.copytree(ROOT / "refusal_lens", copy / "refusal_lens", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(copy),
    ]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode and "setuptools" in done.stderr:
        pytest.skip("setuptools is too old here")
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return _build(tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("copy"))


def test_it_holds_the_organism_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"refusal_lens/data/organism/{name}" for name in ORGANISM} <= names
    assert {"refusal_lens/py.typed", "refusal_lens/report/templates/report.html.j2"} <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"refusal_lens"}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "refusal_lens").rglob("*.py")}
    assert modules <= names
    odd = [
        n for n in names if any(part in n.lower() for part in ("test", "__pycache__", ".pyc", "training", "notebook"))
    ]
    assert odd == [] and any("LICENSE" in name for name in names)
    assert wheel.stat().st_size < 10_000_000


@pytest.mark.slow
def test_two_builds_give_the_same_bytes(wheel, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "copy").mkdir()
    other = _build(tmp_path / "out", tmp_path / "copy")
    one, two = (hashlib.sha256(p.read_bytes()).hexdigest() for p in (wheel, other))
    assert one == two
    record("supply chain", "wheel built twice, in two folders", 2, "the same SHA-256; holds the organism, no tests")


def test_it_works_offline_in_an_empty_environment(wheel, tmp_path):
    """An environment with the dependencies and nothing else: an empty home, no cache, no network for the hub."""
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    code = (
        f"import sys; sys.path[:0] = [{str(target)!r}]; sys.path.append({sysconfig.get_paths()['purelib']!r})\n"
        "import socket\n"
        "def no(*a, **k): raise RuntimeError('the network was asked for')\n"
        "socket.socket.connect = no; socket.create_connection = no; socket.getaddrinfo = no\n"
        "import refusal_lens as rl\n"
        f"assert rl.__file__.startswith({str(target)!r}), rl.__file__\n"
        "model = rl.load_model('organism')\n"
        "print(model.generate(['Hello'], 3), len(rl.PromptSet.load(rl.organism.instructions()['harmful']).test))\n"
    )
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HOME": str(tmp_path / "home"),
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("[")
    record(
        "supply chain", "wheel in an empty home, HF_HUB_OFFLINE=1, sockets cut off", 1, "loads the organism and answers"
    )
