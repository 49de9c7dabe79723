"""What tests check: values to the bit, of whatever a model can show, and how often something was compiled.

``torch.equal`` takes -0.0 for 0.0 and NaN for different from itself: here values are compared by their bits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft import _torch
from fxgraft.util.bits import same_bits

Record = dict[str, Any]


def differences(a: Record, b: Record) -> list[str]:
    """The keys of two dictionaries whose values differ in a bit.

    Args:
        a: name -> any structure of tensors.
        b: the same.
    """
    keys = [*a, *(key for key in b if key not in a)]
    return [key for key in keys if key not in a or key not in b or not same_bits(a[key], b[key])]


def assert_same_bits(actual: Any, expected: Any, what: str = "values") -> None:
    """Raise `AssertionError`, naming what differs, unless the two are equal in every bit.

    Args:
        actual: a tensor, or any structure of tensors.
        expected: the same.
        what: how the error calls the values. Default ``"values"``.
    """
    if isinstance(actual, dict) and isinstance(expected, dict):
        assert list(actual) == list(expected), f"{what}: other keys"
        assert not differences(actual, expected), f"{what} differ: {differences(actual, expected)[:10]}"
        return
    assert same_bits(actual, expected), f"{what} differ:\n{actual}\n{expected}"


def frozen(value: Any) -> Any:
    """A copy of a structure of tensors, which later training does not change.

    Args:
        value: any structure of tensors.
    """
    return pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), value)


def loss_of(output: Any) -> Tensor:
    """A scalar loss that depends on each element of each floating-point output, each with another weight.

    Args:
        output: any structure of floating-point tensors.
    """
    parts = []
    for leaf in pytree.tree_leaves(output):
        weights = torch.linspace(0.5, 1.5, leaf.numel(), dtype=leaf.dtype).view_as(leaf)
        parts.append(((leaf - 0.5).square() * weights).mean())
    return torch.stack(parts).sum()


def gradients(module: nn.Module) -> Record:
    """Copies of the gradients of the host's parameters; None where there is none."""
    return {n: frozen(p.grad) for n, p in module.named_parameters() if not n.startswith("_seeds.")}


def observed_call(module: nn.Module, batch: Any, seed: int = 3) -> Record:
    """Outputs, gradients and new buffers of one forward and backward pass; the module is restored.

    Args:
        module: a host or any module that takes ``batch`` as its only argument.
        batch: the input.
        seed: the random seed of the call. Default 3.
    """
    buffers = [(b, b.clone()) for b in module.buffers()]
    registers = [(m, dict(m._buffers)) for m in module.modules()]
    kept = [(p, p.grad) for p in module.parameters()]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            output = module(batch)
            loss_of(output).backward()  # type: ignore[no-untyped-call]
            rng = torch.get_rng_state()
        return {
            "output": frozen(output),
            "gradients": gradients(module),
            "buffers": {n: b.clone() for n, b in module.named_buffers() if not n.startswith("_seeds.")},
            "rng": rng,
        }
    finally:
        for parameter, grad in kept:
            parameter.grad = grad
        for inner, register in registers:
            inner._buffers.update(register)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def counting_backend(inner: str = "aot_eager") -> Any:
    """A ``torch.compile`` backend that counts graphs in its attribute ``frame_count``.

    Args:
        inner: the backend that compiles. Default ``"aot_eager"``.
    """
    return _torch.counting_backend(inner)


def no_recompiles() -> AbstractContextManager[Any]:
    """A context in which a compilation raises."""
    return torch.compiler.set_stance("fail_on_recompile")  # type: ignore[no-any-return]
