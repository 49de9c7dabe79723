"""The graph rewrites of fxgraft, usable alone on any ``torch.fx.GraphModule``.

>>> from fxgraft_passes import FindSlots, Germinate, slots_of
>>> FindSlots(example_args=(x,))(graph_module)                        # doctest: +SKIP
>>> Germinate(node="relu", name="a", seed=nn.Linear(8, 8))(graph_module)  # doctest: +SKIP
"""

from fxgraft_passes.base import GraphPass
from fxgraft_passes.cull import Cull
from fxgraft_passes.find_channels import FindChannels, channels_of
from fxgraft_passes.find_slots import FindSlots, Slot, rejections_of, slots_of
from fxgraft_passes.fossilize import Fossilize
from fxgraft_passes.germinate import Germinate
from fxgraft_passes.graft import Call, Graft, GraftSpec, Phase
from fxgraft_passes.objectives import Objective
from fxgraft_passes.sites import GraftSite
from fxgraft_passes.split_edge import SplitEdge
from fxgraft_passes.verify import Verify
from fxgraft_passes.widen import Widen

__all__ = [
    "Call",
    "Cull",
    "FindChannels",
    "FindSlots",
    "Fossilize",
    "Germinate",
    "Graft",
    "GraftSite",
    "GraftSpec",
    "GraphPass",
    "Objective",
    "Phase",
    "Slot",
    "SplitEdge",
    "Verify",
    "Widen",
    "channels_of",
    "rejections_of",
    "slots_of",
]
