"""Models that write themselves to a folder by ``save_pretrained``, for ``from_pretrained`` to build them.

Such a folder has weights and a configuration and no structure: what grew would be lost. So while something
has grown in a module that can do so, its ``save_pretrained`` refuses, or a function that writes everything
replaces it. ``push_to_hub`` and the like go through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from fxgraft.errors import CheckpointError

WRITE = "save_pretrained"

Write = Callable[..., None]
"""Called with what ``save_pretrained`` was called with, and before that with the module's own method."""


class GuardedSave:
    """Replaces ``save_pretrained`` of a module in which something grew.

    Args:
        name: the module, for the message.
        grown: the seeds in it.
        own: the module's own method, for ``write``.
        write: what is called in its place; None refuses.
    """

    def __init__(
        self, name: str, grown: Iterable[str], own: Callable[..., Any] | None, write: Write | None = None
    ):
        self._name, self._grown, self._own, self._write = name, tuple(grown), own, write

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if self._write is not None:
            return self._write(self._own, *args, **kwargs)
        raise CheckpointError(
            f"{self._name}.{WRITE}: expected a model in which nothing grew; it has {', '.join(self._grown)}, "
            f"and from_pretrained would build it without them. manager.save(path) writes everything, for "
            f"fxgraft.SeedManager.load(path, fxgraft.trace(model, ...)); torch.save(fxgraft.unwrap(host), "
            f"path) a module with its fossils, for torch.load(path, weights_only=False)"
        )

    def __reduce__(self) -> Any:
        # The host sets it anew when it is copied; a part of it that is taken elsewhere keeps refusing.
        return GuardedSave, (self._name, self._grown, None)


def writers(root: nn.Module) -> dict[str, nn.Module]:
    """Qualified name -> module, of those that can write themselves."""
    return {name: m for name, m in root.named_modules() if callable(getattr(type(m), WRITE, None))}


def watch(
    modules: dict[str, nn.Module], grown: Callable[[str], list[str]], write: Write | None, root_name: str
) -> None:
    """Guard ``save_pretrained`` of each of ``modules`` in which something grew.

    Args:
        modules: of `writers`.
        grown: name of a module -> the seeds in it.
        write: what writes the root with all that grew, or None.
        root_name: what to call the root.
    """
    for name, module in modules.items():
        if seeds := grown(name):
            own = getattr(type(module), WRITE).__get__(module)
            module.__dict__[WRITE] = GuardedSave(name or root_name, seeds, own, None if name else write)
        else:
            module.__dict__.pop(WRITE, None)
