"""Engines: the same items, the same results; what is finished is kept; a Ray cluster that loses a node."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import refusal_lens as rl
from refusal_lens.attribution.causal import causal_check
from refusal_lens.attribution.logits import direct_logit_attribution
from refusal_lens.attribution.ranking import top_heads
from refusal_lens.attribution.sources import propagation, source_contributions
from refusal_lens.data.organism import instructions
from refusal_lens.data.organism import suffixes as embedded_suffixes
from refusal_lens.data.prompts import PromptPair, load_prompts
from refusal_lens.data.suffixes import SuffixSet
from refusal_lens.direction.cones import learn_cone
from refusal_lens.direction.dose import dose_response
from refusal_lens.engines.local import LocalEngine, named_engine
from refusal_lens.errors import EngineError, ModelError
from refusal_lens.hijacking.controls import random_controls
from refusal_lens.hijacking.grids import patching_grid
from refusal_lens.hijacking.investigation import Settings, investigate
from refusal_lens.hijacking.many import many_suffixes
from refusal_lens.hijacking.screening import screen
from refusal_lens.records.store import Store
from refusal_lens.refusal.metric import refusal_metric
from refusal_lens.refusal.replies import complete
from refusal_lens.refusal.tokens import given_refusal_tokens
from refusal_lens.study.config import StudyConfig
from refusal_lens.study.pipeline import run_study
from tests.model.cases import direction_of
from tests.tiny import tiny_folder


@dataclass(frozen=True)
class Square:
    """Work that says what it was asked to do."""

    asked: list

    def prepare(self, model):
        self.asked.append("prepare")
        return 10.0

    def run(self, model, state, item):
        self.asked.append(item)
        if item < 0:
            raise ModelError("a negative item")
        return torch.tensor([item**2 + state])


def test_items_come_in_order_and_the_state_is_made_once(organism):
    engine, work, seen = LocalEngine(organism), Square([]), []
    assert [float(x) for x in engine.map("a", work, [3, 1, 2], seen.append)] == [19, 11, 14]
    assert [float(x) for x in engine.map("b", work, [4])] == [26]
    assert work.asked == ["prepare", 3, 1, 2, 4] and seen == [0, 1, 2]


def test_finished_items_are_not_run_again(organism, tmp_path):
    engine, work = LocalEngine(organism), Square([])
    engine.keep(Store(tmp_path), "key")
    with pytest.raises(ModelError, match="negative"):
        engine.map("a", work, [3, 1, -2, 5])
    again = LocalEngine(organism)
    again.keep(Store(tmp_path), "key")
    work.asked.clear()
    assert [float(x) for x in again.map("a", work, [3, 1, 2, 5])] == [19, 11, 14, 35]
    assert work.asked == ["prepare", 2, 5]
    work.asked.clear()
    again.keep(Store(tmp_path), "another key")
    again.map("a", work, [3])
    assert work.asked == [3], "kept for other inputs"


def test_sharded_work_is_the_unsharded_one(organism):
    prompts = [f"Tell me about the number {i}" + "!" * (i % 5) for i in range(70)]
    tokens = given_refusal_tokens(organism, [5])
    engine = LocalEngine(organism)
    assert torch.allclose(
        refusal_metric(organism, prompts, tokens, engine=engine), refusal_metric(organism, prompts, tokens), atol=1e-5
    )
    found = complete(organism, prompts[:40], {"baseline": []}, "some", 4, engine=engine)
    assert [item.response for item in found.items] == organism.generate(prompts[:40], 4)
    suffixes = [" please", " now", " at once, my friend"]
    found = screen(organism, prompts[:2], suffixes, tokens, engine=engine).metric
    many = [
        many_suffixes(
            organism, prompts[:2], SuffixSet.from_rows(suffixes), direction_of(organism), [(1, 0)], tokens, **how
        )
        for how in ({"engine": engine}, {})
    ]
    assert torch.equal(many[0].parts, many[1].parts) and torch.equal(many[0].metric, many[1].metric)
    for s, suffix in enumerate(suffixes):
        alone = refusal_metric(organism, prompts[:2], tokens, [suffix] * 2)
        assert torch.allclose(found[s], alone, atol=1e-4)


def test_names_that_are_no_engine_are_refused():
    with pytest.raises(EngineError, match="no engine 'spark': choose local or ray"):
        named_engine("spark", StudyConfig())
    with pytest.raises(EngineError, match="belong to --engine ray"):
        named_engine("local", StudyConfig(), workers=2)


@pytest.fixture(scope="module")
def one_thread():
    """Several processes share this machine: threads that wait for each other would stall all of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small():
    sources = {name: str(path) for name, path in instructions().items()}
    return StudyConfig(sizes=(70, 4, 34), max_new_tokens=4, relax=True, attribution=False, **sources)


