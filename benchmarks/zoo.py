"""Does it work on the models that people train? A table of architectures, each grown and put back.

For every model, with random weights and one small call:

* ``trace``: outputs, gradients and ``state_dict`` keys of the host are the model's, to the bit, in train and
  in eval mode;
* ``isolated``: in randomly chosen slots seeds that are far from the identity change neither outputs nor
  host gradients, to the bit, while they train;
* ``blend``: they are blended in, and the host runs forward and backward;
* ``cull``: the host is what it was, to the bit.

`benchmarks.zoo_growth` has what is told of depth and width.

``make zoo`` installs torchvision and timm beside a matching torch in an environment of its own and runs
``python -m benchmarks.zoo``, which writes ``benchmarks/results/zoo.md`` and ``zoo.json`` after each model.
``--resume`` goes on with a run that was stopped: it leaves out what those files have of the same versions.
``--part growth`` runs the columns of depth and width only, and keeps the others as they are there.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import logging
import platform
import random
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxgraft
from benchmarks.zoo_growth import COLUMNS, Cell, grow, told
from benchmarks.zoo_models import FAMILIES, Sample
from fxgraft.util.bits import same_bits

RESULTS = Path(__file__).parent / "results"
SLOTS = 3
STEPS = ("trace", "isolated", "blend", "cull")
PARTS = ("seeds", "growth")


@dataclass
class Row:
    """What became of one model: the steps that held, and the first that did not, with the reason.

    ``growth`` has the columns of `benchmarks.zoo_growth`.
    """

    family: str
    name: str
    parameters: int = 0
    slots: int = 0
    traced: int = 0
    opaque: int = 0
    held: tuple[str, ...] = ()
    reason: str = ""
    why_opaque: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    seconds: float = 0.0
    growth: dict[str, Cell] = field(default_factory=dict)

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Row:
        """A row that was written."""
        growth = {column: Cell(**cell) for column, cell in saved.pop("growth", {}).items()}
        return cls(
            **{name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}, growth=growth
        )

    @property
    def is_fine(self) -> bool:
        """Whether every step held."""
        return self.held == STEPS


class Bend(nn.Module):
    """Fits every slot: element by element, and far from the identity."""

    def __init__(self, slot: fxgraft.Slot) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.tensor(-1.5)), nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype as ``x``."""
        return torch.tanh(x) * self.gain + self.shift


def observed(module: nn.Module, sample: Sample, training: bool, buffers: dict[str, Tensor]) -> dict[str, Any]:
    """Outputs, gradients and buffers of one call, from a fixed state."""
    model = sample.model
    module.train(training)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    for parameter in model.parameters():
        parameter.grad = None
    torch.manual_seed(7)
    outputs = [o for o in pytree.tree_leaves(module(*sample.args, **sample.kwargs)) if isinstance(o, Tensor)]
    learned = [o.float().square().mean() for o in outputs if o.requires_grad]
    if learned:
        torch.stack(learned).sum().backward()
    return {
        "outputs": [output.detach() for output in outputs],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "buffers": [buffer.clone() for buffer in model.buffers()],
    }


def differs(now: list[dict[str, Any]], before: list[dict[str, Any]]) -> str:
    """What is not the same to the bit, in words; empty if all is."""
    found = [
        f"{part} in {mode} mode"
        for mode, a, b in zip(("train", "eval"), now, before, strict=True)
        for part in a
        if not same_bits(a[part], b[part])
    ]
    return ", ".join(found)


def run(row: Row, sample: Sample) -> None:
    """Take one model through all steps; raises at the first that does not hold."""
    model = sample.model
    row.parameters = sum(p.numel() for p in model.parameters())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def both(module: nn.Module) -> list[dict[str, Any]]:
        return [observed(module, sample, training, buffers) for training in (True, False)]

    expected, keys = both(model), list(model.state_dict())
    host = fxgraft.trace(model.train(), sample.args, sample.kwargs)
    told = host.explain()
    row.slots, row.opaque = len(host.slots), len(host.opaque)
    row.traced = sum(report.status == "traced" for report in told.modules.values())
    row.why_opaque = tuple(sorted(set(host.opaque.values())))
    assert list(host.state_dict()) == keys, "other keys in the state_dict"
    assert not (found := differs(both(host), expected)), found
    row.held += ("trace",)
    manager = fxgraft.SeedManager(host, check_every=0)
    names = list(host.slots)
    row.chosen = tuple(random.Random(row.name).sample(names, min(SLOTS, len(names))))
    seeds = [manager.germinate(slot, Bend) for slot in row.chosen]
    assert not (found := differs(both(host), expected)), found
    row.held += ("isolated",)
    for seed in seeds:
        manager.blend(seed, steps=1)
    manager.step()
    both(host)
    row.held += ("blend",)
    for seed in seeds:
        manager.cull(seed)
    assert list(host.state_dict()) == keys, "other keys in the state_dict"
    assert not (found := differs(both(host), expected)), found
    row.held += ("cull",)


def check(family: str, name: str, known: Row | None, parts: Sequence[str], resume: bool) -> Row:
    """One row of the table; never raises.

    Args:
        family: of the model.
        name: of the model.
        known: what an earlier run has found.
        parts: what to run.
        resume: whether to leave out what ``known`` has.
    """
    row = Row(family, name)
    if known is not None and ("seeds" not in parts or resume):
        row = replace(known, growth={})
    else:
        started = time.perf_counter()
        try:
            torch.manual_seed(0)
            run(row, FAMILIES[family].make(name))
        except Exception as error:
            row.reason = told(error)
        row.seconds = round(time.perf_counter() - started, 1)
    if known is not None and known.growth and ("growth" not in parts or resume):
        row.growth = known.growth
    elif "growth" in parts:
        row.growth = grow(lambda: FAMILIES[family].make(name))
    gc.collect()
    return row


