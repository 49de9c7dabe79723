"""Blueprints: named factories of seed modules.

A factory is called as ``factory(slot, **config)`` and returns an ``nn.Module`` that maps a value of
the slot's shape to one of the same shape. A *branch* is added to the host's value (mode
``residual``); under ``convex`` it is wrapped so that it replaces it by ``x + branch(x)``.
"""

from fxgraft.blueprints.branches import conv_bottleneck, low_rank, mlp
from fxgraft.blueprints.registry import Blueprint, Factory, get, names, register

register("conv_bottleneck", conv_bottleneck, branch=True)
register("mlp", mlp, branch=True)
register("low_rank", low_rank, branch=True)

__all__ = ["Blueprint", "Factory", "get", "names", "register"]
