"""The module that holds the grafts of a graph module, and taking one out of it."""

from __future__ import annotations

from torch import nn

from fxgraft_passes.graft import SEEDS


def is_home(module: nn.Module) -> bool:
    """Whether it holds grafts and nothing else, and no class's code needs it."""
    own = (*module._parameters, *module._buffers)
    parts = module._modules.values()
    return type(module) is nn.Module and not own and all(p is not None and _is_graft(p) for p in parts)


def take_out(root: nn.Module, path: str) -> None:
    """Remove the graft at ``path``, and its home if that holds no other. One kept elsewhere stays there."""
    home, _, name = path.rpartition(".")
    holder = root._modules.get(home)
    if not home.startswith(SEEDS) or holder is None or not is_home(holder):
        return
    holder._modules.pop(name, None)
    if not holder._modules:
        delattr(root, home)


def _is_graft(module: nn.Module) -> bool:
    # By what it has: a module that was traced anew may hold a plain copy of it.
    return "module" in module._modules
