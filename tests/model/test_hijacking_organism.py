"""The paper's findings about suffixes on the embedded model: effects, causes, resuming, the command."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from refusal_lens.cli.hijack import hijack
from refusal_lens.data import organism as embedded
from refusal_lens.data.suffixes import SuffixSet
from refusal_lens.errors import LabelError, PromptError
from refusal_lens.hijacking.circuits import circuit, finding
from refusal_lens.hijacking.investigation import Settings, investigate
from refusal_lens.hijacking.mechanisms import mechanism
from refusal_lens.hijacking.observation_records import SuffixResult
from refusal_lens.hijacking.records import Investigation
from refusal_lens.records.base import load_record

N = 24


@pytest.fixture(scope="module")
def found(organism, study, tmp_path_factory):
    """The investigation on held-out instructions (the heads were chosen on others)."""
    folder = tmp_path_factory.mktemp("hijacking")
    inputs = {
        "prompts": study.harmful,
        "suffixes": SuffixSet.load(embedded.suffixes()),
        "direction": study.selection.chosen,
        "harmless": study.harmless.test.texts,
        "refusal_tokens": study.refusal_tokens,
        "settings": Settings(forensics=8, n_random=1, max_new_tokens=12, shuffled=False, shown=1),
        "folder": folder / "out",
    }
    return investigate(organism, **inputs), inputs


def test_the_suffixes_stop_refusals_and_random_tokens_do_not(found):
    report = found[0]
    attacks = [r for r in report.results if r.suffix.is_attack]
    benign = [r for r in report.results if not r.suffix.is_attack]
    assert (len(attacks), len(benign)) == (3, 6) and report.plain.refusal_rate.rate >= 0.95
    for result in attacks:
        assert result.works
        assert result.suffixed.refusal_rate.rate <= 0.10 and result.random.refusal_rate.rate >= 0.90
        assert result.metric_drop.low > 5
        assert set(result.n_tokens) == {8}
    assert all(not r.works and r.suffixed.refusal_rate.rate >= 0.90 for r in benign)
    assert max(report.adjusted_p()[:3]) < 1e-6
    # Strength and universality: the three that work take the heads' write over, the others do not.
    assert min(r.strength.mean for r in attacks) > max(r.strength.mean for r in benign)
    rho, p = report.strength_against_universality()
    assert rho > 0.7 and p < 0.05


def test_the_first_head_turns_to_the_suffix(found):
    """The paper's Fig. 6b. On this model one head carries it: it rises by well over 0.3, the mean over the top four by
    less (their mean is in docs/hijacking.md)."""
    report = found[0]
    for result in (r for r in report.results if r.suffix.is_attack):
        rises = result.head_rises()
        assert rises[0].low >= 0.3, report.head_labels
        assert 0.1 <= result.attention_rise.mean < 0.3
        assert result.strongest_rises()[0][1] >= 0.3
        # And its write along r̂ falls with it.
        drop = result.from_random.drop[report.top_heads[0]]
        assert float(drop.mean()) > 1


def test_cutting_the_edges_brings_refusals_back_and_controls_do_not(found):
    report = found[0]
    for result in (r for r in report.results if r.suffix.is_attack):
        tests = result.causal
        assert tests.refusals_back("cut top heads").rate >= 0.80
        assert tests.recovered("cut all heads").low >= 0.9 and tests.refusals_back("cut all heads").rate >= 0.95
        for name in ("cut top heads", "patch output of top heads", "patch r̂ component of top heads", "restore r̂"):
            assert tests.passed(name), name
            assert tests.recovered_placebo(name).high < 0.35
        assert tests.recovered_random("cut top heads").high < 0.2
        said = mechanism(result)
        assert said.hijacks and "because" in said.sentence and "hijack" in said.sentence
    for result in (r for r in report.results if not r.suffix.is_attack):
        said = mechanism(result)
        assert result.causal is None and not said.hijacks and "hijack" not in said.sentence


def test_the_drop_is_accounted_for(found):
    report = found[0]
    for result in report.results:
        for site in (report.direction.layer, report.plain.projection.shape[0] - 1):
            table = report.drop_parts(result, site).set_index("part")["mean"]
            assert float(table.drop("total").sum()) == pytest.approx(float(table["total"]), abs=1e-3)
        whole = report.plain.heads - result.suffixed.heads
        torch.testing.assert_close(result.from_plain.drop, whole, rtol=0, atol=1e-3)


def test_tokens_detectors_and_departure(found):
    report = found[0]
    result = report.results[0]
    table = result.tokens.to_frame()
    assert len(table) == 8 and table["removed"].max() > 1
    assert result.departure() is not None and result.departure() <= report.direction.layer
    d = report.detectors
    layer = report.direction.layer
    assert d.site == layer and d.roc("last token", layer, "harmful").auroc.low > 0.95
    fooled = d.roc("last token", layer, "harmful + the strongest suffix").auroc
    assert fooled.high < d.roc("last token", layer, "harmful").auroc.low
    assert any("strongest suffix" in text for text in d.failures())
    assert d.flagged("last token", layer, "harmless").rate <= 0.05


def test_the_circuit_leads_from_tokens_to_refusal(found):
    report = found[0]
    result = report.results[0]
    frame = circuit(result)
    writes = frame[frame["kind"] == "head"].set_index("source")
    fall = (result.random.projection[-1] - result.suffixed.projection[-1]).mean()
    assert float(writes["value"].sum()) == pytest.approx(float(fall), abs=1e-3)
    assert writes["value"].idxmax() == "L1H0" and writes.loc["L1H0", "shown"]
    gained = frame[frame["target"] == "L1H0"]["value"].sum()
    assert gained == pytest.approx(float(result.shift.change[1, 1, 0].mean()), abs=1e-4)
    assert frame[frame["target"] == "refusal"]["shown"].all() and 0 < frame["shown"].sum() < len(frame)
    figure = report.plot("circuit")
    assert sum(trace.mode == "lines" for trace in figure.data) == circuit(report.result())["shown"].sum()
    said = finding(result)
    assert "most of it" in said and "the suffix keys" in said and "effect stays" in said
    # A suffix that does nothing: no edge of a head is beyond chance, and nothing is claimed.
    nothing = circuit(dataclasses.replace(result, suffixed=result.random))
    assert not nothing[nothing["kind"] == "head"]["shown"].any()
    benign = next(r for r in report.results if not r.suffix.is_attack)
    assert finding(benign).endswith("not shown.")
    with pytest.raises(LabelError, match="was not measured"):
        circuit(benign)


def test_replies_return_with_the_heads_cut(found):
    curves = found[0].results[0].curves
    none, most, every = curves.reply_counts[0], curves.reply_counts[-2], curves.reply_counts[-1]
    assert curves.replies_refused("cut", "attribution", none).rate <= 0.1
    assert curves.replies_refused("cut", "attribution", every).rate >= 0.9
    assert curves.replies_refused("only", "attribution", every).rate <= 0.1
    table = curves.to_frame()
    rows = table[(table["way"] == "cut") & (table["order"] == "attribution") & (table["heads"] == most)]
    assert rows["refused in replies"].item() == curves.replies_refused("cut", "attribution", most).rate
    assert table[table["order"] == "greedy"]["refused in replies"].isna().all()


def test_compositions_in_the_order_of_their_size(found):
    """The first is the path that this model's suffixes take; alone it makes what it makes as a path."""
    result, first = found[0].results[0], "L0 MLP -> keys and values of L1H0"
    curves = result.path_curves
    assert curves.paths[0] == first and len(curves.suffixed) == 8
    share = curves.share("only", "attribution", 1)
    assert share.mean == pytest.approx(result.paths.share(first, "metric").mean, abs=1e-3)
    for way in ("cut", "only"):
        assert curves.share(way, "attribution", 1).low > max(0.3, curves.share(way, "random", 1).high)
        assert curves.area(way, "attribution").low > curves.area(way, "random").high
    assert curves.refusals("cut", "attribution", 0).rate <= 0.1


