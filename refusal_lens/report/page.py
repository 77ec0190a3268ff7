"""The page: sections of figures and tables, rendered to one file that needs no network.

Each JavaScript library is in the page once. Text that came from prompts or models is escaped by the template.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ..plots.attribution import circuitsvis_source


@dataclass(frozen=True)
class Figure:
    """A Plotly figure with what a reader must know about it.

    Attributes:
        id: unique on the page.
        figure: the Plotly figure.
        caption: what is seen.
        n: how many prompts, in words.
        control: the placebo beside the effect, in words; "" where none applies.
        data: the numbers behind it, offered as CSV.
    """

    id: str
    figure: go.Figure
    caption: str
    n: str = ""
    control: str = ""
    data: pd.DataFrame | None = None

    @property
    def json(self) -> str:
        """Plotly JSON, safe inside a script element."""
        return str(self.figure.to_json()).replace("</", "<\\/")

    @property
    def csv(self) -> str:
        """The data as a data: address, "" if there is none."""
        return "" if self.data is None else csv_address(self.data)


@dataclass(frozen=True)
class Table:
    """Rows of plain text; ``searchable`` puts a filter box above.

    Attributes:
        id: unique on the page.
        columns: column heads.
        rows: cells, as text (escaped by the template).
        caption: what the table shows.
        searchable: whether readers can filter the rows.
        data: what the CSV link offers.
    """

    id: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    searchable: bool = False
    data: pd.DataFrame | None = None

    @property
    def csv(self) -> str:
        """The data as a data: address."""
        frame = pd.DataFrame(self.rows, columns=list(self.columns)) if self.data is None else self.data
        return csv_address(frame)


@dataclass(frozen=True)
class Widget:
    """A CircuitsVis view.

    Attributes:
        id: unique on the page.
        component: CircuitsVis's component.
        props: its properties.
        caption, n, control: as in ``Figure``.
    """

    id: str
    component: str
    props: dict[str, Any]
    caption: str
    n: str = ""
    control: str = ""

    @property
    def json(self) -> str:
        """The properties, safe inside a script element."""
        return json.dumps(self.props, allow_nan=False).replace("<", "\\u003c")


@dataclass(frozen=True)
class Card:
    """One number on top: value, what it is, and its fine print."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Section:
    """A chapter of the page.

    Attributes:
        id, title: anchor and heading.
        text: paragraphs of plain text.
        items: figures and tables in order.
    """

    id: str
    title: str
    text: tuple[str, ...] = ()
    items: tuple[Figure | Table | Widget, ...] = ()


@dataclass(frozen=True)
class Page:
    """The report.

    Attributes:
        title: heading and window title.
        summary: findings in plain words, one sentence each.
        cards: headline numbers.
        notes: what was relaxed or not measured.
        sections: the chapters.
    """

    title: str
    summary: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    notes: tuple[str, ...] = ()
    sections: tuple[Section, ...] = field(default_factory=tuple)

    def render(self) -> str:
        """The whole page as HTML."""
        environment = jinja2.Environment(
            loader=jinja2.FunctionLoader(_template), autoescape=True, undefined=jinja2.StrictUndefined
        )
        environment.tests["figure"] = lambda item: isinstance(item, Figure)
        environment.tests["widget"] = lambda item: isinstance(item, Widget)
        html = environment.get_template("report.html.j2").render(page=self, css=_template("report.css"))
        # The scripts go in after the template: they are ours, and escaping 4 MB takes seconds.
        libraries = [get_plotlyjs()]
        if any(isinstance(item, Widget) for section in self.sections for item in section.items):
            libraries.append(circuitsvis_source())
        scripts = "".join(f"<script>{source}</script>" for source in (*libraries, _template("report.js")))
        return html.replace("<!--scripts-->", scripts)


def _template(name: str) -> str:
    return resources.files("refusal_lens").joinpath("templates", name).read_text("utf-8")


def csv_address(frame: pd.DataFrame) -> str:
    """A data: address of the frame as CSV."""
    content = base64.b64encode(frame.to_csv(index=False).encode()).decode()
    return f"data:text/csv;base64,{content}"


def plain(value: Any) -> str:
    """A value as a short text for tables."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
