"""A finished trace against the module's own code: values, and gradients under random cotangents.

The example call runs once as the model is and once by its graphs, from the same state and the same random
state. Each result, each gradient with respect to inputs and parameters, each buffer and the random stream
afterwards must be the same, to the bit. Where they are not, halves of the regions run by their graphs, and
halves of these, until it is known which regions it comes from.

That finds what tracing cannot see: an operation that is in no graph, and what differs in its gradient alone
(a custom autograd function that was kept before tracing).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass
from types import MethodType
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft.capture._code import is_own_module
from fxgraft.capture.region import Region
from fxgraft.util.bits import same_tensor
from fxgraft.util.tensors import random_like

_COTANGENT_SEED = 0x7AC3
_TOLERANCE = 1e-3
"""Of a model that does not repeat its own bits: how far its graph may be from it, relative to the largest."""


class NotComparableError(Exception):
    """The example call cannot be repeated; the message says why."""


@dataclass(frozen=True)
class Seen:
    """What one run of the example call left to see: what it is, in words -> the value.

    Attributes:
        values: tensors; None for a gradient that nothing contributed to.
    """

    values: dict[str, Tensor | None]

    def difference(self, other: Seen, exact: bool = True) -> str | None:
        """What is first not the same in ``other``; None if nothing."""
        if self.values.keys() != other.values.keys():
            return "what it returns"
        for what, ours in self.values.items():
            if not _is_same(ours, other.values[what], exact):
                return what
        return None


class Comparison:
    """Compares runs of one example call.

    Args:
        root: the model.
        args, kwargs: of the call.
        repeated: lets the model run inside as if it had not run, in the mode that is compared.
    """

    def __init__(
        self,
        root: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        repeated: Callable[[], AbstractContextManager[None]],
    ):
        self._root, self._args, self._kwargs, self._repeated = root, args, kwargs, repeated
        self._of_inputs, self._backward = True, True
        self._reference = self._first()
        self._repeats_itself: bool | None = None

    def differing(self, regions: Sequence[Region]) -> dict[str, str]:
        """The regions whose graphs are not their code: qualified name -> why."""
        found: dict[str, str] = {}
        remaining = list(regions)
        while remaining and (what := self._difference(remaining)) is not None:
            found |= self._narrowed(remaining, what)
            remaining = [region for region in remaining if region.name not in found]
        return found

    def _narrowed(self, suspects: Sequence[Region], what: str) -> dict[str, str]:
        """The fewest of ``suspects`` that differ by themselves; all, if they do so together only."""
        if len(suspects) == 1:
            return {suspects[0].name: _reason(what)}
        middle = len(suspects) // 2
        found: dict[str, str] = {}
        for half in (suspects[:middle], suspects[middle:]):
            if (of_half := self._difference(half)) is not None:
                found |= self._narrowed(half, of_half)
        return found or {region.name: _reason(what) for region in suspects}

    def _difference(self, regions: Sequence[Region]) -> str | None:
        try:
            seen = self._seen(regions)
            if self._reference.difference(seen) is None:
                return None
            if self._repeats_itself is None:  # seldom asked for, and another run
                self._repeats_itself = self._reference.difference(self._seen(())) is None
            return self._reference.difference(seen, exact=self._repeats_itself)
        except torch.OutOfMemoryError as error:
            raise NotComparableError("there is not enough memory for it") from error
        except Exception as error:
            return f"its graph raises {type(error).__name__}"

    def _first(self) -> Seen:
        """The run that the others are compared with: with as many gradients as can be had."""
        for self._of_inputs, self._backward in ((True, True), (False, True), (False, False)):
            try:
                return self._seen(())
            except torch.OutOfMemoryError as error:
                raise NotComparableError("there is not enough memory for it") from error
            except Exception as error:
                reason = error
        raise NotComparableError(f"its example call cannot be repeated: {type(reason).__name__}: {reason}")

    def _seen(self, regions: Iterable[Region]) -> Seen:
        """One run, in which these regions run by their graphs."""
        with self._repeated(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for region in regions:
                region.module.__dict__["forward"] = _followed(region)
            wanted: dict[str, Tensor] = {}
            args, kwargs = pytree.tree_map_only(
                Tensor, lambda tensor: self._input(tensor, wanted), (self._args, self._kwargs)
            )
            result = self._root(*args, **kwargs)
            seen: dict[str, Tensor | None] = {
                f"what it returns ({i})" if i else "what it returns": tensor.detach()
                for i, tensor in enumerate(_tensors(result, set()))
            }
            wanted |= {f"the gradient of {n}": p for n, p in self._root.named_parameters() if p.requires_grad}
            outputs = [tensor for tensor in _tensors(result, set()) if tensor.requires_grad]
            if self._backward and outputs and wanted:
                grads = torch.autograd.grad(
                    outputs,
                    list(wanted.values()),
                    [random_like(output, _COTANGENT_SEED + i) for i, output in enumerate(outputs)],
                    allow_unused=True,
                )
                seen |= dict(zip(wanted, grads, strict=True))
            seen |= {f"the buffer {n}": b.detach().clone() for n, b in self._root.named_buffers()}
            seen["how much it draws from the random stream"] = torch.get_rng_state()
            return Seen(seen)

    def _input(self, tensor: Tensor, wanted: dict[str, Tensor]) -> Tensor:
        """The tensor for one run; the model may write into it."""
        fresh = tensor.detach().clone()
        if not (self._of_inputs and (fresh.is_floating_point() or fresh.is_complex())):
            return fresh.requires_grad_(tensor.requires_grad)
        wanted[f"the gradient of its input {len(wanted)}"] = fresh.requires_grad_()
        return fresh if tensor.requires_grad else fresh.clone()  # of a leaf nothing may be written in place


def _followed(region: Region) -> Callable[..., Any]:
    """What runs the graph of ``region`` in the place of its module's ``forward``."""
    forward = MethodType(type(region.module).forward, region.module)

    def followed(*args: Any, **kwargs: Any) -> Any:
        inputs = region.form.values(args, kwargs)
        if inputs is None:
            return forward(*args, **kwargs)
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            return fx.Interpreter(region.module, graph=region.base).run(
                *(inputs[known.name] for known in region.form.inputs)
            )

    return followed


def _tensors(value: Any, known: set[int]) -> Iterator[Tensor]:
    """The tensors in a result: in containers, in dataclasses, in objects of the model's own."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif id(leaf) not in known:
            known.add(id(leaf))
            parts: dict[str, Any] = {}
            if is_dataclass(leaf) and not isinstance(leaf, type):
                parts = {field.name: getattr(leaf, field.name, None) for field in fields(leaf)}
            if is_own_module(type(leaf).__module__) and not isinstance(leaf, (type, nn.Module)):
                parts |= getattr(leaf, "__dict__", {})
            for part in parts.values():
                yield from _tensors(part, known)


def _is_same(ours: Tensor | None, theirs: Tensor | None, exact: bool) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    if same_tensor(ours, theirs):
        return True
    if exact or ours.shape != theirs.shape or not ours.is_floating_point():
        return False
    scale = ours.abs().max().item() if ours.numel() else 0.0
    return torch.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True)


def _reason(what: str) -> str:
    return f"does not compute by its graph what it computes by its code: {what} differs"