def versions() -> dict[str, str]:
    """Of what the table depends on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("torch", "torchvision", "timm", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def table(rows: list[Row], known: dict[str, str], dates: dict[str, str], absent: dict[str, str]) -> str:
    """The page."""
    fine = sum(row.is_fine for row in rows)
    lines = [
        "# Zoo",
        "",
        f"{fine} of {len(rows)} models pass every step of seeds ({dates.get('seeds', 'not run')}); "
        f"how {sum(bool(row.growth) for row in rows)} of them grow deeper and wider is in the second table "
        f"of each family ({dates.get('growth', 'not run')}). "
        + ", ".join(f"{package} {version}" for package, version in known.items())
        + ". Random weights, one small call, CPU; `benchmarks/zoo.py` and `benchmarks/zoo_growth.py` say "
        "what each column checks.",
        "",
    ]
    lines += [f"Not run: {family}: {why}." for family, why in absent.items()] + [""] * bool(absent)
    for family in dict.fromkeys(row.family for row in rows):
        mine = [row for row in rows if row.family == family]
        lines += [f"## {family}: {sum(row.is_fine for row in mine)} of {len(mine)}", ""]
        lines += [*_table_of_seeds(mine), "", *_table_of_growth([row for row in mine if row.growth]), ""]
    return "\n".join(lines)


def _table_of_seeds(rows: list[Row]) -> list[str]:
    lines = ["| model | parameters | slots | traced | not traced | " + " | ".join(STEPS) + " | what else |"]
    lines += ["|---|--:|--:|--:|--:|" + "---|" * (len(STEPS) + 1)]
    for row in rows:
        marks = " | ".join("yes" if step in row.held else "no" for step in STEPS)
        what = row.reason or "; ".join(row.why_opaque)
        numbers = f"{row.parameters:,} | {row.slots} | {row.traced} | {row.opaque}"
        lines.append(f"| {row.name} | {numbers} | {marks} | {what.replace('|', '/')} |")
    return lines


def _table_of_growth(rows: list[Row]) -> list[str]:
    lines = ["| model | " + " | ".join(COLUMNS) + " | why not |", "|---|" + "---|" * (len(COLUMNS) + 1)]
    for row in rows:
        says = " | ".join(row.growth[column].says or "no" for column in COLUMNS)
        why = "; ".join(f"{column}: {cell.reason}" for column, cell in row.growth.items() if cell.reason)
        lines.append(f"| {row.name} | {says} | {why.replace('|', '/')} |")
    return lines if rows else []


def main() -> None:
    """Run the families that can be imported, print the table, and write it."""
    options = _parse()
    warnings.simplefilter("ignore")
    logging.getLogger("fxgraft").setLevel(logging.ERROR)
    today, versions_now = datetime.date.today().isoformat(), versions()
    before = _written()
    known = {(row["family"], row["name"]): Row.of(row) for row in before.get("rows", ())}
    dates = {**before.get("dates", {}), **dict.fromkeys(options.part or PARTS, today)}
    rows: list[Row] = []
    began = time.monotonic()
    absent: dict[str, str] = dict(before.get("not_run", {})) if options.part else {}
    for family in options.family or FAMILIES:
        try:
            names = FAMILIES[family].names()
        except Exception as error:
            absent[family] = told(error)
            continue
        for name in names:
            if options.only is not None and options.only not in name:
                continue
            if options.within is not None and time.monotonic() - began > options.within:
                return
            had = known.pop((family, name), None)
            rows.append(check(family, name, had, options.part or PARTS, options.resume))
            print(f"{family:14}{name:36}{_summary(rows[-1])}", file=sys.stderr, flush=True)
            if options.only is None:  # after each model: a run that is stopped has what it found
                write([*rows, *known.values()], versions_now, dates, absent)
    print(table(rows, versions_now, dates, absent))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=FAMILIES, action="append", help="only this one (again for more)")
    parser.add_argument("--only", help="only models with this in their name; prints, and writes nothing")
    parser.add_argument("--part", choices=PARTS, action="append", help="only these columns (again for more)")
    parser.add_argument("--within", type=float, help="begin with no further model after so many seconds")
    parser.add_argument("--resume", action="store_true", help="leave out what the results have")
    return parser.parse_args()


def _summary(row: Row) -> str:
    seconds = row.seconds + sum(cell.seconds for cell in row.growth.values())
    grown = "; ".join(f"{column}: {cell.says or 'no'}" for column, cell in row.growth.items())
    return f"{seconds:7.1f} s  {row.reason or 'ok'}  {grown}"


def _written() -> dict[str, Any]:
    path = RESULTS / "zoo.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def write(rows: list[Row], known: dict[str, str], dates: dict[str, str], absent: dict[str, str]) -> None:
    """Write the page and its data."""
    RESULTS.mkdir(exist_ok=True)
    order = list(FAMILIES)
    rows = sorted(rows, key=lambda row: order.index(row.family))
    (RESULTS / "zoo.md").write_text(table(rows, known, dates, absent) + "\n", encoding="utf-8")
    data = {"dates": dates, "versions": known, "not_run": absent, "rows": [asdict(row) for row in rows]}
    (RESULTS / "zoo.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
