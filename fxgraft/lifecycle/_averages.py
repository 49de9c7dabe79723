"""Averages of a host's weights (EMA, SWA), where an inserted block joins them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fxgraft.host.host import Host
from fxgraft.seeds.seed import Seed


def average_as_its_original(host: Host, seed: Seed) -> None:
    """Let the averages of a new block begin with those of the block that it is a copy of.

    So an average is what it would be if the block had been there from the beginning. Where it is no copy
    (its zeroed output layers, a block that was initialised anew) its average begins with its values.

    Args:
        host: that the block was just inserted in, as were its averages.
        seed: of the block; of any other seed nothing is done.
    """
    like = seed.config.get("like")
    if seed.spec.call is None or seed.config.get("init") == "random" or not host._links.followers:
        return
    if not isinstance(like, str) or like not in host.regions:
        return
    new, original = _parameters(host, seed.name), dict(host.regions[like].module.named_parameters())
    for twin in host._links.followers:
        averages, theirs = _parameters(twin, seed.name), dict(twin.regions[like].module.named_parameters())
        with torch.no_grad():
            for name, average in averages.items():
                source = original.get(name)
                if source is None or source.shape != average.shape or _is_zeroed(new[name], source):
                    continue
                average.copy_(theirs[name])


def _parameters(host: Host, seed: str) -> Mapping[str, nn.Parameter]:
    return dict(host.graft(seed).module.named_parameters())


def _is_zeroed(parameter: nn.Parameter, source: nn.Parameter) -> bool:
    return not bool(parameter.any()) and bool(source.any())
