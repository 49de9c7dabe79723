"""``host.svg``: the graph of a host by regions, with its slots and its seeds. Needs no other program.

The layout is layered: a node stands one row below the lowest of its inputs, nodes of a row side by
side; a module that is a region of its own is a box around its rows. Seeds stand to the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import torch.fx as fx

from fxgraft import Host, Region
from fxgraft.demo.records import SeedRecord

STAGE_COLOURS = {
    "TRAINING": "#F0E442",
    "BLENDING": "#56B4E9",
    "HOLDING": "#0072B2",
    "FOSSILIZED": "#009E73",
    "CULLED": "#FFFFFF",
}
WIDTH, HEIGHT, GAP, ROW = 170, 34, 34, 66
SEED_WIDTH = 230
PADDING = 22
TOP = 110


@dataclass
class Box:
    """A node: where it is (its centre), and what it says."""

    label: str
    detail: str
    x: float
    y: float


@dataclass
class Layout:
    """What is to be drawn. ``frames`` are (label, left, top, right, bottom); ``slots`` name -> position."""

    boxes: list[Box] = field(default_factory=list)
    edges: list[tuple[Box, Box, str]] = field(default_factory=list)
    frames: list[tuple[str, float, float, float, float]] = field(default_factory=list)
    slots: dict[str, tuple[float, float]] = field(default_factory=dict)


def picture(host: Host, seeds: Sequence[SeedRecord], title: str = "The host and what grew on it") -> str:
    """The host without its seeds' inner graphs; ``seeds`` may name culled ones, which are dashed."""
    layout = Layout()
    _place(layout, host, host.regions[""], 0.0, TOP)
    left = min(box.x for box in layout.boxes) - WIDTH / 2 - 2 * PADDING - 60
    right = max([box.x + WIDTH / 2 for box in layout.boxes] + [frame[3] for frame in layout.frames])
    bottom = max(box.y for box in layout.boxes) + HEIGHT + PADDING
    parts = [_frame(*frame) for frame in layout.frames]
    parts += [_edge(*edge) for edge in layout.edges]
    parts += [_node(box) for box in layout.boxes]
    parts += [f'<circle cx="{x:.0f}" cy="{y:.0f}" r="5" class="slot"/>' for x, y in layout.slots.values()]
    parts += _seeds(layout, seeds, right + 60)
    width = right + 60 + SEED_WIDTH + PADDING - left
    return _document(left, width, bottom, parts + _legend(left + PADDING, title))


def _place(layout: Layout, host: Host, region: Region, x: float, y: float) -> tuple[Box, Box, float]:
    """Lay out one region from ``y`` down; return its first and last box and the row below it."""
    placed: dict[fx.Node, tuple[Box, Box]] = {}
    below: dict[fx.Node, float] = {}
    columns: dict[float, int] = {}
    inner = region.name != ""
    nodes = [n for n in region.base.nodes if n.op not in ("get_attr",) and (n.users or n.op == "output")]
    skipped = {"placeholder", "output"} if inner else set()
    for node in nodes:
        if node.op in skipped or not _is_value(node):
            continue
        inputs = [i for i in node.all_input_nodes if i in placed]
        top = max([below[i] for i in inputs], default=y)
        column = columns.get(top, 0)
        columns[top] = column + 1
        child = host.regions.get(_path(region, node)) if node.op == "call_module" else None
        where = x + column * (WIDTH + GAP)
        if child is not None and child.base is not region.base:
            first, last, end = _place(layout, host, child, where, top + 34)
            label = f"{child.name}: {type(child.module).__name__}"
            half = WIDTH / 2 + PADDING
            layout.frames.append((label, where - half, top - 4, where + half, end - ROW + HEIGHT / 2 + 20))
            port = (where + half, last.y)
            end += 30
        else:
            first = last = Box(*_label(region, node), where, top)
            port = (where + WIDTH / 2, top)
            layout.boxes.append(first)
            end = top + ROW
        if (slot := node.meta.get("qualified_name")) in host.slots:
            layout.slots[slot] = port
        placed[node], below[node] = (first, last), end
        for source in inputs:
            layout.edges.append((placed[source][1], first, _shape(source)))
    every = list(placed.values())
    return every[0][0], every[-1][1], max(below.values())


