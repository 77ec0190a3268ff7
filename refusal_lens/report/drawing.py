"""Figures that save themselves: Plotly's, and static drawings of CircuitsVis's views."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ..errors import ResultError

FORMATS = ("png", "svg", "pdf", "html")
TITLE = 34  # pixels above a figure for its title
WIDTH = 1000  # pixels: a figure with panels side by side is readable


def checked(path: str | Path) -> Path:
    """A path that ends in one of ``FORMATS``; a ``ResultError`` for another ending."""
    path = Path(path)
    if path.suffix[1:].lower() not in FORMATS:
        raise ResultError(f"{path.name!r} must end in {', '.join(f'.{form}' for form in FORMATS)}")
    return path


class Drawing(go.Figure):
    """A Plotly figure that saves itself.

    Example:
        >>> type(found.plot()).__name__
        'Drawing'
        >>> found.plot().save("scores.html").name
        'scores.html'
    """

    def save(self, path: str | Path, width: int = WIDTH, height: int | None = None, scale: float = 2) -> Path:
        """Write the figure to a file: .png, .svg and .pdf as shown on paper, .html interactive (with Plotly's script,
        so that it needs no network).

        Args:
            path: its ending says the format.
            width, height: in pixels; the figure's own height if None.
            scale: pixels of a .png per pixel of the figure.

        Raises:
            ResultError: another ending; a picture without kaleido or Chromium.
        """
        path = checked(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".html":
            self.write_html(path)
            return path
        write_pictures([(self, path)], width, height, scale)
        return path


def write_pictures(
    shown: Iterable[tuple[Any, Path]], width: int = WIDTH, height: int | None = None, scale: float = 2
) -> None:
    """Write figures and views as pictures, with one browser for all; a ``ResultError`` where kaleido or Chromium is
    missing."""
    try:
        import kaleido
        from kaleido.errors import ChromeNotFoundError
    except ImportError as error:
        raise ResultError("pictures need kaleido (pip install 'refusal-lens[pictures]'); .html does not") from error
    jobs = []
    for figure, path in shown:
        drawn = figure if isinstance(figure, go.Figure) else figure.drawing()
        size = {"width": width, "height": height or drawn.layout.height or 400, "scale": scale}
        jobs.append({"fig": drawn, "path": path, "opts": {"format": path.suffix[1:].lower(), **size}})
    try:
        # Without MathJax: no label has formulas, and kaleido would ask a remote host for it.
        kaleido.write_fig_from_object_sync(jobs, kopts={"mathjax": False})
    except ChromeNotFoundError as error:
        what = "pictures need Chrome or Chromium: install one, or name it in BROWSER_PATH (.html needs nothing)"
        raise ResultError(what) from error
