"""How exact the identities behind the other sections are."""

import math

from ..report.page import Figure, Item, Section, Table, plain
from .figures import plot_certificate
from .records import Certificate, Identity

WEIGHTS = "orthogonalized weights = ablation by hooks"


def certificate_section(certificate: Certificate) -> Section:
    """Errors against their limits, the table, and the gap between orthogonalized weights and hooks."""
    whole, part = "All identities hold within rounding", "Not all identities hold"
    text = [f"{whole} on this model." if certificate.passed else f"{part} on this model; the notes say which and why."]
    text += [_gap(i, certificate) for i in certificate.identities if i.name == WEIGHTS]
    rows = tuple(
        (i.name, i.result, _number(i.relative), f"{i.tolerance:g}", _number(i.relative64), i.note)
        for i in certificate.identities
    )
    columns = ("identity", "result", f"largest relative error, {certificate.dtype}", "limit", "in float64", "note")
    items: list[Item] = []
    if any(not math.isnan(i.relative) for i in certificate.identities):
        items.append(
            Figure(
                "certificate-errors",
                plot_certificate(certificate),
                "Largest relative error of each identity (point) and its limit (line): points left of their line hold. "
                "Errors of exactly 0 are drawn at the left edge.",
                n="a few prompts of different lengths, every token and layer",
                control="float64, where it was measured: rounding shrinks there, a mistake would not",
                data=certificate.to_frame(),
            )
        )
    items.append(
        Table("certificate-table", columns, rows, "Identities measured on this model.", data=certificate.to_frame())
    )
    return Section("certificate", "Exactness certificate", tuple(text), tuple(items))


def _gap(edited: Identity, certificate: Certificate) -> str:
    """The orthogonalization gap of this model in words."""
    what = "Orthogonalized weights versus ablation by hooks"
    if math.isnan(edited.relative):
        return f"{what}: {edited.note or 'not measured'}."
    wide = "" if math.isnan(edited.relative64) else f", {edited.relative64:.2g} in float64"
    return (
        f"{what}: the largest gap between two logits is {edited.absolute:.2g}, {edited.relative:.2g} of the largest "
        f"logit in {certificate.dtype}{wide}."
    )


def _number(value: float) -> str:
    return "not measured" if math.isnan(value) else plain(value)
