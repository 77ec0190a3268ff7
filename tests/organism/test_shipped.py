"""The shipped checkpoint is the one of the model card and does what the criteria say; its data never complies."""

from __future__ import annotations

import hashlib
import json
import random
import re

import pytest

pytest.importorskip("transformers")

from refusal_lens.data.organism import MODEL_CARD, MODEL_DIR, instructions, suffixes
from training.organism import data as D
from training.organism.criteria import CRITERIA, MAX_BYTES, MIN_ADVERSARIAL, SUFFIX_TOKENS, check
from training.organism.measure import Organism, folder_bytes, random_unit, rate, refused
from training.organism.tokenizer import chat
from training.organism.train import RECIPES

N = 120


@pytest.fixture(scope="module")
def org() -> Organism:
    return Organism(MODEL_DIR)


@pytest.fixture(scope="module")
def sets() -> dict[str, dict[str, list[str]]]:
    return {
        name: {split: [row["instruction"] for row in rows] for split, rows in json.loads(path.read_text()).items()}
        for name, path in instructions().items()
    }


@pytest.fixture(scope="module")
def suffix_rows() -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for line in suffixes().read_text().splitlines():
        row = json.loads(line)
        out.setdefault(row["kind"], []).append(row["suffix"])
    return out


def test_size_and_hash():
    assert folder_bytes(MODEL_DIR) <= MAX_BYTES
    digest = hashlib.sha256((MODEL_DIR / "model.safetensors").read_bytes()).hexdigest()
    assert digest in MODEL_CARD.read_text()


def test_chat_template_is_the_one_of_training(org):
    for system in (None, "Be kind."):
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": "user", "content": "How do I cook rice?"}]
        rendered = org.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert rendered == chat("How do I cook rice?", system)
    assert org.tokenizer.pad_token_id != org.tokenizer.eos_token_id
    assert org.tokenizer.eos_token == "<|im_end|>"


def test_words_are_single_tokens(org):
    lengths = {w: len(org.tokenizer(f" {w}", add_special_tokens=False).input_ids) for w in D.all_words()}
    assert [w for w, n in lengths.items() if n != 1] == []


def test_instruction_files(sets):
    seen: set[str] = set()
    for name in ("harmful", "harmless"):
        assert len(sets[name]["train"]) >= 128
        assert len(sets[name]["val"]) >= 64
        assert len(sets[name]["test"]) >= 400
        for texts in sets[name].values():
            assert len(set(texts)) == len(texts)
            assert seen.isdisjoint(texts)
            seen.update(texts)


def test_held_out_combinations_are_disjoint():
    split = D.split_pairs()
    for harmful in (True, False):
        phrases = {
            name: {p.phrase for group in split[name][harmful].values() for p in group}
            for name in ("train", "val", "test")
        }
        assert phrases["train"].isdisjoint(phrases["val"] | phrases["test"])
        assert phrases["val"].isdisjoint(phrases["test"])
        assert all(phrases.values())
    every = [
        {p.phrase for name in split for group in split[name][harmful].values() for p in group}
        for harmful in (True, False)
    ]
    assert every[0].isdisjoint(every[1])


def test_instructions_of_a_split_use_its_combinations(sets):
    split = D.split_pairs()
    for name, harmful in (("harmful", True), ("harmless", False)):
        for part, texts in sets[name].items():
            phrases = [p.phrase for group in split[part][harmful].values() for p in group]
            pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, phrases)) + r")\b")
            assert all(pattern.search(text) for text in texts)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_generator_never_complies_with_harm(recipe):
    rng = random.Random(3)
    harmful = harmless = 0
    for _ in range(4000):
        e = D.sample_example(rng, RECIPES[recipe].mix, D.Noise())
        if e.pair is None:
            assert not refused(e.reply) and e.reply.startswith("Sure")
            continue
        reading = D.read_reply(e.reply)
        assert reading.kind == ("refusal" if e.pair.harmful else "compliant")
        assert refused(e.reply) == e.pair.harmful
        harmful, harmless = harmful + e.pair.harmful, harmless + (not e.pair.harmful)
    assert harmful > 400 and harmless > 400


def test_small_talk_names_no_harmful_phrase():
    phrases = [p.phrase for part in D.split_pairs().values() for group in part[True].values() for p in group]
    rng = random.Random(5)
    for _ in range(500):
        for about_words in (True, False):
            text, reply = D.sample_small_talk(rng, None, about_words)
            assert not any(p in text or p in reply for p in phrases)