def _is_value(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output") or node.meta.get("observation") is not None


def _path(region: Region, node: fx.Node) -> str:
    return f"{region.name}.{node.target}".lstrip(".")


def _label(region: Region, node: fx.Node) -> tuple[str, str]:
    if node.op == "call_module":
        module = region.module.get_submodule(str(node.target))
        return str(node.target), type(module).__name__
    if node.op in ("placeholder", "output"):
        return {"placeholder": "input", "output": "output"}[node.op], ""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.name, str(target) if str(target) != node.name else ""


def _shape(node: fx.Node) -> str:
    seen = node.meta.get("observation")
    shape = getattr(seen, "shape", None)
    return " x ".join(map(str, ("N", *shape[1:]))) if shape is not None else ""


def _frame(label: str, left: float, top: float, right: float, bottom: float) -> str:
    return (
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{right - left:.0f}" height="{bottom - top:.0f}" rx="10" '
        f'fill="#f3f6fa" stroke="#b8c4d2"/>'
        f'<text x="{left + 8:.0f}" y="{top + 14:.0f}" class="small" fill="#5a6b7d">{escape(label)}</text>'
    )


def _edge(source: Box, target: Box, shape: str) -> str:
    x1, y1, x2, y2 = source.x, source.y + HEIGHT / 2, target.x, target.y - HEIGHT / 2
    return (
        f'<path d="M{x1:.0f},{y1:.0f} L{x2:.0f},{y2:.0f}" class="edge" marker-end="url(#arrow)"/>'
        f'<text x="{(x1 + x2) / 2 - 8:.0f}" y="{y1 + 13:.0f}" text-anchor="end" class="small">{shape}</text>'
    )


def _node(box: Box) -> str:
    left, top = box.x - WIDTH / 2, box.y - HEIGHT / 2
    text = f'<tspan class="name">{escape(box.label)}</tspan>'
    if box.detail:
        text += f'<tspan class="small" dx="6">{escape(box.detail)}</tspan>'
    return (
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff" '
        f'stroke="#44546a"/><text x="{box.x:.0f}" y="{box.y + 4:.0f}" text-anchor="middle">{text}</text>'
    )


def _seeds(layout: Layout, seeds: Sequence[SeedRecord], left: float) -> list[str]:
    parts = []
    height = 44
    at_slot: dict[str, int] = {}
    for seed in seeds:
        from_x, from_y = layout.slots[seed.slot]
        number = at_slot.get(seed.slot, 0)
        at_slot[seed.slot] = number + 1
        y = from_y + number * (height + 6)
        dashed = ' stroke-dasharray="5 4"' if seed.stage == "CULLED" else ""
        dark = seed.stage in ("HOLDING", "FOSSILIZED")
        ink = "#ffffff" if dark else "#222222"
        parts.append(
            f'<path d="M{from_x + 5:.0f},{from_y:.0f} L{left:.0f},{y:.0f}" class="edge"{dashed}/>'
            f'<rect x="{left:.0f}" y="{y - height / 2:.0f}" width="{SEED_WIDTH}" height="{height}" rx="8" '
            f'fill="{STAGE_COLOURS.get(seed.stage, "#dddddd")}" stroke="#333333"{dashed}/>'
            f'<text x="{left + SEED_WIDTH / 2:.0f}" y="{y - 3:.0f}" text-anchor="middle" class="name" '
            f'style="fill:{ink}">{escape(seed.name)}</text>'
            f'<text x="{left + SEED_WIDTH / 2:.0f}" y="{y + 13:.0f}" text-anchor="middle" class="small" '
            f'style="fill:{ink}">{seed.stage.lower()}, contributes {seed.contribution:+.3f}</text>'
        )
    return parts


def _legend(left: float, title: str) -> list[str]:
    parts = [
        f'<text x="{left:.0f}" y="26" class="title">{escape(title)}</text>',
        f'<circle cx="{left + 6:.0f}" cy="50" r="5" class="slot"/>',
        f'<text x="{left + 16:.0f}" y="54" class="small">slot</text>',
    ]
    x = left + 56
    for stage, colour in STAGE_COLOURS.items():
        dashed = ' stroke-dasharray="3 2"' if stage == "CULLED" else ""
        parts.append(
            f'<rect x="{x:.0f}" y="43" width="14" height="14" rx="3" fill="{colour}" '
            f'stroke="#333333"{dashed}/>'
            f'<text x="{x + 19:.0f}" y="54" class="small">{stage.lower()}</text>'
        )
        x += 92
    return parts


def _document(left: float, width: float, height: float, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:.0f} 0 {width:.0f} {height:.0f}" \
width="{width:.0f}" height="{height:.0f}">
<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">\
<path d="M0,0 L8,4 L0,8 z" fill="#44546a"/></marker></defs>
<style>text {{ font-family: Helvetica, Arial, sans-serif; font-size: 13px; fill: #222222 }}
.name {{ font-weight: bold }} .small {{ font-size: 11px; font-weight: normal; fill: #5a6b7d }}
.title {{ font-size: 17px; font-weight: bold }} .edge {{ stroke: #44546a; stroke-width: 1.4; fill: none }}
.slot {{ fill: #D55E00; stroke: #ffffff; stroke-width: 1.5 }}</style>
<rect x="{left:.0f}" y="0" width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>
{body}
</svg>
"""