def test_it_resumes_and_loads(found, organism):
    report, inputs = found
    folder = inputs["folder"]
    files = sorted((folder / "suffixes").iterdir())
    before = [f.stat().st_mtime_ns for f in files]
    files[4].unlink()
    again = investigate(organism, **inputs)
    after = [f.stat().st_mtime_ns for f in files]
    assert [a == b for a, b in zip(before, after, strict=True)] == [i != 4 for i in range(9)]
    assert again.results_frame().equals(report.results_frame())
    loaded = load_record(folder / "report", Investigation)
    assert loaded.results_frame().equals(report.results_frame())
    assert torch.equal(load_record(files[0], SuffixResult).suffixed.heads, report.results[0].suffixed.heads)
    # Other tests do not cost the observations; without tests nothing is explained.
    few = investigate(
        organism, **{**inputs, "settings": dataclasses.replace(inputs["settings"], detail=1, causal="none")}
    )
    assert len(few.results) == 7 and any("screened only" in note for note in few.notes)
    assert few.screened.shape == few.screened_strength.shape == (9, report.plain.n)
    assert all(r.causal is None for r in few.results) and "not tested" in mechanism(few.results[0]).sentence
    assert [f.stat().st_mtime_ns for f in files] == after


COMMAND = [sys.executable, "-c", "from refusal_lens.cli import main; main()", "hijack", "organism"]


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_stopped(found, study, organism, tmp_path, capsys):
    """SIGKILL once the first suffix is tested, then the same command: what was done stays, the result is the same."""
    study, out, suffixes = study.folder, tmp_path / "out", tmp_path / "mine.jsonl"
    suffixes.write_text("".join(embedded.suffixes().read_text().splitlines(True)[2:5]))
    few = ["--suffixes", suffixes, "--direction", study, "--out", out, "--quiet", "--no-shuffled"]
    few += ["--prompts", "8", "--harmless", "8", "--max-new-tokens", "0"]
    first = subprocess.Popen([*COMMAND, *map(str, few)])
    done = out / "suffixes"
    deadline = time.monotonic() + 300

    def tested():
        """Whether the first file was written again, after all were observed."""
        times = [path.stat().st_mtime_ns for path in sorted(done.glob("0*.safetensors"))]
        return len(times) == 3 and times[0] > times[2]

    while not tested() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.02)
    first.kill()
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in sorted(done.glob("0*.safetensors"))[:1]}
    assert kept and not (out / "report.html").exists()
    same = {"prompts": 8, "harmless": 8, "max_new_tokens": 0, "shuffled": False}
    hijack("organism", suffixes=suffixes, direction=study, out=out, **same)
    assert "attention of the top heads" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == t for path, t in kept.items())
    page = (out / "report.html").read_text("utf-8")
    assert "Suffix attacks" in page and "because it hijacks the top heads" in page
    # As if it had never been killed: once more, in memory.
    report = load_record(out / "report", Investigation)
    inputs = {**found[1], "suffixes": SuffixSet.load(suffixes), "harmless": report.harmless.prompts, "folder": None}
    inputs["settings"] = Settings(max_new_tokens=0, prompts=8, shuffled=False)
    again = investigate(organism, **inputs, head_prompts=report.head_prompts)
    assert report.results_frame().equals(again.results_frame())


def test_bad_input_at_the_command_line_is_one_sentence(study, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "void.jsonl").write_text('{"suffix": " "}\n')
    (tmp_path / "long.txt").write_text("bath " * 3000)
    (tmp_path / "calm.txt").write_text("How do I bake bread?\nHow do I plant a tree?\n")
    (tmp_path / "ok.txt").write_text("bath rice\n")
    for given, message in (
        ({"suffixes": Path("none.txt")}, "there is no suffix file none.txt"),
        ({"suffixes": tmp_path / "empty.txt"}, "holds no suffix"),
        ({"suffixes": tmp_path / "void.jsonl"}, "is empty; remove the row"),
        ({"suffixes": tmp_path / "long.txt"}, "use a shorter suffix"),
        ({"suffixes": tmp_path / "ok.txt", "harmful": str(tmp_path / "calm.txt")}, "no refused prompt is left"),
    ):
        with pytest.raises(PromptError, match=message) as error:
            hijack("organism", direction=study.folder, out=tmp_path / "o", quiet=True, **given)
        assert "\n" not in str(error.value)