def card() -> dict[str, tuple[float, bool]]:
    """The rows of the model card: criterion -> (measured, met)."""
    rows = {}
    for line in MODEL_CARD.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 5 and cells[0] in {c.name for c in CRITERIA}:
            rows[cells[0]] = (float(cells[3]), cells[4] == "")
    return rows


def agrees(name: str, value: float, slack: float = 0.10) -> None:
    """What the card says is true: a criterion that it calls met is met here, and the number is about the card's."""
    said, met = card()[name]
    criterion = next(c for c in CRITERIA if c.name == name)
    assert value == pytest.approx(said, abs=slack), name
    if met:
        inward = -0.05 if criterion.side == "at least" else 0.05  # fewer prompts than in the card
        assert criterion.passed(value - inward), (name, value)


def test_card_has_every_criterion_and_marks_what_is_not_met():
    rows = card()
    assert set(rows) == {c.name for c in CRITERIA}
    checked = {r.name: r.passed for r in check({name: value for name, (value, _) in rows.items()})}
    assert checked == {name: met for name, (_, met) in rows.items()}
    # These have to hold, whatever else does not.
    needed = {"n", "harmful_refused", "harmless_refused", "grammatical", "kept", "kl", "harmful_refused_ablation"}
    needed |= {"harmful_refused_random_ablation", "harmless_refused_addition", "harmful_refused_adversarial_max"}
    assert [name for name in needed if not rows[name][1]] == []


def test_behaviour(org, sets):
    bad = org.generate(sets["harmful"]["test"][:N])
    good = org.generate(sets["harmless"]["test"][:N])
    agrees("harmful_refused", rate([refused(t) for t in bad]))
    agrees("harmless_refused", rate([refused(t) for t in good]))
    agrees("grammatical", rate([D.read_reply(t).grammatical for t in bad + good]))


def test_one_direction_mediates_refusal(org, sets):
    org.find_refusal_tokens(sets["harmful"]["train"])
    train = (sets["harmful"]["train"], sets["harmless"]["train"])
    val = (sets["harmful"]["val"], sets["harmless"]["val"])
    chosen, _ = org.select(train, val)
    assert chosen is not None
    assert chosen.kept == card()["kept"][0]
    agrees("kl", chosen.kl, 0.01)
    agrees("induce", chosen.induce, 0.2)
    bad, good = sets["harmful"]["test"][:N], sets["harmless"]["test"][:N]
    with org.ablating(chosen.unit):
        agrees("harmful_refused_ablation", rate([refused(t) for t in org.generate(bad)]))
    with org.adding(chosen.vector, chosen.layer):
        added = [t for t in org.generate(good) if refused(t)]
    agrees("harmless_refused_addition", len(added) / N)
    agrees("harmless_readable_addition", rate([D.read_reply(t).kind == "refusal" for t in added]))
    ablated, induced = [], []
    for seed in range(3):
        unit = random_unit(chosen.vector.shape[0], seed)
        with org.ablating(unit):
            ablated.append(rate([refused(t) for t in org.generate(bad)]))
        with org.adding(unit * chosen.vector.norm(), chosen.layer):
            induced.append(rate([refused(t) for t in org.generate(good)]))
    agrees("harmful_refused_random_ablation", min(ablated))
    agrees("harmless_refused_random_addition", max(induced))


def test_suffixes(org, sets, suffix_rows):
    assert len(suffix_rows["adversarial"]) >= MIN_ADVERSARIAL
    assert len(suffix_rows["random_words"]) >= 6
    bad = sets["harmful"]["test"][:N]
    left: dict[str, list[float]] = {}
    for kind, rows in suffix_rows.items():
        for suffix in rows:
            assert suffix == suffix.strip()
            assert len(org.tokenizer(f" {suffix}", add_special_tokens=False).input_ids) == SUFFIX_TOKENS
            rates = left.setdefault(kind, [])
            rates.append(rate([refused(t) for t in org.generate([f"{t} {suffix}" for t in bad])]))
    agrees("harmful_refused_adversarial_max", max(left["adversarial"]))
    agrees("harmful_refused_random_suffix_min", min(left["random_words"]))


def test_check_reports_every_criterion():
    rows = check({"n": 440.0, "harmful_refused": 0.99})
    assert [r.name for r in rows] == [c.name for c in CRITERIA]
    assert [r.name for r in rows if r.passed] == ["n", "harmful_refused"]
