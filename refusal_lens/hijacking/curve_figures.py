"""Figures of curves: how many heads, or compositions, a suffix needs."""

from plotly.subplots import make_subplots

from ..records.base import figure as registered
from ..report import style
from ..report.drawing import Drawing
from .curve_records import WAYS, HeadCurves, PathCurves

TINTS = {"greedy": style.GREEN, "attribution": style.ORANGE, "random": style.SKY, "random 1": style.SKY}


@registered("number of heads", HeadCurves)
@registered("number of compositions", PathCurves)
def plot_curves(record: HeadCurves | PathCurves) -> Drawing:
    """The share of the drop that returns with the first heads of an order cut off from the suffix, and the share that
    stays when only these see it, against random orders within layers; or the same of compositions, against random
    senders. Below, the share refused: in replies, where they were read; for compositions by the metric."""
    if isinstance(record, HeadCurves):
        titles = ["heads cut off: drop that returns", "only these see it: drop that stays"]
        titles += ["refused in replies"] * 2 * bool(record.reply_counts)
        refused, orders, counts = record.replies_refused, record.reply_orders, record.reply_counts
    else:
        titles = ["compositions cut: drop that returns", "in the random run: drop that they make", *["refused"] * 2]
        refused, orders, counts = record.refusals, (*record.named, "random"), record.counts
    rows = len(titles) // 2
    figure = Drawing(make_subplots(rows=rows, cols=2, subplot_titles=titles, shared_yaxes=True, vertical_spacing=0.2))
    for col, way in enumerate(WAYS, start=1):
        for order in (*reversed(record.named), "random"):
            found = [record.share(way, order, n) for n in record.counts]
            area = record.area(way, order)
            hover = f"%{{x}} {record.unit}, {order}: %{{y:.2f}} (area {area.mean:.2f})<extra></extra>"
            name = f"{order}, area {area.mean:.2f} [{area.low:.2f}, {area.high:.2f}] ({way})"
            x, look = [str(n) for n in record.counts], _look(order)
            style.add_line(figure, x, found, name, hovertemplate=hover, **look, **style.panel(col))
        for order in orders:
            said = [refused(way, order, n) for n in counts]
            hover = f"%{{x}} {record.unit}, {order}: %{{y:.0%}} refused<extra></extra>"
            look = {**_look(order), "hovertemplate": hover, "showlegend": False}
            style.add_line(figure, [str(n) for n in counts], said, f"{order} ({way})", **look, **style.panel(col, 2))
    figure.update_xaxes(title_text=record.unit, type="category")
    figure.update_yaxes(title_text="share of the drop", row=1, col=1)
    figure.add_hline(y=1, line_dash="dot", line_color=style.GREY, row=1)
    if rows == 2:
        figure.update_yaxes(title_text="share refused", range=[-0.05, 1.05], row=2, col=1)
    return style.finish(figure, f"How many {record.unit} (n = {len(record.suffixed)})", height=230 + 250 * rows)


def _look(order: str) -> dict[str, object]:
    dash = "dash" if order.startswith("random") else "solid"
    return {"line": {"color": TINTS[order], "dash": dash}, "legendgroup": order}
