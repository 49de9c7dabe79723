"""What passes write into ``node.meta``: every key, with the type of its value.

``node.meta`` itself has no types. `metadata` is the same dictionary with those of `NodeMetadata`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, cast

import torch.fx as fx

if TYPE_CHECKING:
    from fxgraft_passes.find_slots import Slot
    from fxgraft_passes.observe import Observation
    from fxgraft_passes.sites import GraftSite


class NodeMetadata(TypedDict, total=False):
    """The keys. No node has all of them.

    Attributes:
        observation: what a real run showed of the value.
        slot: the slot, where a seed may go behind the node.
        no_slot: otherwise the reason.
        qualified_name: the name of the slot, or of a place that is none.
        channels: for each dimension of the value, the names of the groups of channels in it.
        graft: of the node whose value leaves a slot: the graft there.
        graft_of: of all nodes of a graft: the name of its seed.
        reads_source: of the node by which a branch reads its source: True.
        called_with: of a call with further arguments: the place, or the name, of the value among these.
        edge: of a node that stands between two others, for one reader alone: the value and the reader.
    """

    observation: Observation
    slot: Slot
    no_slot: str
    qualified_name: str
    channels: tuple[tuple[str, ...], ...]
    graft: GraftSite
    graft_of: str
    reads_source: bool
    called_with: int | str
    edge: tuple[str, str]


def metadata(node: fx.Node) -> NodeMetadata:
    """The ``meta`` of a node, not a copy of it."""
    return cast("NodeMetadata", node.meta)
