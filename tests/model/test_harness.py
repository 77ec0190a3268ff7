"""The LM Evaluation Harness on the wrapped model: a small local task, offline, scored also by hand.

Skipped without lm-eval (the extra ``evals``), but for the message that says so.
"""

from __future__ import annotations

import builtins
import importlib.util
import json
import math

import pytest
import torch

from refusal_lens import Ablate
from refusal_lens.behaviour.harness import TASKS, _lm_class, harness_model, run_harness
from refusal_lens.behaviour.records import HarnessScores
from refusal_lens.errors import ModelError
from refusal_lens.hooks.conditions import named_conditions

from .cases import direction_of, model_of

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
QUESTIONS = [
    {"question": "The sky is", "choices": ["blue", "made of cheese"], "answer": 0},
    {"question": "Two and two make", "choices": ["five or so", "four"], "answer": 1},
    {"question": "Rivers run to the", "choices": ["sea", "moon"], "answer": 0},
    {"question": "A dog can", "choices": ["read", "bark"], "answer": 1},
    {"question": "Ice is", "choices": ["cold", "hot"], "answer": 0},
]
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
GENERATE = """
task: local_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{echo}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 6, do_sample: false}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def by_hand(model, question, continuation):
    """Summed log-likelihood of the continuation, one prompt at a time, from the whole logits."""
    context = model.tokenizer(question)["input_ids"]
    whole = model.tokenizer(f"{question} {continuation}")["input_ids"]
    ids = torch.tensor([whole])
    with torch.inference_mode():
        logp = (
            model.backend.logits(ids, torch.ones_like(ids, dtype=torch.bool), last_only=False).double().log_softmax(-1)
        )
    return sum(float(logp[0, p - 1, whole[p]]) for p in range(len(context), len(whole)))


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A task manager that knows the two local tasks."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval.tasks import TaskManager

    model = model_of("llama", torch.float32)
    rows = []
    for i, row in enumerate(QUESTIONS):
        echo = continuation(model, row["question"]) if i < 2 else "something else"
        rows.append({**row, "echo": echo})
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    for name, text in (("choice", CHOICE), ("generate", GENERATE)):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text.format(data=data))
    return TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)


def continuation(model, question, n=6):
    """Greedy text without a cache, token by token."""
    ids, new = torch.tensor([model.tokenizer(question)["input_ids"]]), []
    for _ in range(n):
        token = int(model.backend.logits(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1].argmax())
        if token in model.eos_ids:
            break
        new.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    return model.tokenizer.decode(new, skip_special_tokens=True).split("\n\n")[0]


@needs_lm_eval
def test_a_local_task_scored_by_the_harness_and_by_hand(tasks, tmp_path):
    model = model_of("llama", torch.float32)
    direction = direction_of(model)
    conditions = named_conditions(direction, ["baseline", "ablation", "orthogonalized", "random_ablation"])
    found = run_harness(model, conditions, ["local_choice"], task_manager=tasks)

    def accuracy():
        hits = []
        for row in QUESTIONS:
            values = [by_hand(model, row["question"], choice) for choice in row["choices"]]
            hits.append(values.index(max(values)) == row["answer"])
        return sum(hits) / len(hits)

    values = {i.condition: i.value for i in found.items}
    assert list(values) == list(conditions) and all(i.metric == "acc,none" and i.n == 5 for i in found.items)
    assert values["baseline"] == pytest.approx(accuracy())
    with model.hooks(Ablate(direction)):
        assert values["ablation"] == values["orthogonalized"] == pytest.approx(accuracy())
    frame = HarnessScores.load(found.save(tmp_path / "scores")).to_frame()
    assert frame["change"].iloc[0] == 0 and found.version


@needs_lm_eval
def test_log_likelihoods_act_under_hooks_and_equal_by_hand(tasks):
    from lm_eval.api.instance import Instance

    model = model_of("llama", torch.float32)
    lm = harness_model(model)
    pairs = [(row["question"], f" {choice}") for row in QUESTIONS for choice in row["choices"]]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    plain = [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    assert plain == pytest.approx([by_hand(model, q, c.strip()) for q, c in pairs], rel=1e-4)
    with model.hooks(Ablate(direction_of(model))):
        ablated = [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
        assert ablated == pytest.approx([by_hand(model, q, c.strip()) for q, c in pairs], rel=1e-4)
    assert ablated != pytest.approx(plain, rel=1e-3)
    # A whole document: windows of n_ctx tokens, each token scored once.
    text = "All rivers run to the sea. " * 30
    ids = [lm.prefix_token_id, *model.tokenizer(text)["input_ids"]]
    total = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])[0]
    assert len(ids) > model.n_ctx and math.isfinite(total) and total < 0
    short = "Hello"
    (value,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (short,), 0)])
    prefix = torch.tensor([[lm.prefix_token_id, *model.tokenizer(short)["input_ids"]]])
    with torch.inference_mode():
        logp = model.backend.logits(prefix, torch.ones_like(prefix, dtype=torch.bool), last_only=False).log_softmax(-1)
    assert value == pytest.approx(sum(float(logp[0, p - 1, prefix[0, p]]) for p in range(1, prefix.shape[1])), rel=1e-4)


@needs_lm_eval
def test_a_generating_task(tasks):
    found = run_harness(model_of("llama", torch.float32), {"baseline": []}, ["local_generate"], task_manager=tasks)
    # Two of the five targets are what the model says.
    assert {i.metric: i.value for i in found.items}["exact_match,none"] == pytest.approx(0.4)


@needs_lm_eval
def test_unknown_tasks_are_named(tasks):
    with pytest.raises(ModelError, match="nothing_like_this"):
        run_harness(model_of("llama", torch.float32), {"baseline": []}, ["nothing_like_this"], task_manager=tasks)


@pytest.mark.slow
@needs_lm_eval
def test_the_papers_tasks_exist_by_their_official_names():
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    assert set(TASKS.values()) <= known


def test_without_lm_eval_the_message_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def no_lm_eval(name, *args, **kwargs):
        if name.startswith("lm_eval"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_lm_eval)
    _lm_class.cache_clear()
    with pytest.raises(ModelError, match=r"refusal-lens\[evals\]"):
        harness_model(model_of("llama", torch.float32))
