"""One picture per figure, with the line of code that draws it, on the embedded model.

`make docs` adds the page to the site (this file is a hook of MkDocs). Runs and pictures stay in build/gallery until the
package or this file changes. The tests draw the same figures: a new figure needs its line here.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "build" / "gallery"
PREPARED = """\
import refusal_lens as rl

model = rl.load_model("organism")
data = rl.load_prompts("organism", sizes=(64, 24, 24))
found = rl.find_direction(model, data, full_grid=True)
r, words = found.direction, found.refusal_tokens
test, calm = data.harmful.test, data.harmless.test
prompts = {"harmful": test, "harmless": calm}

tops = rl.attribution.top_heads(model, data.harmful.val, test, r, contrast=calm)
sources = rl.attribution.source_contributions(model, test, r)
patterns = rl.attribution.attention_patterns(model, test[0], tops.heads[:4])
edits = rl.hooks.named_conditions(r, ["baseline", "ablation", "random_ablation", "addition", "random_addition"])
said = rl.refusal.complete(model, test, edits, "harmful", 24)
suffixes = rl.SuffixSet.load(rl.organism.suffixes()).of("adversarial")
attack = rl.hijacking.investigate(model, data, suffixes, found)
seen = rl.direction.read(model, test[0], r, suffixes.items[0].text, reply=16)
"""
# Section -> lines of code; what is above the last line is made for it.
SHOWN: dict[str, tuple[str, ...]] = {
    "The direction": (
        "found.plot()",
        "found.candidates.plot(direction=r)",
        "rl.direction.harm_map(model, data, found).plot()",
        "rl.direction.trace_direction(model, prompts, r).plot()",
        "rl.direction.selection_stability(model, data.harmful, data.harmless, words, resamples=10).plot()",
        "rl.direction.compare_ablations(model, r, data, words, statistics=found.candidates.statistics).plot()",
        'curves = rl.direction.dose_response(model, data, found, strengths={"ablation": [0.5, 1]})\ncurves.plot()',
        "seen.plot()",
        'seen.plot("by token", layer=3)',
        'rl.plots.conversation_view(seen, "adversarial", layer=3)',
        "planes = [f(model, data.harmful.train, data.harmless.train, r, 3) for f in (rl.direction.pca_subspace, "
        "rl.direction.repeated_subspace)]\nrl.direction.subspace_effects(model, planes, test, calm, words).plot()",
        "learned = rl.direction.learn_cone(model, data, found, dimension=2, seeds=[0], steps=20, samples=1)\n"
        "learned.plot()",
        'two = {"r": r, "learned": learned.learned(0)}\n'
        "rl.direction.representational_independence(model, two, test).plot()",
        "groups = rl.data.prompt_groups(rl.organism.instructions()['harmful'], skip=test.texts)\n"
        "largest = dict(list(groups.items())[:4])\n"
        "rl.direction.group_angles(model, largest, data.harmless.train, found).plot()",
        "grounds = {name: rl.direction.Ground(some.texts, words) for name, some in prompts.items()}\n"
        'rl.direction.effect_matrix(model, {"refusal": r}, grounds).plot()',
        'rl.direction.system_prompt_table(model, r, test, ["", "Answer briefly."], max_new_tokens=16).plot()',
        "benign = rl.models.own_completions(model, data.harmless.train, 16)\n"
        "train = data.harmful.train, data.harmless.train\n"
        "rl.direction.fine_tuning_stability(model, r, benign[8:], benign[:8], train, (test, calm), steps=(0, 10, 30), "
        "max_new_tokens=16).plot()",
    ),
    "Who writes it": (
        "tops.plot()",
        'tops.plot("top heads")',
        'tops.plot("head", head=tops.heads[0])',
        "rl.attribution.component_contributions(model, test, r).plot()",
        "rl.attribution.heads(model, test, r).plot()",
        "answers = rl.attribution.compliance_tokens(model, data.harmless.train, words)\n"
        "rl.attribution.direct_logit_attribution(model, test, words, answers).plot()",
        'vectors = {"direction": r, **rl.attribution.head_writes(model, test, tops.heads[:4])}\n'
        "rl.attribution.lens(model, vectors).plot()",
        "sources.plot()",
        'sources.plot("by region")',
        'sources.plot("head", prompt=0, head=tops.heads[0])',
        "rl.plots.tokens_view(sources)",
        "rl.attribution.propagation(model, test, r).plot()",
        "patterns.plot()",
        "rl.plots.attention_view(patterns)",
        "rl.attribution.causal_check(model, test, calm, r, tops, words).plot()",
        "pairs = rl.attribution.equal_length_pairs(model, test, calm)\n"
        "rl.attribution.attribution_patching(model, *pairs, words).plot()",
    ),
    "Suffixes": (
        "attack.plot()",
        'attack.plot("trace by layer")',
        'attack.plot("heads")',
        'attack.plot("attention by region")',
        'attack.plot("attention by position")',
        "rl.plots.attention_pair_view(attack.result().patterns[:2])",
        'attack.plot("split of the drop")',
        'attack.plot("parts of the drop")',
        'attack.plot("tokens")',
        'attack.plot("causal tests")',
        'attack.plot("why attention moves")',
        'attack.plot("number of heads")',
        'attack.plot("circuit")',
        'attack.plot("detectors")',
        "best = attack.result()\ntwo = test.texts[:8], best.suffix.text\n"
        "drawn = rl.hijacking.random_controls(model.chat, *two).texts\n"
        "rl.hijacking.patching_grid(model, *two, drawn, r, words).plot()",
        'attack.plot("paths")',
        'attack.plot("number of compositions")',
        "every = rl.SuffixSet.load(rl.organism.suffixes())\n"
        "many = rl.hijacking.many_suffixes(model, test[:8], every, found, attack.top_heads, words)\nmany.plot()",
        'many.plot("recurrence", by="write")',
        'many.plot("clusters")',
        'many.plot("beside dominance")',
        "rl.hijacking.compare_detectors(model, data, found, rl.load_borderline()).plot()",
    ),
    "A look": (
        'half = {"ablation": [rl.Ablate(r, strength=0.5)]}\n'
        "look = rl.explorer.look(model, test[0], found, suffixes.items[0].text, under=half)\n"
        'look.plot("pattern", of="along")',
        'look.plot("map")',
        'look.plot("heads", conditions=["baseline", "adversarial", "random_suffix"])',
        'look.plot("sources", conditions=["adversarial", "random_suffix"])',
        'look.plot("token", token=-3)',
    ),
    "What it does": (
        "said.plot()",
        'said.plot("classes")',
        "words.plot()",
        "rl.behaviour.evaluate_table(model, r, prompts, max_new_tokens=16).plot()",
        "rl.behaviour.refusal_proxy(model, prompts, words, 16).plot()",
        "rl.behaviour.over_refusal(model, data, found, max_new_tokens=16).plot()",
        "own = rl.models.own_completions(model, calm, 16)\n"
        'rl.behaviour.losses(model, own, edits, "own replies").plot()',
    ),
    "How exact it is": ("rl.certify(model, direction=r).plot()",),
}


def figures() -> Iterator[tuple[str, str, Any]]:
    """Section, code and figure, one by one."""
    names: dict[str, Any] = {}
    exec(PREPARED, names)
    for section, shown in SHOWN.items():
        for code in shown:
            *before, last = code.splitlines()
            exec("\n".join(before), names)
            yield section, code, eval(last, names)


def file_of(code: str) -> str:
    """Name of a picture."""
    last = code.splitlines()[-1]
    return re.sub(r"\W+", "-", re.sub(r"\(model.*\)\.plot\(\)|rl\.", "", last)).strip("-") + ".svg"


def built() -> Path:
    """Draw every picture that is not there already; returns the folder."""
    files = [Path(__file__), *sorted((ROOT / "refusal_lens").rglob("*.py"))]
    key = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    stamp = BUILT / "made_from"
    if not (stamp.is_file() and stamp.read_text("utf-8") == key):
        from refusal_lens.report.drawing import write_pictures

        BUILT.mkdir(parents=True, exist_ok=True)
        write_pictures((figure, BUILT / file_of(code)) for _, code, figure in figures())
        stamp.write_text(key, "utf-8")
    return BUILT


def gallery() -> str:
    """The gallery in Markdown."""
    parts = ["# Gallery", "One picture per figure, and the line that draws it, all on the embedded model:"]
    parts += [f"```python\n{PREPARED}```"]
    parts += [
        '`.save("x.svg")` after any of them writes the file; [Reading the figures](figures.md) says how to read each.'
    ]
    for section, shown in SHOWN.items():
        parts.append(f"## {section}")
        for code in shown:
            alt = html.escape(code.splitlines()[-1], quote=True)
            parts += [f"```python\n{code}\n```", f"![{alt}](images/gallery/{file_of(code)})"]
    return "\n\n".join(parts) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """MkDocs's hook: the pictures join the site."""
    from mkdocs.structure.files import File

    for path in sorted(built().glob("*.svg")):
        files.append(File.generated(config, f"images/gallery/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """MkDocs's hook: lines and pictures on their page."""
    return gallery() if page.file.src_uri == "gallery.md" else markdown
