"""A picture of a host, to look at in a notebook or to save: its graph by modules, slots, shapes and seeds.

Layout is graphviz's, through pydot: ``pip install 'fxgraft[show]'``, and the program ``dot``, which comes
with the system's package ``graphviz``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydot

from fxgraft.capture.region import Region
from fxgraft.errors import FxGraftError
from fxgraft.report._host_graph import Drawing, below, in_order
from fxgraft.report.marks import Mark
from fxgraft.seeds.stage import STAGE_COLOURS, Stage
from fxgraft.util.text import pluralize

if TYPE_CHECKING:
    from fxgraft.host.host import Host

SUFFIXES = (".svg", ".png", ".html")

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #6a737d; --paper: #ffffff; --line: #d8dee4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa4ae; --paper: #15181c; --line: #30363d; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2rem auto; max-width: 70rem; padding: 0 1.5rem; }
h1 { font-size: 1.4rem; }
p { color: var(--soft); }
details { border-left: 2px solid var(--line); margin: .35rem 0 .35rem .4rem; padding-left: .9rem; }
summary { cursor: pointer; }
summary code { font-weight: 600; }
summary small { color: var(--soft); }
figure { background: #ffffff; border: 1px solid var(--line); border-radius: 8px; padding: 1rem;
  margin: .6rem 0; overflow-x: auto; width: fit-content; max-width: 100%; box-sizing: border-box; }
figure svg { max-width: 100%; height: auto; }
.key span { display: inline-block; margin-right: 1.2rem; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .4em;
  vertical-align: -.05em; }
"""


class Picture:
    """The graph of a host as it is now.

    In a notebook it shows itself: the page where each module opens to its own graph.

    Args:
        host: what is drawn.
        marks: what is said of slots, by their names: a colour, and a line of text.
        said: what the colours are, for the page.
    """

    def __init__(self, host: Host, marks: Mapping[str, Mark] | None = None, said: str = ""):
        self._host, self._marks, self._said = host, marks or {}, said

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write ``.svg`` or ``.png`` (modules as frames), or ``.html`` (one page, which opens offline).

        Folders are made where they are missing.

        Raises:
            ValueError: for another suffix.
            FxGraftError: the program ``dot`` is missing.
        """
        target = Path(path)
        if target.suffix not in SUFFIXES:
            raise ValueError(f"path: expected a name ending in {', '.join(SUFFIXES)}; got {target.name!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".html":
            target.write_text(self.html(), encoding="utf-8")
        else:
            drawn = Drawing(self._host, True, self._marks).of(*in_order(self._host))
            target.write_bytes(_render(drawn, target.suffix[1:]))
        return target

    def html(self) -> str:
        """The page."""
        slots, seeds = len(self._host.slots), len(self._host.structure.placements)
        counts = f"{pluralize(slots, 'slot')}, {pluralize(seeds, 'seed')}"
        title = escape(f"{type(self._host._root).__name__}: {counts}")
        stages = [Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED]
        key = "".join(
            f'<span><i style="background:{STAGE_COLOURS[stage]}"></i>{stage.name.lower()}</span>'
            for stage in stages
        )
        body = "".join(self._section(region) for region in below(self._host, None))
        return (
            f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>\n<h1>{title}</h1>\n'
            f"<p>A solid box is a slot, a dashed one is none; a box with a thick frame is a module that "
            f"opens below. Shapes are those of the example. {escape(self._said)}</p>\n"
            f'<p class="key">{key}</p>\n{body}</html>\n'
        )

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self.html())}" style="width:100%;height:40rem;border:0"></iframe>'

    def _section(self, region: Region) -> str:
        """A region that opens to its graph, and to the regions below."""
        drawn = _render(Drawing(self._host, False, self._marks).of(region), "svg").decode()
        inside = f"{region.name}." if region.name else ""
        seeds = sum(p.slot.name.startswith(inside) for p in self._host.structure.placements)
        marked = any(name.startswith(inside) for name in self._marks)
        said = pluralize(len(region.slots), "slot") + (f", {pluralize(seeds, 'seed')}" if seeds else "")
        return (
            f"<details{' open' if seeds or marked or not region.name else ''}>"
            f"<summary><code>{escape(region.name or 'model')}</code> {escape(type(region.module).__name__)} "
            f"<small>{said}</small></summary>\n<figure>{drawn[drawn.index('<svg') :]}</figure>\n"
            + "".join(map(self._section, below(self._host, region.name)))
            + "</details>\n"
        )


def _render(dot: pydot.Dot, kind: str) -> bytes:
    if shutil.which("dot") is None:
        raise FxGraftError(
            "the program dot lays pictures out, and is not there: install graphviz with the packages of your "
            "system (apt-get install graphviz, brew install graphviz)"
        )
    drawn: Any = dot.create(format=kind)
    return bytes(drawn)
