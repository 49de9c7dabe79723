"""Draws docs/images/stages/*.svg: for each stage what flows forward, and which gradients flow back.

``python docs/pictures/stages.py`` writes them; a test compares them with what is committed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fxgraft import Stage
from fxgraft.seeds.stage import LIGHT, STAGE_COLOURS

FOLDER = Path(__file__).parent.parent / "images" / "stages"
INK, FAINT = "#30363d", "#c8ccd1"


@dataclass(frozen=True)
class Picture:
    """What a stage looks like.

    Attributes:
        value: the value that leaves the slot, as text.
        seed: how the seed is drawn: absent, apart (there, but not yet in the graph) or present.
        alpha: the share that is drawn as filled, 0 to 1; None where there is no alpha.
        forward: whether the seed's output reaches the value.
        back_seed: what gradient the seed gets, as text; "" for none.
        back_through: whether a gradient reaches the host through the seed.
        note: said beside it.
    """

    value: str
    seed: str
    alpha: float | None
    forward: bool
    back_seed: str
    back_through: bool
    note: str = ""


PICTURES = {
    Stage.DORMANT: Picture("h", "absent", None, False, "", False, "the model\u2019s own code"),
    Stage.GERMINATED: Picture("h", "apart", None, False, "", False, "being built, and compiled"),
    Stage.TRAINING: Picture("h, bit for bit", "present", 0.0, False, "by its objective", False),
    Stage.BLENDING: Picture("h + \u03b1 f", "present", 0.5, True, "\u03b1 g", False),
    Stage.HOLDING: Picture("h + \u03b1 f", "present", 1.0, True, "\u03b1 g", False),
    Stage.FOSSILIZED: Picture("h + f", "present", None, True, "g", True),
    Stage.CULLED: Picture("h", "absent", None, False, "", False, "no trace is left of it"),
}


def draw(stage: Stage) -> str:
    """The picture of a stage, as SVG. Modes and isolation are the default: residual, isolated."""
    picture, colour = PICTURES[stage], STAGE_COLOURS[stage]
    parts = [
        _box(24, 128, "host before", INK),
        _box(416, 128, "host after", INK),
        _arrow("M134 144 H288", INK),
        _arrow("M312 144 H410", INK),
        _text(204, 138, "h"),
        _text(361, 138, picture.value, size=11),
        # Gradients run below, and to the left.
        _arrow("M416 162 H140", INK, dashed=True),
        _text(275, 178, "g"),
        f'<circle cx="300" cy="144" r="11" fill="{LIGHT}" stroke="{INK}" stroke-width="1.5"/>',
        _text(300, 148, "slot", size=9),
    ]
    if picture.seed != "absent":
        parts += _seed(picture, colour)
    if picture.note:
        beside = picture.seed == "absent"
        parts.append(
            _text(24 if beside else 345, 52 if beside else 69, picture.note, anchor="start", size=11)
        )
    title = f'<text x="24" y="30" font-size="16" font-weight="600" fill="{colour}">{stage.name}</text>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 550 200" '
        'font-family="system-ui, sans-serif" role="img">\n'
        f"<title>{stage.name}: out of the slot comes {picture.value}</title>\n"
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z" fill="context-stroke"/></marker></defs>\n'
        f'<rect width="550" height="200" rx="8" fill="{LIGHT}"/>\n{title}\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _seed(picture: Picture, colour: str) -> list[str]:
    apart = picture.seed == "apart"
    parts = [_box(220, 48, "seed", colour, dashed=apart)]
    if apart:
        return parts
    parts.append(_arrow("M170 144 V64 H214", colour))
    parts.append(_text(164, 100, "detached" if not picture.back_through else "", anchor="end", size=11))
    if picture.forward:
        parts.append(_arrow("M330 64 H352 V104 Q352 120 340 124 L311 139", colour))
        parts.append(_text(358, 92, "f", anchor="start"))
    if picture.back_seed:
        parts.append(_arrow("M430 56 H336", colour, dashed=True))
        parts.append(_text(438, 60, picture.back_seed, anchor="start", size=11))
    if picture.back_through:
        parts.append(_arrow("M214 56 H158 V138", colour, dashed=True))
    if picture.alpha is not None:
        width = 110 * picture.alpha
        parts.append(f'<rect x="220" y="86" width="110" height="5" rx="2.5" fill="{FAINT}"/>')
        parts.append(f'<rect x="220" y="86" width="{width:g}" height="5" rx="2.5" fill="{colour}"/>')
        parts.append(_text(275, 104, f"\u03b1 = {picture.alpha:g}", size=11))
    return parts


def _box(x: int, y: int, label: str, colour: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<rect x="{x}" y="{y}" width="110" height="32" rx="6" fill="{LIGHT}" stroke="{colour}" '
        f'stroke-width="1.8"{dash}/>{_text(x + 55, y + 21, label)}'
    )


def _arrow(path: str, colour: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash} marker-end="url(#tip)"/>'


def _text(x: int, y: int, text: str, anchor: str = "middle", size: int = 13) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{INK}">{text}</text>'


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for each in Stage:
        (FOLDER / f"{each.name.lower()}.svg").write_text(draw(each), encoding="utf-8")
