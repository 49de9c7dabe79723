"""What the calls of an act would change, found by applying them for a moment and reverting all of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fxgraft.host.channels import example_of
from fxgraft.host.host import Host
from fxgraft.lifecycle.act import Act
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.optimizers.places import Destination
from fxgraft.util.flops import count_flops
from fxgraft.util.tables import text_table
from fxgraft_passes.graft import SEEDS

Shape = tuple[int, ...]


@dataclass
class ActPlan:
    """What the calls inside of `SeedManager.plan_together` would change; ``str`` gives a page.

    It is filled in at the end of the block. Pairs are of the host as it is, and as it would be.

    Attributes:
        done: whether it is filled in.
        changes: what the calls do, in words.
        seeds: name of each seed that there would be -> its stage (``"TRAINING"``, ``"FOSSILIZED"``, ...).
        tensors: name of each parameter and buffer that would be new, gone or of another shape -> both
            shapes, None where it is not there.
        parameter_count: of the host with its seeds.
        parameter_bytes: likewise.
        forward_flops: of a forward pass of the size of the example call, two for each multiply-add; matrix
            products, convolutions and attention only. None where the host does not know that call (a copy,
            one read from a file), is sharded, or has an operation that torch cannot count.
        groups: name of each new parameter -> the optimizer and the group that it would go to; empty without
            an optimizer.
    """

    done: bool = False
    changes: tuple[str, ...] = ()
    seeds: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, tuple[Shape | None, Shape | None]] = field(default_factory=dict)
    parameter_count: tuple[int, int] = (0, 0)
    parameter_bytes: tuple[int, int] = (0, 0)
    forward_flops: tuple[int, int] | None = None
    groups: Mapping[str, Destination] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries, lists, strings and numbers (for JSON)."""
        return {
            **vars(self),
            "changes": list(self.changes),
            "groups": {name: str(where) for name, where in self.groups.items()},
        }

    def __str__(self) -> str:
        if not self.done:
            return "plan: empty, as its block has not ended, or has raised"
        lines = ["plan: " + ("\n      ".join(self.changes) or "nothing")]
        lines.append(f"  parameters  {_both(self.parameter_count)}")
        lines.append(f"  bytes       {_both(self.parameter_bytes)}")
        if self.forward_flops is not None:
            lines.append(
                f"  FLOPs       {_both(self.forward_flops)}, in a forward pass of the example's size"
            )
        if rows := [self._row(name, stage) for name, stage in self.seeds.items()]:
            columns = 4 if self.groups else 3  # without an optimizer nothing goes to one
            headers = ("seed", "stage", "parameters", "they go to")[:columns]
            lines.append(text_table(headers, [row[:columns] for row in rows]))
        if changed := [
            (name, *map(_text, pair)) for name, pair in self.tensors.items() if self._is_old(name)
        ]:
            lines.append(text_table(("tensor", "now", "then"), changed))
        return "\n".join(lines)

    def _row(self, name: str, stage: str) -> tuple[object, ...]:
        """A seed: what it adds, and where that is trained."""
        prefix = f"{SEEDS}.{name}."
        new = [then for path, (now, then) in self.tensors.items() if path.startswith(prefix) and now is None]
        places = {str(where): None for path, where in self.groups.items() if path.startswith(prefix)}
        return name, stage, sum(math.prod(shape) for shape in new if shape is not None), "; ".join(places)

    def _is_old(self, name: str) -> bool:
        """Whether the host has it now, or it is of no seed."""
        return self.tensors[name][0] is not None or not name.startswith(f"{SEEDS}.")


def plan_act(lifecycle: Lifecycle, act: Act) -> dict[str, Any]:
    """The attributes of the `ActPlan` of ``act``.

    Raises:
        FxGraftError: the act could not be applied; as `Lifecycle.commit`.
    """
    host, change = lifecycle.host, act.change(lifecycle)
    groups = {
        f"{SEEDS}.{addition.seed.name}.module.{name}": where
        for addition in change.additions
        for name, where in lifecycle.registry.preview(addition.seed, addition.graft.module).items()
    }
    now, flops = _tensors(host), _forward_flops(host)
    counted = _count(host)
    with lifecycle.dry_run(change):
        then, grown = _tensors(host), _forward_flops(host)
        grown_to = _count(host)
        names = [name for name in dict.fromkeys((*now, *then)) if now.get(name) != then.get(name)]
        return {
            "done": True,
            "changes": tuple(act.words),
            "seeds": {name: seed.stage.name for name, seed in lifecycle.seeds.items()},
            "tensors": {name: (now.get(name), then.get(name)) for name in names},
            **{what: (count, grown_to[what]) for what, count in counted.items()},
            "forward_flops": None if flops is None or grown is None else (flops, grown),
            "groups": {name: where for name, where in groups.items() if name in then},
        }


def _tensors(host: Host) -> dict[str, Shape]:
    """Parameters and buffers, without those that steer seeds."""
    every: dict[str, Tensor] = {**dict(host.named_parameters()), **dict(host.named_buffers())}
    return {name: tuple(tensor.shape) for name, tensor in every.items() if not _steers(name)}


def _steers(name: str) -> bool:
    """Whether a tensor is a seed's own, and not of its module."""
    return name.startswith(f"{SEEDS}.") and name.split(".")[2] != "module"


def _count(host: Host) -> dict[str, int]:
    parameters = list(host.parameters())
    return {
        "parameter_count": sum(p.numel() for p in parameters),
        "parameter_bytes": sum(p.nbytes for p in parameters),
    }


def _forward_flops(host: Host) -> int | None:
    """Of the host as it is at this moment, seeds included, run without a trace of it."""
    if (subject := example_of(host)) is None:
        return None
    with subject.session():
        try:
            return count_flops(lambda: subject.run(*subject.args, **subject.kwargs))
        except Exception:  # of torch's counter; whether the act itself can run is seen by its own checks
            return None


def _both(pair: tuple[int, int]) -> str:
    now, then = pair
    share = f" ({then / now:.3g} times)" if now and now != then else ""
    return f"{now:,} -> {then:,}{share}"


def _text(shape: Shape | None) -> str:
    return "-" if shape is None else str(shape)
