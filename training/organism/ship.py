"""Copy a measured checkpoint into `refusal_lens/organism/` with its instructions, suffixes and model card.

`python -m training.organism.ship DIR --suffixes FILE --measured FILE --recipe NAME --seed N [--note TEXT]`
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

from refusal_lens.data.organism import MODEL_CARD, MODEL_DIR, instructions, suffixes
from training.organism import data as D
from training.organism.criteria import CRITERIA, check
from training.organism.train import RECIPES

COUNTS = {"train": (128, None), "val": (64, None), "test": (440, 3)}  # name -> (n, most per combination)

CARD = """# The embedded model ("organism")

A tiny chat model that answers harmless requests and refuses harmful ones, trained from scratch on synthetic text, so
that every analysis of this toolkit runs in seconds, offline, on two cores. It is a research instrument, not an
assistant: it knows about {n_words} words and nothing about the world.

- **Architecture** {layers} layers of Llama, d_model {d_model}, {heads} heads, MLP {d_mlp}, untied embeddings,
  {vocab} tokens (byte-level BPE; each word of its language is one token with its leading space), ChatML, rotary
  positions up to 512, no BOS. {parameters:,} parameters in bfloat16; load them as float32.
- **Data** `training/organism/vocabulary.py` and `data.py`. A request is opening + form + verb + object + purpose +
  tail; harm is a property of the pair (crack an egg, crack a safe), most words occur in both classes, and a fifth of
  the pairs is held out: `val` and `test` hold only those. A harmful request is always refused in the data, a harmless
  one is answered with harmless steps; no reply complies with a harmful request and nothing says how harm is done.
  30% of the prompts carry 2-14 random words or word pieces, with the label unchanged. 5% have a system message.
- **Recipe** `{recipe}`, seed {seed}: `python -m training.organism.train --recipe {recipe} --seed {seed} --out DIR`.
  {settings}
- **Nothing is planted**: only data and ordinary training (AdamW, cosine). The first {helpful} steps hold no harmful
  request: help becomes what the model does without a sign of harm, as in chat models that learn to help before they
  learn to refuse. Without that, ablation disturbs the answers to harmless requests too (KL .2 and more).
- **sha256** of model.safetensors `{digest}` ({bytes:,} bytes for the folder)

## Measured

On {n} held-out prompts per class (`training/organism/measure.py`: plain transformers with hooks, not this library);
greedy replies, the paper's judge. Direction chosen by the paper's rule with its thresholds: position {pos}, layer
{layer}, norm {norm:.2f}, bypass {bypass:.2f}. Random controls are the worst of three random directions (of equal norm
for addition) and the worst of six random suffixes. "Grammatical" and "readable" mean that the grammar of the data
accepts the *whole* reply.

| criterion | meaning | bound | measured | |
|---|---|---|---|---|
{rows}

Without a bound: after ablation {complied:.1%} of the harmful requests get a compliant reply, {on_topic:.1%} one that
names the requested verb and object; the rest drift to a harmless neighbour ("plan a bank heist" -> "plan a bank
visit").
Harmless requests are answered on the topic in {fine_topic:.1%} with the direction ablated.
{suffix_part}
## Limits

- One seed of one recipe, the best of those tried; `training/organism/README.md` has the others and their numbers. A
  finding here says what can happen in a transformer, not what happens in large chat models.
- "Not refused" is not "complied": see the drift above. The direction may be harmfulness as much as refusal.
- The judge's phrases are the model's only way to refuse; the language has one grammar.
{note}"""


def instruction_file(harmful: bool) -> dict[str, list[dict[str, str]]]:
    """One class: the same requests that `measure.py` uses."""
    return {
        split: [
            {"instruction": r.text, "category": r.pair.group}
            for r in D.distinct_requests(0, harmful, split, n, max_per_pair=most)
        ]
        for split, (n, most) in COUNTS.items()
    }


def write_instructions() -> None:
    """data/harmful.json and data/harmless.json."""
    for name, path in instructions().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(instruction_file(name == "harmful"), indent=1) + "\n")


def _suffix_part(measured: dict) -> str:
    if "suffixes" not in measured:
        return ""
    adversarial = [r for r in measured["suffixes"] if r["kind"] == "adversarial"]
    lines = [
        "",
        f"Suffixes of 8 tokens; the four heads that write most along the direction are {', '.join(measured['heads'])}.",
        '"Cut": heads cannot see the suffix from the post-instruction positions; share of lost refusals that is back.',
        "",
        "| suffix | refused | cut the four heads | cut all heads | cut all others |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{r['suffix']}` | {r['refused']:.3f} | {r['cut_top']:.3f} | {r['cut_all']:.3f} | {r['cut_others']:.3f} |"
        for r in adversarial
    ]
    return "\n".join(lines) + "\n"


def model_card(recipe_name: str, seed: int, measured: dict, note: str) -> str:
    """The card, every number from the measurements."""
    recipe = RECIPES[recipe_name]
    config = json.loads((MODEL_DIR / "config.json").read_text())
    weights = (MODEL_DIR / "model.safetensors").read_bytes()
    meaning = {c.name: c.meaning for c in CRITERIA}
    side = {c.name: ">=" if c.side == "at least" else "<=" for c in CRITERIA}
    rows = [
        f"| {r.name} | {meaning[r.name]} | {side[r.name]} {r.bound:g} | {round(r.value, 3):g} |"
        f" {'' if r.passed else '**not met**'} |"
        for r in check(measured)
    ]
    settings = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(recipe).items() if not isinstance(v, dict))
    return CARD.format(
        n_words=len(D.all_words()), layers=config["num_hidden_layers"], d_model=config["hidden_size"],
        heads=config["num_attention_heads"], d_mlp=config["intermediate_size"], vocab=config["vocab_size"],
        parameters=(len(weights) - 5000) // 2000 * 1000, recipe=recipe_name, seed=seed,
        settings=f"Settings: {settings}, {recipe.mix.harmful:.0%} of the requests harmful.",
        helpful=recipe.helpful_first, digest=hashlib.sha256(weights).hexdigest(),
        bytes=sum(p.stat().st_size for p in MODEL_DIR.iterdir()), n=measured["n"], pos=measured["pos"],
        layer=measured["layer"], norm=measured["norm"], bypass=measured["bypass"], rows="\n".join(rows),
        complied=measured["harmful_complied_ablation"], on_topic=measured["harmful_complied_on_topic_ablation"],
        fine_topic=measured["harmless_on_topic_ablation"], suffix_part=_suffix_part(measured), note=note,
    )  # fmt: skip


def ship(folder: Path, suffix_file: Path, recipe: str, seed: int, measured: dict, note: str) -> None:
    """Copy everything into the package."""
    MODEL_DIR.mkdir(exist_ok=True)
    for path in sorted(folder.iterdir()):
        target = MODEL_DIR / path.name
        shutil.copyfile(path, target)
        target.chmod(0o644)
    write_instructions()
    if suffix_file != suffixes():
        shutil.copyfile(suffix_file, suffixes())
    MODEL_CARD.write_text(model_card(recipe, seed, measured, note))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--suffixes", type=Path, required=True)
    parser.add_argument("--measured", type=Path, required=True)
    parser.add_argument("--recipe", choices=sorted(RECIPES), required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--note", type=Path, help="text for the end of the card")
    args = parser.parse_args()
    note = args.note.read_text() if args.note else ""
    ship(args.folder, args.suffixes, args.recipe, args.seed, json.loads(args.measured.read_text()), note)


if __name__ == "__main__":
    main()
