"""Every view as the call that makes it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..direction.dose import Scope, capped, default_scopes
from ..direction.records import FoundDirection
from ..hooks.base import Intervention
from ..hooks.interventions import Ablate, Add
from ..records.labels import head_label
from .records import Look

KINDS = {
    "none": "",
    "ablation": "rl.Ablate(found)",
    "addition": "rl.Add(found)",
    "subtraction": "rl.Add(found, -1.0)",
    "capping": "rl.direction.capped(found)",
}


@dataclass(frozen=True)
class Change:
    """An intervention as it is picked: kind, strength, scope.

    Attributes:
        kind: one of ``KINDS``.
        strength: of capping, the ceiling: 0 for the harmless mean projection, 1 for the harmful one.
        scope: one of ``scopes(found)``.
    """

    kind: str = "none"
    strength: float = 1.0
    scope: str = "all"

    def under(self, found: FoundDirection) -> dict[str, list[Intervention]]:
        """The intervention by its name; nothing for "none"."""
        made = {"ablation": Ablate(found), "addition": Add(found), "subtraction": Add(found, -1.0)}.get(self.kind)
        scope, strength = scopes(found).get(self.scope, Scope()), float(self.strength)
        place: dict[str, Any] = {"layers": scope.layers, "positions": scope.positions}
        if self.kind == "capping":
            return {self.kind: [capped(found, strength, **place)]}
        return {} if made is None else {self.kind: [dataclasses.replace(made, strength=strength, **place)]}

    def code(self, found: FoundDirection) -> str:
        """The same as Python; "" for "none"."""
        scope, given = scopes(found).get(self.scope, Scope()), ""
        size = "ceiling" if self.kind == "capping" else "strength"
        for name, value, default in (
            ("layers", scope.layers, None),
            ("positions", scope.positions, None),
            (size, float(self.strength), 1.0 if size == "strength" else None),
        ):
            given += "" if value == default else f", {name}={value!r}"
        return KINDS[self.kind] and f"{KINDS[self.kind][:-1]}{given})"


def scopes(found: FoundDirection) -> dict[str, Scope]:
    """Where an intervention may act, by name."""
    return default_scopes(found.direction.layer)


def as_code(
    seen: Look, change: Change, found: FoundDirection, condition: str, of: str = "weight", max_new_tokens: int = 24
) -> dict[str, str]:
    """Code of every view at one condition, in terms of ``rl``, ``model`` and ``found``, by view: "look", "reply",
    "metric", "map", "heads", "pattern", "sources"."""
    suffix, acting = seen.suffix_of(condition), change.code(found)
    if condition in ("baseline", "adversarial", "random_suffix"):
        acting = ""
    elif condition.startswith("random_"):
        acting += ".placebo(0)"
    # An intervention on replies alone leaves the prompt, which these views show, as it is.
    early = "" if scopes(found)[change.scope].starts_late else acting
    begin, head = f"request, suffix = {seen.request!r}, {suffix!r}\n", head_label(*seen.head)
    # The plain prompt has no token in the suffix's place, so its difference is that of the suffix.
    compared = begin if of != "difference" else f"request, suffix = {seen.request!r}, {suffix or seen.suffix!r}\n"
    hooked, late = (f"with model.hooks({one}):\n    " if one else "" for one in (early, acting))
    on_map = acting if seen.replies else early
    under = f", under={{{condition!r}: [{on_map}]}}" if on_map else ""
    shown = ["baseline", condition if on_map else "adversarial"] if suffix or on_map else ["baseline"]
    reply = f", reply={max_new_tokens}" if seen.replies else ""
    whole = f", under={{{change.kind!r}: [{change.code(found)}]}}" if change.code(found) else ""
    read = f"rl.explorer.look(model, {seen.request!r}, found, {seen.suffix!r}{whole}, head={head!r})"
    sources = (
        f"{begin}{hooked}sources = rl.attribution.source_contributions(model, [request], found, suffixes=[suffix])"
    )
    pattern = f"rl.attribution.attention_patterns(model, request, {head!r}, %s, found)"
    by_measure = {"length": "pattern.length", "along": "pattern.along"}.get(of, "pattern.plot()")
    if of == "difference":
        by_measure = f"random = {pattern % repr(seen.control)}\npattern.values - random.values"
    acts = f", under=[{early}]" if early else ""
    return {
        "look": f"seen = {read}\nseen.plot('pattern', of={of!r})",
        "reply": f"{begin}{late}reply = model.generate(request, {max_new_tokens}, [suffix])\nreply",
        "metric": f"{begin}metric = rl.refusal_metric(model, [request], found, [suffix]{acts})\nmetric",
        "map": f"{begin}seen = rl.direction.read(model, request, found, suffix{reply}{under})\n"
        f"seen.plot(conditions={shown})",
        "heads": f"{sources}\nsources.to_frame({[tuple(h) for h in seen.top_heads]})",
        "pattern": f"{compared}{hooked}pattern = {pattern % 'suffix'}\n{by_measure}",
        "sources": f"{sources}\nsources.plot()",
    }
