"""Models that have a ``state_dict`` or a ``load_state_dict`` of their own.

A host's state goes through ``nn.Module``'s, which calls ``state_dict`` of the model with torch's arguments
and the model's ``_load_from_state_dict``, but not its ``load_state_dict``.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from fxgraft.capture.fallback import logger
from fxgraft.errors import CheckpointError

_said: weakref.WeakSet[type] = weakref.WeakSet()


def say_own_loading(root: nn.Module) -> None:
    """Say once for a class that its ``load_state_dict`` is not called."""
    kind = type(root)
    if kind.load_state_dict is nn.Module.load_state_dict or kind in _said:
        return
    _said.add(kind)
    logger.warning(
        "%s has a load_state_dict of its own, which is not called where a state or a checkpoint is loaded "
        "into a host of it: what it does beside nn.Module's is left out. Do that in _load_from_state_dict, "
        "or in a hook of register_load_state_dict_post_hook, both of which are called",
        kind.__name__,
    )


def state_of(root: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """``root.state_dict(...)``. Raises `CheckpointError` where that takes other arguments than torch's."""
    if type(root).state_dict is nn.Module.state_dict:
        return root.state_dict(*args, **kwargs)
    try:
        return root.state_dict(*args, **kwargs)
    except TypeError as error:
        raise CheckpointError(
            f"{type(root).__name__}.state_dict: expected one that takes destination, prefix and keep_vars as "
            f"nn.Module's does, and passes them on; got {type(error).__name__}: {error}"
        ) from error
