"""The isolation check: are the host's gradients what they would be without the seeds' paths?

Not a heuristic on norms: two passes over the same inputs, from the same random state, one as the host
runs and one in which a seed has no effect, compared bit for bit. In the second

* seeds in TRAINING are not there at all (so that what they write into buffers or values shows), and
* the outputs of blended, isolated seeds are cut off from gradients (so that only the direct path is left).

The loss does not matter to where gradients flow, so the check brings its own: a random linear
function of the outputs, drawn from a stream of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft.slots.structure import Structure
from fxgraft.util.bits import same_tensor
from fxgraft.util.tensors import random_like
from fxgraft_passes import Phase

_COTANGENT_SEED = 0x5EED


@dataclass(frozen=True)
class Violation:
    """One tensor of the host that a seed has changed.

    Attributes:
        kind: ``"gradient"``, ``"buffer"`` or ``"output"``.
        name: of the parameter or buffer; the place of an output.
        magnitude: the largest difference.
    """

    kind: str
    name: str
    magnitude: float

    def __str__(self) -> str:
        return f"{self.kind} {self.name or '(root)'} differs by up to {self.magnitude:.3g}"


Observed = Mapping[tuple[str, str], Tensor | None]


def check(
    host: Host, seeds: Iterable[Seed], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Violation]:
    """Compare one call of ``host`` with and without the seeds' paths, in eager mode.

    Costs two forward and backward passes. Parameters, gradients, buffers and random streams are
    left as they are.
    """
    live = {seed.name: seed for seed in seeds if seed.is_live}
    reference = _reference(host.structure, live)
    without, _ = _observe(host, reference, Phase.DETACHED, args, kwargs)
    within, written = _observe(host, host.structure, host.phase, args, kwargs)
    if host.phase is not Phase.ISOLATED:  # the outputs are meant to differ
        without, within = ({k: v for k, v in seen.items() if k[0] != "output"} for seen in (without, within))
    return written + [
        Violation(kind, name, _difference(value, without.get((kind, name))))
        for (kind, name), value in within.items()
        if not _same(value, without.get((kind, name)))
    ]


def _reference(structure: Structure, live: Mapping[str, Seed]) -> Structure:
    placements = []
    for placement in structure.placements:
        seed = live.get(placement.seed)
        if seed and seed.stage is Stage.TRAINING and seed.spec.isolated:
            continue
        if seed and seed.stage is Stage.HOLDING and seed.spec.mode == "convex":
            # Its isolation has ended, and what passes through it is meant to.
            spec = dataclasses.replace(placement.spec, isolated=False)
            placement = dataclasses.replace(placement, spec=spec)
        placements.append(placement)
    return Structure(tuple(placements))


def _observe(
    host: Host, structure: Structure, phase: Phase, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Observed, list[Violation]]:
    """Gradients, buffers and outputs of the traced model in one pass; and what was written behind its back.

    The pass works on copies of the host's buffers: a write to an original comes from elsewhere than the host.
    """
    originals = {name: (buffer, buffer.clone()) for name, buffer in engine.trees(host)[0].named_buffers()}
    with engine.untouched(host), torch.enable_grad(), engine.probing(host, structure, phase) as root:
        parameters = {n: p for n, p in root.named_parameters() if p.requires_grad}
        outputs = [o for o in pytree.tree_leaves(root(*args, **kwargs)) if isinstance(o, Tensor)]
        learnable = [o for o in outputs if o.requires_grad]
        grads: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if learnable and parameters:
            grads = torch.autograd.grad(
                learnable,
                list(parameters.values()),
                [random_like(output, _COTANGENT_SEED) for output in learnable],
                allow_unused=True,
            )
        seen: dict[tuple[str, str], Tensor | None] = {}
        seen |= {("gradient", name): g for name, g in zip(parameters, grads, strict=True)}
        seen |= {("buffer", name): b.clone() for name, b in root.named_buffers()}
        seen |= {("output", str(i)): o.detach() for i, o in enumerate(outputs)}
        written = [
            Violation("buffer", name, _difference(buffer, kept))
            for name, (buffer, kept) in originals.items()
            if not same_tensor(buffer, kept)
        ]
    return seen, written


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return same_tensor(a, b)


def _difference(a: Tensor | None, b: Tensor | None) -> float:
    if a is None and b is None:
        return 0.0
    if a is None or b is None or a.shape != b.shape:
        return float("inf")
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