@pytest.fixture(scope="module")
def local(small, one_thread, tmp_path_factory):
    return run_study(small, tmp_path_factory.mktemp("local"))


def _records(study):
    skip = {
        "study.json",
        "report.html",
        "summary.json",
        "model.json",
        "seconds.json",
    }  # with the time, or made of the others
    return {p.name: p.read_bytes() for p in study.folder.iterdir() if p.is_file() and p.name not in skip}


def _cluster(nodes: int):
    """Nodes of their own processes on this machine, each with room for one worker."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    added = [cluster.add_node(num_cpus=torch.get_num_threads()) for _ in range(nodes)]
    cluster.wait_for_nodes()
    return cluster, added


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ray_gives_the_same_bits_though_a_node_dies(small, local, tmp_path):
    """Two nodes, one killed while it works on the selection."""
    pytest.importorskip("ray")
    cluster, nodes = _cluster(2)
    lost: list[str] = []

    class Progress:
        """Kills a node when the first scores are there."""

        def __call__(self, name, total):
            self.name, self.done = name, 0
            return self

        def __enter__(self):
            return self.advance

        def __exit__(self, *_):
            return False

        def advance(self, n):
            self.done += n
            if self.name == "select the direction" and not lost:
                lost.append(self.name)
                threading.Thread(target=cluster.remove_node, args=(nodes[0],), kwargs={"allow_graceful": False}).start()

    try:
        engine = named_engine("ray", small, cluster.address, workers=2)
        study = run_study(small, tmp_path / "ray", Progress(), engine=engine)
        import ray

        assert lost == ["select the direction"]
        assert _records(study) == _records(local)
        assert json.loads((study.folder / "summary.json").read_text()) == json.loads(
            (local.folder / "summary.json").read_text()
        )
        passes = [json.loads((s.folder / "seconds.json").read_text())["selection"]["passes"] for s in (local, study)]
        assert passes[1] >= passes[0] > 0, "each worker prepares, and its passes count too"
        assert not ray.is_initialized(), "the engine leaves nothing behind"
    finally:
        cluster.shutdown()


def _through(model, engine, folder):
    """Everything whose work goes through an engine, but what the study above has."""
    data = load_prompts("organism", sizes=(24, 6, 70))
    found = rl.find_direction(model, data)
    asked, calm = data.harmful.test[:4].texts, data.harmless.test[:4].texts
    suffixes, tokens = SuffixSet("some", SuffixSet.load(embedded_suffixes()).items[:2]), found.refusal_tokens
    few = Settings(max_new_tokens=4, causal="all", n_random=1, forensics=2, shown=1, shuffled=False)
    how = {"harmless": calm, "head_prompts": data.harmful.val, "refusal_tokens": tokens, "settings": few}
    drawn = random_controls(model.chat, asked, " please").texts
    top = top_heads(model, data.harmful.val, data.harmful.test, found, top=2, engine=engine)
    more = {"strengths": {"ablation": [0.5, 1.0]}, "max_new_tokens": 4, "engine": engine}
    grid = patching_grid(model, asked, " please", drawn, found, tokens, exact=9, n_placebo=1, engine=engine)
    return {
        "hijack": investigate(model, asked, suffixes, found, **how, folder=folder / "hijack", engine=engine),
        "many": many_suffixes(model, asked, suffixes, found, ["L1H0"], tokens, engine=engine),
        "grid": replace(grid, seconds=0.0, forecast=""),
        "dose": dose_response(model, PromptPair(data.harmful, data.harmless), found, **more),
        "cone": learn_cone(model, data, found, seeds=[0, 1], steps=2, every=1, batch_size=2, engine=engine),
        "heads": top,
        "causal": causal_check(model, data.harmful.test, calm, found, top, tokens, n_random=2, engine=engine),
        "logits": direct_logit_attribution(model, data.harmful.test, tokens, engine=engine),
        "sources": source_contributions(model, asked, found, engine=engine),
        "propagation": propagation(model, asked, found, engine=engine),
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_ray_nodes_give_the_bytes_of_one_process(organism, one_thread, tmp_path):
    pytest.importorskip("ray")
    cluster, _ = _cluster(2)
    folders = {name: tmp_path / name for name in ("local", "ray", "again")}
    try:
        for name, folder in folders.items():
            kept = folders["local"] if name == "again" else folder
            where = ("ray", StudyConfig(), cluster.address, 2) if name == "ray" else ("local", StudyConfig())
            with closing(named_engine(*where)(organism)) as engine:
                assert engine.width == 1 + (name == "ray")
                engine.keep(Store(kept / "items"), "key")
                for label, record in _through(organism, engine, kept).items():
                    record.save(folder / label)
    finally:
        cluster.shutdown()
    files = {path.relative_to(folders["local"]) for path in folders["local"].rglob("*.*")}
    assert len(files) > 30
    for file in files:
        if "cells" in file.name:  # with the seconds that they took
            continue
        assert (folders["ray"] / file).read_bytes() == (folders["local"] / file).read_bytes(), file
        if len(file.parts) == 1:
            assert (folders["again"] / file).read_bytes() == (folders["local"] / file).read_bytes(), file


@dataclass(frozen=True)
class Deadly:
    """Work whose worker dies at its first try of item 2, and at every try of item 13."""

    mark: Path

    def prepare(self, model):
        return 0.0

    def run(self, model, state, item):
        if item == 13 or (item == 2 and not self.mark.exists()):
            self.mark.touch()
            os._exit(1)
        return torch.tensor([float(item)])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_item_whose_worker_dies_is_done_again_three_times_at_most(organism, tmp_path):
    pytest.importorskip("ray")
    from refusal_lens.engines.ray import RayEngine

    engine = RayEngine(organism, {"source": "organism"}, workers=1)
    try:
        work = Deadly(tmp_path / "died")
        assert [float(x) for x in engine.map("a", work, [1, 2, 3])] == [1, 2, 3]
        assert work.mark.exists()
        with pytest.raises(EngineError, match="item 1 lost its worker 4 times"):
            engine.map("b", work, [1, 13])
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_passes_on_what_the_user_can_put_right(organism):
    pytest.importorskip("ray")
    from refusal_lens.engines.ray import RayEngine

    engine = RayEngine(organism, {"source": "organism"}, workers=1)
    try:
        start = time.monotonic()
        assert [float(x) for x in engine.map("a", Square([]), [3, 1])] == [19, 11]
        with pytest.raises(ModelError, match="a negative item"):
            engine.map("b", Square([]), [-1])
        assert [float(x) for x in engine.map("c", Square([]), [2])] == [14], "it goes on after an error"
        assert time.monotonic() - start < 500
    finally:
        engine.close()
    absent = RayEngine(organism, {"source": "/no/such/model"}, workers=1)
    try:
        with pytest.raises(ModelError, match="there is no model at /no/such/model"):
            absent.map("a", Square([]), [3])
    finally:
        absent.close()
    other = RayEngine(organism, {"source": str(tiny_folder("llama"))}, workers=1)
    try:
        with pytest.raises(EngineError, match="give a model that is the same on every node"):
            other.map("a", Square([]), [3])
    finally:
        other.close()
    with pytest.raises(EngineError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        RayEngine(organism, {"source": "organism"}, address="127.0.0.1:1")
