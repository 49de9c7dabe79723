"""Calls in which the code of a host takes another way than in its example call, as far as sizes decide it.

    if x.shape[0] < 4: ...          # an example of 3 rows: a call of 4

The channels of a host are found in its example call. Code can use them otherwise in a call of other sizes, so
a growth is compared in such calls, too. The conditions are those of the traced graphs that compare one size
with a constant; a call is made up of the rows of the example, again and again.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgraft.capture import trace_operators
from fxgraft.host.channels import Example
from fxgraft.host.host import Host

_SIGNS = {
    operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">=", operator.eq: "==",
    operator.ne: "!=",
}  # fmt: skip

MOST_CALLS = 4
MOST_ROWS = 512
"""Of one call; what begins at larger sizes is not tried."""


@dataclass(frozen=True)
class OtherCall:
    """A call that does not meet a condition.

    Attributes:
        words: what it is about: the module, the condition, and the size.
        args, kwargs: of the call.
    """

    words: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class _SizeCondition:
    """``size(axis) sign constant`` is ``expected``."""

    axis: int
    compare: Any
    constant: int
    expected: bool

    def other_size(self) -> int | None:
        """A size near the constant for which it is not as expected."""
        near = (self.constant, self.constant - 1, self.constant + 1)
        fits = (n for n in near if 0 < n <= MOST_ROWS and self.compare(n, self.constant) is not self.expected)
        return next(fits, None)

    def __str__(self) -> str:
        words = f"size({self.axis}) {_SIGNS[self.compare]} {self.constant}"
        return words if self.expected else f"not {words}"


def other_calls(host: Host, example: Example) -> list[OtherCall]:
    """Some calls of ``host`` like ``example`` that take another way. It may not run with them."""
    return list(islice(_calls(host, example), MOST_CALLS))


def _calls(host: Host, example: Example) -> Iterator[OtherCall]:
    sizes: set[tuple[int, int]] = set()
    for name, region in host.regions.items():
        for assumed in region.base.find_nodes(op="call_function", target=trace_operators.assume):
            node, expected = assumed.args[:2]
            condition = _condition(node, expected)
            size = None if condition is None else condition.other_size()
            if condition is None or size is None or (condition.axis, size) in sizes:
                continue
            sizes.add((condition.axis, size))
            if (made := _resized(example, condition.axis, size)) is not None:
                where = f"the code of {name}" if name else "the code of the model"
                yield OtherCall(
                    f"with size({condition.axis}) == {size}, where {where} takes another way "
                    f"than for {condition}",
                    *made,
                )


def _condition(node: Any, expected: bool) -> _SizeCondition | None:
    if not isinstance(node, fx.Node) or node.target not in _SIGNS or len(node.args) != 2:
        return None
    size, constant = node.args  # in this order: Python turns `4 > size` round for torch.fx
    axis = _axis(size)
    if axis is None or type(constant) is not int:
        return None
    return _SizeCondition(axis, node.target, constant, expected)


def _axis(node: Any) -> int | None:
    """Of which axis a node is the size, if it is one."""
    if not isinstance(node, fx.Node):
        return None
    is_item = node.target is operator.getitem and _is_size(node.args[0], 1)
    if not (is_item or _is_size(node, 2)):
        return None
    axis = node.args[1]
    return axis if type(axis) is int and axis >= 0 else None


def _is_size(node: Any, arguments: int) -> bool:
    """Whether a node is ``x.size()``, or with two arguments ``x.size(axis)``."""
    if not isinstance(node, fx.Node) or node.op != "call_method" or node.target != "size":
        return False
    return len(node.args) == arguments


def _resized(example: Example, axis: int, size: int) -> Example | None:
    """The example with so many rows along an axis, in all tensors of as many rows as the first one."""
    tensors = [t for t in pytree.tree_leaves(example) if isinstance(t, Tensor) and t.dim() > axis]
    if not tensors or not (rows := tensors[0].size(axis)) or rows == size:
        return None

    def resized(tensor: Tensor) -> Tensor:
        if tensor.dim() <= axis or tensor.size(axis) != rows:
            return tensor
        return tensor.index_select(axis, torch.arange(size, device=tensor.device) % rows)

    args, kwargs = pytree.tree_map_only(Tensor, resized, example)
    return args, kwargs
