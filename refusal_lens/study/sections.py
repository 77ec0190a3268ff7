"""The chapters of the report, from records alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..data.prompts import PromptSet
from ..refusal.records import RefusalTokens
from ..report.page import Section, Table, plain


def model_section(
    provenance: Mapping[str, Any], harmful: PromptSet, harmless: PromptSet, tokens: RefusalTokens
) -> Section:
    """Model, prompts, refusal tokens."""
    facts = provenance["model"]
    shares = dict(zip(tokens.texts, tokens.shares, strict=False))
    token_list = ", ".join(
        f"{text!r} ({i}{f', {shares[text]:.0%} of refusals' if text in shares else ''})"
        for text, i in zip(tokens.texts, tokens.ids, strict=True)
    )
    rows = [(key, plain(facts[key])) for key in facts if key != "template"]
    rows += [("chat template", facts["template"]), ("refusal tokens", f"{token_list}; {tokens.source}")]
    rows += [
        (f"{p.name} prompts", f"{len(p.train)} train, {len(p.val)} validation, {len(p.test)} test")
        for p in (harmful, harmless)
    ]
    rows += [(f"{p.name} prompts, notes", note) for p in (harmful, harmless) for note in p.notes]
    return Section(
        "model",
        "Model and prompts",
        ("The direction is extracted on the training split, chosen on validation, and reported on the test split.",),
        (Table("model-facts", ("what", "value"), tuple(rows), "The model as loaded, and the prompts as used."),),
    )


def provenance_section(provenance: Mapping[str, Any]) -> Section:
    """Settings, hashes and versions: enough to run it again."""
    rows = tuple(
        (f"{group}: {key}", "not set" if value in (None, [], ()) else plain(value))
        for group in ("settings", "hashes", "versions")
        for key, value in provenance[group].items()
    )
    return Section(
        "provenance", "Provenance", (), (Table("provenance-table", ("what", "value"), rows, "How to run it again."),)
    )
