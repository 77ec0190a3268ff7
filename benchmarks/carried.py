"""What ``gpu.sh`` carries to a machine without a network, and stand-ins for what is too large to carry and not used.

python3 -m benchmarks.carried collect FOLDER [3.12]   download the wheels; a package registry is needed
python3 -m benchmarks.carried unpack FOLDER SITE      there: into a folder that Python looks into last

Whatever the machine has itself is taken: wheels and stand-ins only fill in what it lacks.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

# Of one Python on x86-64 Linux. What torch, transformers, accelerate, einops and jaxtyping need is there already.
WHEELS = (
    "transformer-lens==4.3.0",
    "lazy-loader==0.6",
    "scipy==1.17.1",
    "rich==15.0.0",
    "markdown-it-py==4.3.0",
    "mdurl==0.1.2",
    "pygments==2.21.0",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LIMIT_MB = 60  # wheels and code together
# Tables, figures, fitted detectors and data sets: a run of the benchmark makes none. 80 MB together.
STAND_INS = ("pandas", "plotly", "sklearn", "datasets")
HERE = Path(__file__).resolve().parent


class NotCarried(type):
    """Class of the classes that stand for a missing package's: fit for an annotation, and an error when used."""

    def __call__(cls, *_: Any, **__: Any) -> Any:
        """Say what is missing."""
        raise ModuleNotFoundError(f"{cls.__module__}.{cls.__name__} was used, and a stand-in is in its place here")

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return cls()


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return NotCarried(name, (), {"__module__": self.__name__})


class StandIns(MetaPathFinder, Loader):
    """Finds a stand-in for the packages named; at the end of ``sys.meta_path``, so only where nothing else is found."""

    def __init__(self, names: Sequence[str] = STAND_INS):
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """A stand-in, if its package is among them."""
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in self.names else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module that has every name."""
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


def used() -> list[str]:
    """Stand-ins in place of packages in this process."""
    return sorted(name for name in STAND_INS if isinstance(sys.modules.get(name), _Module))


def use(site: Path | None) -> None:
    """Let Python look into ``site`` after all other folders, and for stand-ins after that."""
    if site is not None and str(site) not in sys.path:
        sys.path.append(str(site))
    if not any(isinstance(finder, StandIns) for finder in sys.meta_path):
        sys.meta_path.append(StandIns())


def code_mb() -> float:
    """Size of the files under version control, or of the whole tree where git is not there."""
    root = HERE.parent
    try:
        found = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=True)
        files = [root / name for name in found.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        files = [path for path in root.rglob("*") if ".git" not in path.parts]
    return sum(path.stat().st_size for path in files if path.is_file()) / 1e6


def collect(folder: Path, python: str = "3.12") -> None:
    """Download exactly ``WHEELS``, without their dependencies, and check the size."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", "--dest", str(folder)]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, *WHEELS], check=True)
    wheels = sum(path.stat().st_size for path in folder.glob("*.whl")) / 1e6
    print(f"{len(WHEELS)} wheels, {wheels:.1f} MB, and {code_mb():.1f} MB of code; stand-ins: {', '.join(STAND_INS)}")
    if wheels + code_mb() > LIMIT_MB:
        raise SystemExit(f"more than {LIMIT_MB} MB: leave out a wheel, with a stand-in for it")


def unpack(folder: Path, site: Path) -> None:
    """A wheel is a zip archive of what is installed: pip may be missing there."""
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != len(WHEELS):
        raise SystemExit(f"{folder} holds {len(wheels)} of {len(WHEELS)} wheels: run `benchmarks/gpu.sh collect` first")
    for wheel in wheels:
        zipfile.ZipFile(wheel).extractall(site)


if __name__ == "__main__":
    if sys.argv[1:2] == ["collect"]:
        collect(Path(sys.argv[2]), *sys.argv[3:])
    elif sys.argv[1:2] == ["unpack"]:
        unpack(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        raise SystemExit(__doc__)
