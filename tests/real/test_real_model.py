"""The main job on a real chat model that refuses, from load to report.

``REFUSAL_LENS_REAL_MODEL`` names the model (a .gguf file, a folder or a hub id); prompts come from
``REFUSAL_LENS_INSTRUCTIONS`` (stems harmful and harmless) or from ``../shared/data/instructions`` beside the checkout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from refusal_lens.models.load import native_dtype

BESIDE = Path(__file__).parents[3] / "shared" / "data" / "instructions"
INSTRUCTIONS = Path(os.environ.get("REFUSAL_LENS_INSTRUCTIONS", BESIDE))
# Where bfloat16 is native a pass takes a tenth of the time that it takes in float32 elsewhere; there the causal checks
# of attribution alone would take ten minutes.
FAST = native_dtype("cuda" if torch.cuda.is_available() else "cpu") != torch.float32
SIZES = (
    "--n-train 128 --n-val 64 --n-test 64 --max-new-tokens 24"
    if FAST
    else "--n-train 24 --n-val 12 --n-test 16 --max-new-tokens 12 --no-attribution"
)
pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not INSTRUCTIONS.is_dir(), reason="no instructions: set REFUSAL_LENS_INSTRUCTIONS"),
]


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("real") / "run"
    args = ["run", os.environ["REFUSAL_LENS_REAL_MODEL"], "--out", out, "--relax", "--quiet"]
    args += ["--harmful", INSTRUCTIONS / "harmful", "--harmless", INSTRUCTIONS / "harmless"]
    args += SIZES.split()
    command = [sys.executable, "-c", "from refusal_lens.cli import main; main()", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_the_report_says_what_the_direction_needed(result):
    summary = json.loads((result / "summary.json").read_text())
    page = (result / "report.html").read_text("utf-8")
    relaxed = summary["direction"]["relaxed"]
    if relaxed:
        assert relaxed.split(" instead")[0] in page
    assert summary["direction"]["layer"] >= 1 and summary["scores"]["kl"] > 0


def test_ablation_lowers_the_refusal_metric_and_a_random_direction_does_not(result):
    metrics = json.loads((result / "summary.json").read_text())["refusal_metric"]
    # Those refused at baseline, and all held-out ones: where a prompt is answered anyway, there is less to take away.
    for kind, least in (("harmful", 1.5), ("harmful_all", 1.0)):
        metric = {name: interval["mean"] for name, interval in metrics[kind].items()}
        assert metric["baseline"] - metric["ablation"] >= least, kind
        assert abs(metric["baseline"] - metric["random_ablation"]) < 0.3, kind


def test_every_identity_holds_in_the_models_own_dtype_and_in_float64(result):
    identities = json.loads((result / "certificate.json").read_text())["record"]["identities"]
    assert len(identities) >= 10
    assert [(i["name"], i["relative"], i["tolerance"]) for i in identities if not i["passed"]] == []
    assert [(i["name"], i["relative64"]) for i in identities if i["relative64"] > i["tolerance64"]] == []
