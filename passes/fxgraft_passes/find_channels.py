"""Find the channels of a graph that can only grow together.

before::

    up = self.up(x)                 # Linear(4, 8)
    gelu = gelu(up)
    down = self.down(gelu)          # Linear(8, 3)

after (the graph is the same; ``meta`` is annotated)::

    up = self.up(x)                 # meta["channels"] = (("x",), ("up",)): for each dimension its groups
    gelu = gelu(up)                 # meta["channels"] = ((), ("up",))
    down = self.down(gelu)          # meta["channels"] = ((), ("down",))

`channels_of` gives the groups: ``"up"`` has the rows of ``up.weight``, ``up.bias``, and the columns of
``down.weight``; ``"down"`` is fixed, as it is a size of the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.fx as fx
from torch import Tensor
from torch.fx.passes.infra.pass_base import PassResult

from fxgraft_passes.base import GraphPass
from fxgraft_passes.channels.groups import ChannelGroup, find
from fxgraft_passes.channels.layout import atoms
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.channels.trying import tried
from fxgraft_passes.errors import ChannelError
from fxgraft_passes.example_calls import check_example, example_of
from fxgraft_passes.metadata import metadata

_KEY = "channels"


@dataclass(frozen=True, eq=False)
class FindChannels(GraphPass):
    """Find the channel groups of a ``GraphModule``, for `channels_of`. The graph is not modified.

    Attributes:
        example_args: inputs to run it with, in eval and in train mode; None: generated, where its
            placeholders say of what form they are.
        example_kwargs: keyword inputs. Default none.

    Raises:
        ChannelError: it is given a graph instead of a module; no example inputs can be generated; or those
            given are no tuple, or the module does not run with them.
    """

    example_args: tuple[Any, ...] | None = None
    example_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, graph_module: fx.GraphModule) -> PassResult:
        args = example_of(graph_module) if self.example_args is None else self.example_args
        check_example(graph_module, args, self.example_kwargs, "FindChannels", ChannelError)
        subject = Subject.of(graph_module, args, self.example_kwargs)
        run = _Run(graph_module)
        subject.run = run.run_by_name
        groups = tried(subject, find(subject))
        _annotate(groups, run.values)
        graph_module.meta[_KEY] = _FoundGroups(groups)
        return PassResult(graph_module, False)

    def rewrite(self, graph: fx.Graph) -> bool:
        raise ChannelError("FindChannels looks at a run, and needs a GraphModule: call it on one")


def channels_of(graph_module: fx.GraphModule) -> Mapping[str, ChannelGroup]:
    """Name -> `ChannelGroup`, as found by `FindChannels`.

    Args:
        graph_module: one that `FindChannels` was called on.

    Raises:
        ChannelError: `FindChannels` has not run on it.
    """
    if graph_module.meta.get(_KEY) is None:
        raise ChannelError(
            "expected a GraphModule that FindChannels has looked at: FindChannels(example_args)(gm)"
        )
    found: Mapping[str, ChannelGroup] = graph_module.meta[_KEY]
    return found


class _FoundGroups(Mapping[str, ChannelGroup]):
    """Groups by name. A copy of the module has the same ones; of a pickled one they are to be found again."""

    def __init__(self, groups: Mapping[str, ChannelGroup]):
        self._groups = dict(groups)

    def __getitem__(self, name: str) -> ChannelGroup:
        return self._groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def __deepcopy__(self, memo: dict[int, Any]) -> _FoundGroups:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class _Run(fx.Interpreter):
    """Runs the graph, and keeps what each node computed first."""

    def __init__(self, graph_module: fx.GraphModule):
        super().__init__(graph_module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_by_name(self, *args: Any, **kwargs: Any) -> Any:
        """As the module is called: arguments by name are placed where the graph has them."""
        names = [node.target for node in self.graph.nodes if node.op == "placeholder"]
        rest = [kwargs[name] for name in names[len(args) :] if name in kwargs]
        return self.run(*args, *rest)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values.setdefault(n, value)
        return value


def _annotate(groups: Mapping[str, ChannelGroup], values: Mapping[fx.Node, Any]) -> None:
    names = {group.atom: name for name, group in groups.items()}
    analysis = next((group.analysis for group in groups.values()), None)
    for node, value in values.items():
        metadata(node).pop("channels", None)
        if analysis is not None and isinstance(value, Tensor) and analysis.knows(value):
            found = (atoms(layout) for layout in analysis.of(value))
            metadata(node)["channels"] = tuple(tuple(names[a] for a in dim if a in names) for dim in found)
