"""The explorer's widget: passes questions to ``look`` and shows what it found; nothing is measured here."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from IPython.display import HTML, display
from plotly.offline import get_plotlyjs

from ..direction.records import FoundDirection
from ..errors import RefusalLensError
from ..models.model import HookedChatModel
from ..records.labels import head_label
from . import page
from .code import KINDS, Change, as_code, scopes
from .figures import MEASURES
from .reading import answered, conditions, look, once
from .records import Look
from .why import CHOICES, view

HERE = Path(__file__).parent
VIEWS = ("beside", "measure", "layer", "why")  # other views of the same look; any other change needs a new look
ASKED = {"suffix": "", "kind": "none", "strength": 1.0, "scope": "all", "beside": "", "head": "", "measure": "weight"}
FIGURES = ("map", "pattern", "heads", "sources", "token")
# Plotly comes from the kernel, once per explorer, so that nothing is loaded from anywhere else.
SCRIPT = "const module = {exports: {}};\n%s;\nconst Plotly = module.exports;\n%s"


class Explorer(anywidget.AnyWidget):
    """The explorer; ``seen`` is the look that it shows."""

    _esm = SCRIPT % (get_plotlyjs(), (HERE / "explorer.js").read_text("utf-8"))
    _css = (HERE / "explorer.css").read_text("utf-8")
    choices = traitlets.Dict().tag(sync=True)
    asked = traitlets.Dict().tag(sync=True)
    hovered: Any = traitlets.List([]).tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)
    answers = traitlets.Dict().tag(sync=True)
    map, pattern, heads, sources, token = (traitlets.Dict().tag(sync=True) for _ in FIGURES)
    why = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        model: HookedChatModel,
        found: FoundDirection,
        prompts: list[str],
        suffixes: list[dict[str, str]],
        request: str,
        top_heads: Any,
        max_new_tokens: int,
    ) -> None:
        self.model, self.found, self.top_heads, self.limit = model, found, top_heads, max_new_tokens
        self._kept: dict[str, Any] = {}
        self._seen: Look | None = None
        self._before: dict[str, Any] = {}
        self._rest: Iterator[Look] = iter(())
        self._task: asyncio.Task | None = None
        self._still: Any = None
        every = [head_label(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
        given = {"prompts": prompts, "suffixes": suffixes, "heads": every, "layers": model.n_layers + 1}
        where = {name: scope.words for name, scope in scopes(found).items()}
        offered = {"kinds": list(KINDS), "scopes": where, "measures": MEASURES, "why": CHOICES}
        begin = {**ASKED, "request": request, "why": "", "layer": found.direction.layer}
        super().__init__(choices={**given, **offered}, asked=begin)
        self.observe(self._ask, "asked")
        self.observe(self._hover, "hovered")
        self._ask()

    @property
    def seen(self) -> Look:
        """The look that is shown, with all of its replies.

        Raises:
            RefusalLensError: nothing was found yet; the sentence that is shown says why.
        """
        if self._task is not None:
            self._task.cancel()
        for _ in self._steps():
            pass
        if self._seen is None:
            raise RefusalLensError(self.shown.get("error") or "nothing was asked yet")
        return self._seen

    @property
    def _change(self) -> Change:
        return Change(*(self.asked[name] for name in ("kind", "strength", "scope")))

    @property
    def _pair(self) -> tuple[str, ...]:
        """The plain condition and the one beside it."""
        assert self._seen is not None
        beside = self.asked["beside"]
        names = ("baseline", beside if beside in self._seen.conditions else self._seen.changed)
        return tuple(dict.fromkeys(names))

    @property
    def _about(self) -> list[str]:
        """What is picked about a suffix ("" without one), the request, the suffix."""
        request, suffix = ("", "") if self._seen is None else (self._seen.request, self._seen.suffix)
        return [self.asked["why"] if suffix else "", request, suffix]

    def _ask(self, _: Any = None) -> None:
        """Look again: views first, then replies between the kernel's other messages."""
        new = {name for name, value in self.asked.items() if value != self._before.get(name)}
        self._before = dict(self.asked)
        turned = self._seen is not None and not self.shown.get("error") and new <= {*VIEWS, "head"}
        try:
            if turned:
                self._turn(new)
                if "why" not in new:
                    return
            if self._task is not None:
                self._task.cancel()
            if not turned:
                self._rest = iter(())
                self._look()
        except Exception as error:  # the explorer shows whatever went wrong and stays
            self.shown = {**self.shown, "error": _said(error)}
            return
        try:
            self._task = asyncio.get_running_loop().create_task(self._answer(turned))
        except RuntimeError:  # no notebook
            self._task = None

    def _read(self) -> Look:
        asked, under = self.asked, self._change.under(self.found)
        options: dict[str, Any] = {"head": asked["head"] or None, "top_heads": self.top_heads, "kept": self._kept}
        return look(self.model, asked["request"], self.found, asked["suffix"], under=under, **options)

    def _look(self) -> None:
        """Everything anew."""
        begin = time.perf_counter()
        self._seen = seen = self._read()
        rows = conditions(self.model, seen.request, seen.suffix, self._change.under(self.found), 0)[0]
        self._rest = answered(self.model, seen, rows, self.limit, self._kept)
        if self.why.get("about") != self._about:
            self.why = {}
        self._say(seconds=round(time.perf_counter() - begin, 3))
        for name in FIGURES:
            self._draw(name)
        self._keep()

    def _turn(self, new: set[str]) -> None:
        """Another view of the same look, or another head."""
        assert self._seen is not None
        if "head" in new:
            found = self._read()
            self._seen = dataclasses.replace(self._seen, head=found.head, patterns=found.patterns)
        self._say()
        for name in FIGURES if "beside" in new else ("pattern",) if new & {"head", "measure"} else ():
            self._draw(name)
        self._keep()

    def _say(self, **more: Any) -> None:
        """Rows, texts and code."""
        seen, pair = self._seen, self._pair
        assert seen is not None
        code = as_code(seen, self._change, self.found, pair[-1], self.asked["measure"], self.limit)
        self.shown = {
            **self.shown,
            "rows": page.rows(seen),
            "strips": page.strips(seen, pair, int(self.asked["layer"])),
            "code": {**code, "why": self.why.get("code", "")},
            "beside": pair[-1],
            "head": head_label(*seen.head),
            "notes": list(seen.notes),
            "error": "",
            **more,
        }

    def _draw(self, name: str) -> None:
        seen, pair = self._seen, self._pair
        assert seen is not None
        options: dict[str, Any] = {"conditions": pair}
        if name == "pattern":
            options["of"] = self.asked["measure"]
        elif name == "token":
            condition, token = self.hovered or (pair[-1], -1)
            known = condition in seen.sources and token < len(seen.sources[condition].tokens[0])
            options = {"condition": condition if known else pair[-1], "token": token if known else -1}
        try:
            drawn = json.loads(seen.plot(name, **options).to_json())
        except RefusalLensError as error:
            drawn = {"error": str(error)}
        setattr(self, name, drawn)

    def _hover(self, _: Any) -> None:
        if self._seen is not None:
            self._draw("token")

    def _explain(self) -> Iterator[None]:
        """What is picked about the suffix, measured once, after the kernel's other messages."""
        seen, about = self._seen, self._about
        if seen is None or self.why.get("about") == about:
            return
        made: dict[str, Any] = {}
        if choice := about[0]:
            self.why = {"error": "measuring …"}
            yield
            what = ("why", self.found.direction, *about, seen.control, seen.top_heads)
            found = partial(view, self.model, seen, self.found, choice, self.choices["prompts"])
            try:
                made = once(self._kept, what, found)
            except Exception as error:
                made = {"error": _said(error)}
        self.why = {**made, "about": about}
        self._say()
        self._keep()

    def _steps(self, explain_first: bool = False) -> Iterator[None]:
        parts = self._replies, self._explain
        for part in parts[::-1] if explain_first else parts:
            yield from part()

    def _replies(self) -> Iterator[None]:
        """More of the replies, step by step."""
        try:
            for seen in self._rest:
                assert self._seen is not None
                longer = seen.map is not self._seen.map
                self._seen = dataclasses.replace(self._seen, map=seen.map, replies=seen.replies)
                self.answers = seen.replies
                if longer:
                    self._say()
                    self._draw("map")
                    self._keep()
                yield
        except Exception as error:
            self.shown = {**self.shown, "error": f"no reply: {error}"}

    def __repr__(self) -> str:
        return f"Explorer({self.model.name}, {self.asked['request']!r})"

    async def _answer(self, explain_first: bool) -> None:
        for _ in self._steps(explain_first):
            await asyncio.sleep(0.005)  # lets the kernel take a new question meanwhile, which cancels this

    # -- what stays in the notebook -------------------------------------------------------------------------
    def _keep(self) -> None:
        """Renew the plain HTML of the last look."""
        if self._still is not None and self._seen is not None:
            code, said = self.shown["code"]["look"], self.why.get("text", "")
            look = page.still(self._seen, self._pair, int(self.asked["layer"]), code, said)
            self._still.update(HTML(look))

    def _ipython_display_(self) -> None:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        display({"application/vnd.jupyter.widget-view+json": view, "text/plain": repr(self)}, raw=True)
        self._still = display(HTML(""), display_id=True)
        self._keep()


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, RefusalLensError) else f"{type(error).__name__}: {error}"
