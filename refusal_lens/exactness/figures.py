"""The certificate as a figure: errors and their limits."""

import math

from ..records.base import figure as registered
from ..report import style
from ..report.drawing import Drawing
from .records import Certificate

_FLOOR = 1e-18  # where an error of exactly 0 is drawn: a logarithm has no 0


@registered("errors", Certificate)
def plot_certificate(record: Certificate) -> Drawing:
    """Largest relative error of each identity, in the model's dtype and in float64, with its limit as a line."""
    figure = Drawing()
    shown = [i for i in record.identities if not math.isnan(i.relative)]
    kinds = [(record.dtype, [(i.relative, i.tolerance) for i in shown], style.BLUE, "circle")]
    if any(not math.isnan(i.relative64) for i in shown):
        kinds.append(("float64", [(i.relative64, i.tolerance64) for i in shown], style.ORANGE, "diamond"))
    for name, pairs, tint, symbol in kinds:
        for what, values, mark in (
            (name, [value for value, _ in pairs], {"symbol": symbol, "size": 10, "color": tint}),
            (
                f"limit, {name}",
                [limit for _, limit in pairs],
                {"symbol": "line-ns", "size": 16, "line": {"width": 2, "color": tint}},
            ),
        ):
            figure.add_scatter(
                x=[None if math.isnan(v) else max(v, _FLOOR) for v in values],
                y=[i.name for i in shown],
                customdata=values,
                mode="markers",
                name=what,
                marker=mark,
                hovertemplate="%{y}<br>" + what + " %{customdata:.2g}<extra></extra>",
            )
    figure.update_xaxes(type="log", title_text="relative error", exponentformat="power", automargin=True)
    figure.update_yaxes(title_text="identity", autorange="reversed", automargin=True)
    return style.finish(figure, "How exact each identity is, and its limit", height=150 + 34 * len(shown))
