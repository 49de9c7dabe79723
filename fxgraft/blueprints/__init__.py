"""Blueprints: named factories of seed modules.

A factory is called as ``factory(slot, **config)`` and returns an ``nn.Module`` that maps a value of
the slot's shape to one of the same shape. A *branch* is added to the host's value (mode
``residual``); under ``convex`` it is wrapped so that it replaces it by ``x + branch(x)``. A
*replacement* takes the value's place (``convex``); where seeds are added it is wrapped as
``module(x) - x``.

================  ===================================================================================
`registry`        the table of blueprints, and what a blueprint is
`_shapes`         which values a blueprint takes, and the errors for the others
`_builtin`        branches: modules whose output is added to the value
`_parallel`       a branch with the structure of the layers that it is parallel to
`affine`          branches that scale and shift channels
`_context`        branches that look at a whole value: attention over positions, and over channels
`from_gradients`  GradMax: a branch initialised where the gradient of its weights is largest
`initial`         initial weights with which a branch adds nothing, and learns from its first step on
================  ===================================================================================

Group: the host. May import: helpers, graphs.
"""

from fxgraft.blueprints._builtin import conv_bottleneck, conv_depthwise, identity, low_rank, mlp, net2net
from fxgraft.blueprints._context import attention, squeeze_excite
from fxgraft.blueprints._parallel import parallel
from fxgraft.blueprints.affine import norm, scale_shift
from fxgraft.blueprints.from_gradients import gradmax
from fxgraft.blueprints.registry import Blueprint, Cost, Factory, get, names, register

_IMAGES, _FEATURES = ("NCHW",), ("NC", "NLC", "...C")
_BOTH = ("NC", "NLC", "NCHW", "...C")

register(
    "attention",
    attention,
    branch=True,
    source="Vaswani et al., 2017, arXiv:1706.03762; Wang et al., 2018, arXiv:1711.07971",
    accepts=("NLC", "NCHW"),
)
register(
    "conv_bottleneck",
    conv_bottleneck,
    branch=True,
    source="He et al., 2016, arXiv:1512.03385",
    accepts=_IMAGES,
)
register(
    "conv_depthwise",
    conv_depthwise,
    branch=True,
    source="Howard et al., 2017, arXiv:1704.04861",
    accepts=_IMAGES,
)
# A gate in front of nothing would never learn.
register("identity", identity, replaces=True, accepts=("any",), modes=("residual", "convex", "channelwise"))
register("low_rank", low_rank, branch=True, source="Hu et al., 2022, arXiv:2106.09685", accepts=_BOTH)
register("mlp", mlp, branch=True, source="Vaswani et al., 2017, arXiv:1706.03762", accepts=_FEATURES)
register("net2net", net2net, replaces=True, source="Chen et al., 2016, arXiv:1511.05641", accepts=_BOTH)
register(
    "norm",
    norm,
    branch=True,
    source="Ba et al., 2016, arXiv:1607.06450; Wu and He, 2018, arXiv:1803.08494",
    accepts=_BOTH,
)
# What it takes depends on the layers that it is parallel to.
register("parallel", parallel, branch=True, source="Chen et al., 2016, arXiv:1511.05641")
register("scale_shift", scale_shift, branch=True, source="Lian et al., 2022, arXiv:2210.08823", accepts=_BOTH)
register(
    "squeeze_excite", squeeze_excite, branch=True, source="Hu et al., 2018, arXiv:1709.01507", accepts=_IMAGES
)

__all__ = ["Blueprint", "Cost", "Factory", "get", "gradmax", "names", "register"]
