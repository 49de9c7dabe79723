"""Let channels grow, with all that goes with them; the function stays.

before::

    up = self.up(x)                         # Linear(4, 8)
    view = up.view(2, 7, 2, 4)
    ...
    down = self.down(flat)                  # Linear(8, 3)

after, ``Widen("up", by=4)``::

    up = self.up(x)                         # Linear(4, 12)
    view = up.view(2, 7, 3, 4)
    ...
    down = self.down(flat)                  # Linear(12, 3), the new columns zero
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch.fx as fx
from torch.fx.passes.infra.pass_base import PassResult

from fxgraft_passes.base import GraphPass
from fxgraft_passes.channels.comparing import outputs
from fxgraft_passes.channels.groups import find
from fxgraft_passes.channels.growth import grow
from fxgraft_passes.channels.replacing import replace_tensors
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.channels.trying import tried_one
from fxgraft_passes.errors import ChannelError
from fxgraft_passes.example_calls import check_example, example_of


@dataclass(frozen=True, eq=False)
class Widen(GraphPass):
    """Add channels to one channel group of a ``GraphModule``. If it fails, nothing is changed.

    Parameters stay the same objects. Copies are checked first to compute the same outputs.

    Attributes:
        group: the name of the group, as in `channels_of`.
        by: the number of new channels; a multiple of the group's ``grain``.
        example_args: inputs to run it with; None as for `FindChannels`.
        example_kwargs: the same, by name.
        init: ``"zero"`` (the default) or ``"split"``, see ``SeedManager.widen``.
        seed: the random seed of the new weights. Default 0.

    Raises:
        ChannelError: there are no such channels, they cannot grow, or not by this number; the outputs
            would differ; or the example inputs are no tuple, or the module does not run with them.
    """

    group: str
    by: int
    example_args: tuple[Any, ...] | None = None
    example_kwargs: Mapping[str, Any] = field(default_factory=dict)
    init: str = "zero"
    seed: int = 0

    def apply(self, graph_module: fx.GraphModule) -> PassResult:
        args = example_of(graph_module) if self.example_args is None else self.example_args
        check_example(graph_module, args, self.example_kwargs, "Widen", ChannelError)
        subject = Subject.of(graph_module, args, self.example_kwargs)
        groups = find(subject)
        if self.group not in groups:
            raise ChannelError(
                f"there are no channels {self.group!r}; there are: {', '.join(groups) or 'none'}"
            )
        group = tried_one(subject, groups, self.group)
        with subject.session():
            before = outputs(subject)
            growth = grow(subject, group, self.by, self.init, self.seed, before)
        with ExitStack() as undo:
            replace_tensors(undo, growth, subject)
            for setting in growth.settings:
                undo.callback(setting.apply(subject))
            undo.pop_all()
        graph_module.meta.pop("channels", None)
        return PassResult(graph_module, True)

    def rewrite(self, graph: fx.Graph) -> bool:
        raise ChannelError("Widen changes parameters, and needs a GraphModule: call it on one")
