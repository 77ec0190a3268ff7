"""Shared fixtures: offline, one thread, jaxtyping's shapes enforced, nightly tests off by default."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("REFUSAL_LENS_CACHE", "off")  # tests leave nothing in their user's home
# Threads that share a core with another process wait for each other at every small product (20 times slower). Only the
# real model's products are worth more: `make test-real` says so.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (the hook looks it up by name)

install_import_hook("refusal_lens", "tests.typecheck.check")

import pytest  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="run the tests that are too long for every run")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    real = os.environ.get("REFUSAL_LENS_REAL_MODEL")
    for item in items:
        if "nightly" in item.keywords and not config.getoption("--nightly"):
            item.add_marker(pytest.mark.skip(reason="nightly: run with --nightly"))
        if "real" in item.keywords and not real:
            item.add_marker(pytest.mark.skip(reason="REFUSAL_LENS_REAL_MODEL names no model"))


@pytest.fixture(scope="session")
def organism():
    """The embedded model."""
    from refusal_lens import load_model

    return load_model("organism")


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory):
    """The main job on the embedded model, small, made once for all workers."""
    from filelock import FileLock

    from refusal_lens.study.config import StudyConfig
    from refusal_lens.study.pipeline import run_study

    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # the workers' common folder
    config = StudyConfig(sizes=(64, 24, 24), max_new_tokens=24, relax=True)
    with FileLock(place / "study.lock"):
        return run_study(config, place / "study")  # the second worker finds every stage done
