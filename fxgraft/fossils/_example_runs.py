"""The example call of a host, run on its plain forms."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils import _pytree as pytree

from fxgraft.capture.traces import opened
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.util.bits import same_bits
from fxgraft_passes.untouched import state_untouched


@dataclass(frozen=True)
class OutputDifference:
    """Between the tensors that a host returns and those of a plain form.

    Attributes:
        shapes: those of the plain form, and the expected ones, where they differ; else None.
        largest: between two elements, up to the first tensor that differs by more than rounding; infinite
            where one of them alone is not a number.
        is_rounding: whether all are equal within the tolerances of ``torch.testing``, for the coarser dtype.
        is_empty: whether no element of a float says anything, as each is not a number.
    """

    shapes: tuple[list[tuple[int, ...]], list[tuple[int, ...]]] | None
    largest: float
    is_rounding: bool
    is_empty: bool = False

    @classmethod
    def of(cls, wanted: Any, given: Any) -> OutputDifference:
        """Of what the host returned and what the plain form did."""
        ours, theirs = (
            [leaf for leaf in pytree.tree_leaves(opened(value)) if isinstance(leaf, Tensor)]
            for value in (wanted, given)
        )
        if [t.shape for t in ours] != [t.shape for t in theirs]:
            return cls(([tuple(t.shape) for t in theirs], [tuple(t.shape) for t in ours]), 0.0, False)
        largest = 0.0
        floats = [t for t in ours if t.is_floating_point() and t.numel() and not t.is_meta]
        is_empty = bool(floats) and all(bool(t.isnan().all()) for t in floats)
        for a, b in zip(ours, theirs, strict=True):
            if a.is_meta or not a.numel():
                continue
            wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float64)
            largest = max(largest, _largest(a.to(b.device, wide), b.to(wide)))
            try:
                dtype = _coarser(a.dtype, b.dtype)
                torch.testing.assert_close(b.to(dtype), a.to(b.device, dtype), equal_nan=True)
            except AssertionError:
                return cls(None, largest, False)
        return cls(None, largest, True, is_empty)


def _largest(a: Tensor, b: Tensor) -> float:
    """The largest difference of two elements; infinite where one of them alone is not a number."""
    is_same = (a == b) | (a.isnan() & b.isnan())
    return float((a - b).abs().nan_to_num(nan=math.inf).masked_fill(is_same, 0).max())


def _coarser(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """The one of two dtypes that rounds more, so that its tolerances count; ``b`` if one is no float."""
    if not (a.is_floating_point and b.is_floating_point):
        return b
    return max(b, a, key=lambda dtype: torch.finfo(dtype).eps)


def computes_the_same(host: Host, plain: nn.Module, blocks: Iterable[nn.Module] = ()) -> bool:
    """Whether a module returns, for the host's example call in eval mode, the bits that the host does.

    Args:
        host: the host.
        plain: the module.
        blocks: modules in it that have to run: one with zeroed output layers changes no value.
    """
    if any(tensor.is_meta for tensor in plain.parameters()):
        return False  # which cannot be seen
    wanted = returned_by(host)
    try:
        with called(blocks) as left_out:
            found, is_grown = run_plain(host, plain)
        return is_grown and not left_out and same_bits(opened(wanted), opened(found))
    except Exception:  # the code is made for another number of blocks
        return False


@contextmanager
def called(blocks: Iterable[nn.Module]) -> Iterator[list[nn.Module]]:
    """Watches whether modules are called; what it yields has those that were not."""
    left_out = list(blocks)

    def ran(module: nn.Module, _: Any) -> None:
        left_out[:] = [block for block in left_out if block is not module]

    # Of all modules: what hangs at one is put back, with all that its closure has, when the run has ended.
    handle = register_module_forward_pre_hook(ran)
    try:
        yield left_out
    finally:
        handle.remove()


def returned_by(host: Host) -> Any:
    """What the host returns for its example call in eval mode; leaves it as it was."""
    with engine.untouched(host), engine.probing(host, host.structure, host.phase) as model:
        return run_example(host, model)


def run_plain(host: Host, plain: nn.Module) -> tuple[Any, bool]:
    """What a plain form returns for the example call, and whether all that grew ran in it.

    Code of a plain form warns where it runs without: what has learnt nothing yet changes no value.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = run_example(host, plain)
    return found, not any("it runs without what was grown" in str(w.message) for w in said)


def run_example(host: Host, module: nn.Module) -> Any:
    """What ``module`` returns for the host's example call in eval mode; leaves it as it was."""
    modules = [
        part for tree in (module, *engine.trees(host)[1:]) for part in tree.modules()
    ]  # seeds have their own
    modes = [(part, part.training) for part in modules]
    args, kwargs = host.example_for(module)
    try:
        with torch.no_grad(), state_untouched(module):
            for part in modules:
                part.training = False
            return module(*args, **kwargs)
    finally:
        for part, mode in modes:
            part.training = mode
