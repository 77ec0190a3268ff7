"""CircuitsVis views as HTML that makes no network request."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from ..errors import ResultError
from ..records.labels import visible
from . import style
from .drawing import Drawing, checked

_FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0;background:#fff;color:#1b1f24">
<div id="view"></div><script>
(async () => {
  const packed = Uint8Array.from(atob("%(script)s"), (c) => c.charCodeAt(0));
  const source = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(source).text();
  document.head.append(script);
  CircuitsVis.render("view", CircuitsVis.%(component)s, %(props)s);
  const fit = () => { try { frameElement.style.height = document.body.scrollHeight + 16 + "px"; } catch (e) {} };
  new ResizeObserver(fit).observe(document.body);
})();
</script>"""


def circuitsvis_script() -> str:
    """CircuitsVis's packaged JavaScript as one classic ``<script>`` element: put it once on a page, before its views.

    Its own HTML repeats these 1.3 MB in every figure and asks a remote host whether it is online; this does neither.
    """
    return f"<script>{circuitsvis_source()}</script>"


@lru_cache(maxsize=1)
def circuitsvis_source() -> str:
    """The JavaScript alone, safe inside a script element."""
    import circuitsvis

    source = (Path(circuitsvis.__file__).parent / "dist" / "cdn" / "iife.js").read_text("utf-8")
    return source.replace("</script", "<\\/script")


@lru_cache(maxsize=1)
def circuitsvis_packed() -> str:
    """The JavaScript, compressed, in base64: a third of its size."""
    return _packed(circuitsvis_source())


@lru_cache(maxsize=1)
def plotly_packed() -> str:
    """Plotly's, likewise."""
    return _packed(get_plotlyjs())


def _packed(source: str) -> str:
    return base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode()


class View(str):
    """HTML of one CircuitsVis view, for a page with ``circuitsvis_script``; notebooks display it without."""

    component: str
    props: dict[str, Any]

    def __new__(cls, component: str, props: dict[str, Any], element_id: str) -> View:
        """Raises ResultError for an element id that HTML would have to escape."""
        if any(not (c.isalnum() or c in "-_") for c in element_id):
            raise ResultError(f"element id {element_id!r} must be letters, digits, - and _")
        call = f'CircuitsVis.render("{element_id}", CircuitsVis.{component}, {script_json(props)})'
        view = super().__new__(cls, f'<div id="{element_id}"></div><script>{call}</script>')
        view.component, view.props = component, props
        return view

    def __repr__(self) -> str:
        return f"<View of {self.component}: {len(self.props['tokens'])} tokens>"

    def _page(self) -> str:
        return _FRAME % {"script": circuitsvis_packed(), "component": self.component, "props": script_json(self.props)}

    def _repr_html_(self) -> str:
        look = "width:100%;height:420px;border:0"
        return f'<iframe title="{self.component}" style="{look}" srcdoc="{html.escape(self._page())}"></iframe>'

    def drawing(self) -> Drawing:
        """The same as a static figure with its tokens on the axes: one panel per head, or a strip of tokens."""
        tokens = self.props["tokens"]
        if self.component == "ColoredTokens":
            figure = Drawing(style.token_strip(tokens, self.props["values"], self.props["maxValue"], unit="along r̂"))
            figure.update_xaxes(visible=False).update_yaxes(visible=False, autorange="reversed")
            return style.finish(figure, "Tokens, coloured by their value along r̂", 140 + 42 * -(-len(tokens) // 12))
        names, wide = self.props["attentionHeadNames"], min(2, len(self.props["attention"]))
        deep, room = -(-len(names) // wide), 16 * len(tokens) + 150
        look = {"vertical_spacing": 150 / (room * deep), "horizontal_spacing": 0.15, "subplot_titles": names}
        figure = Drawing(make_subplots(rows=deep, cols=wide, **look))
        for i, weights in enumerate(self.props["attention"]):
            style.add_attention(figure, weights, tokens, style.panel(i % wide + 1, i // wide + 1))
        return style.finish(figure, "Attention patterns", height=80 + room * deep)

    def save(self, path: str | Path, **size: Any) -> Path:
        """Write the view to a file: .html as it is here, .png, .svg and .pdf as its static ``drawing``.

        Args:
            size: as for ``Drawing.save``.

        Raises:
            ResultError: another ending; a picture without kaleido or Chromium.
        """
        if (path := checked(path)).suffix.lower() != ".html":
            return self.drawing().save(path, **size)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._page(), "utf-8")
        return path


def coloured_tokens(tokens: Sequence[str], values: Sequence[float], limit: float = 0) -> tuple[str, dict[str, Any]]:
    """CircuitsVis's component and its properties for coloured tokens, strongest at ``limit`` (the largest if 0)."""
    limit = limit or max(map(abs, values)) or 1.0
    return "ColoredTokens", {
        "tokens": [visible(token) for token in tokens],
        "values": list(values),
        "minValue": -limit,
        "maxValue": limit,
        "negativeColor": style.SKY,  # light enough for black text
        "positiveColor": style.RED,
    }


def script_json(props: dict[str, Any]) -> str:
    """JSON that is safe inside a script element."""
    # A prompt may hold "</script>" or "<!--", which would end the element: < never appears as such.
    return json.dumps(props, allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
