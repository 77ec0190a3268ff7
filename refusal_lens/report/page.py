"""The page: sections of figures and tables, rendered to one file that makes no network request.

Each JavaScript library is in the page once. Text that came from prompts or models is escaped by the template.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any, ClassVar
from urllib.parse import quote

import jinja2
import pandas as pd
import plotly.graph_objects as go
import plotly.io

from ..records.base import Record
from .drawing import TITLE
from .frames import figure_frame, widget_frame
from .views import circuitsvis_packed, plotly_packed, script_json

RANDOM_DIRECTION = "a random direction of equal norm"  # the placebo of every direction, in words


@dataclass(frozen=True)
class Figure:
    """A Plotly figure with its caption, n, control and data.

    Attributes:
        n: how many prompts, in words.
        control: the effect's placebo, in words; "" where none applies.
        data: the numbers behind it, offered as CSV; those drawn if None.
        picks: id of the ``Picker`` that a click on a point sets to the point's custom data; "" for none.
        wide: keeps its width on a phone, where it then scrolls sideways.
    """

    kind: ClassVar[str] = "figure"
    id: str
    figure: go.Figure
    caption: str
    n: str = ""
    control: str = ""
    data: pd.DataFrame | None = None
    picks: str = ""
    wide: bool = True

    @classmethod
    def of(
        cls, id: str, record: Record, caption: str, n: str = "", control: str = "", kind: str | None = None, **more: Any
    ) -> Figure:
        """Draw a record, with its table as data; ``more`` are attributes of the figure, else options of its plot."""
        own = {name: more.pop(name) for name in ("data", "picks", "wide") if name in more}
        return cls(id, record.plot(kind, **more), caption, n, control, **{"data": record.to_frame(), **own})

    @cached_property
    def json(self) -> str:
        """Plotly JSON, safe inside a script element; without the template, which the page holds once, the title, which
        is text of the page, and the ground, which is the page's."""
        found = self.figure.to_plotly_json()
        layout = {key: value for key, value in found["layout"].items() if key not in ("template", "title")}
        found["layout"] = layout | {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
        if self.title and "t" in layout.get("margin", {}):
            found["layout"]["margin"] = {**layout["margin"], "t": layout["margin"]["t"] - TITLE}
        return _script_safe(found)

    @property
    def title(self) -> str:
        """The figure's own title, "" if it has none."""
        return str(self.figure.layout.title.text or "")

    @cached_property
    def csv(self) -> str:
        """The data as a data: address."""
        return csv_address(figure_frame(self.figure) if self.data is None else self.data)


@dataclass(frozen=True)
class Table:
    """Rows of plain text; ``searchable`` puts a filter box above, ``data`` is what the CSV link offers instead of the
    rows."""

    kind: ClassVar[str] = "table"
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
    """A CircuitsVis view: its component and properties, and what a ``Figure`` has."""

    kind: ClassVar[str] = "widget"
    id: str
    component: str
    props: dict[str, Any]
    caption: str
    n: str = ""
    control: str = ""
    data: pd.DataFrame | None = None

    @property
    def json(self) -> str:
        """The properties, safe inside a script element."""
        return script_json(self.props)

    @property
    def csv(self) -> str:
        """The data as a data: address."""
        return csv_address(widget_frame(self.component, self.props) if self.data is None else self.data)


@dataclass(frozen=True)
class Note:
    """A paragraph among the figures."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Option:
    """One alternative of a ``Picker``: the items shown when it is picked; a picker may hold pickers."""

    value: str  # what a click on a figure sends (its custom data)
    items: tuple[Figure | Table | Widget | Note | Picker | Row, ...]
    label: str = ""  # what the list shows; the value if ""


@dataclass(frozen=True)
class Picker:
    """Alternatives of which one is shown, chosen from a list, with two buttons, or by clicking on a figure.

    Pickers with the same ``sync`` follow each other (e.g. the prompt stays when the suffix changes).
    """

    kind: ClassVar[str] = "picker"
    id: str
    label: str  # what is picked ("head", "suffix", "prompt")
    options: tuple[Option, ...]  # the first one is seen first
    sync: str = ""


@dataclass(frozen=True)
class Row:
    """Items side by side, where the page is wide enough."""

    kind: ClassVar[str] = "row"
    items: tuple[Figure | Table | Widget | Note, ...]


Item = Figure | Table | Widget | Note | Picker | Row


@dataclass(frozen=True)
class Card:
    """One number on top: value, what it is, and its fine print."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the page: its anchor and heading, paragraphs of plain text, then figures and tables."""

    id: str
    title: str
    text: tuple[str, ...] = ()
    items: tuple[Item, ...] = ()

    def flat(self) -> Iterator[Item]:
        """All items, those inside pickers and rows too."""
        left = list(self.items)
        while left:
            yield (item := left.pop(0))
            if isinstance(item, Picker):
                left = [inner for option in item.options for inner in option.items] + left
            elif isinstance(item, Row):
                left = [*item.items, *left]


@dataclass(frozen=True)
class Page:
    """The report.

    Attributes:
        summary: findings in plain words, the answer first; the cards stand after it.
        sure: how certain they are.
        missing: what was not measured.
        notes: what was relaxed, and other warnings.
        caution: what the reader has to know before the findings.

    Example:
        >>> table = rl.report.Table("rates", ("prompts", "refused"), (("harmful", "90%"),))
        >>> page = rl.report.Page("My model", sections=(rl.report.Section("rates", "Refusals", items=(table,)),))
        >>> "90%" in page.render()
        True
    """

    title: str
    summary: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    sure: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    caution: tuple[str, ...] = ()

    def render(self) -> str:
        """The whole page as HTML."""
        environment = jinja2.Environment(
            loader=jinja2.FunctionLoader(_template), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
        )
        environment.filters["words"] = _words
        template = _script_safe(plotly.io.templates["plotly"].to_plotly_json())
        page = environment.get_template("report.html.j2").render(page=self, css=_template("report.css"), look=template)
        # The scripts go in after the template: they are ours, and escaping 4 MB takes seconds.
        # Libraries wait packed until the first figure needs them, so that the page opens before they are compiled.
        libraries = {"figure": plotly_packed}
        if any(item.kind == "widget" for section in self.sections for item in section.flat()):
            libraries["widget"] = circuitsvis_packed
        scripts = [f'<script type="text/plain" id="library-{kind}">{get()}</script>' for kind, get in libraries.items()]
        return page.replace("<!--scripts-->", "".join([*scripts, f"<script>{_template('report.js')}</script>"]))


def _script_safe(value: dict[str, Any]) -> str:
    return str(plotly.io.json.to_json_plotly(value)).replace("</", "<\\/")


def _words(text: str) -> str:
    """A sentence as HTML: escaped, and what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _template(name: str) -> str:
    return resources.files("refusal_lens.report").joinpath("templates", name).read_text("utf-8")


def csv_address(frame: pd.DataFrame) -> str:
    """A data: address of the frame as CSV."""
    return "data:text/csv;charset=utf-8," + quote(frame.to_csv(index=False), safe=" ,.:;!?()[]/+=-_")


def plain(value: Any) -> str:
    """A value as a short text for tables."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def frame_table(id: str, frame: pd.DataFrame, caption: str, searchable: bool = False) -> Table:
    """A frame as a table, numbers in plain form."""
    rows = tuple(tuple(map(plain, row)) for row in frame.itertuples(index=False))
    return Table(id, tuple(map(str, frame.columns)), rows, caption, searchable, frame)


def anchor(name: str) -> str:
    """A name as part of an id."""
    return "".join(c if c.isalnum() else "-" for c in name.lower())
