"""How often something was compiled."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from fxgraft import _torch


def counting_backend(inner: str = "aot_eager") -> Any:
    """A ``torch.compile`` backend that counts graphs in its attribute ``frame_count``.

    Args:
        inner: the backend that compiles. Default ``"aot_eager"``.
    """
    return _torch.counting_backend(inner)


def no_recompiles() -> AbstractContextManager[Any]:
    """A context in which a compilation raises."""
    return torch.compiler.set_stance("fail_on_recompile")  # type: ignore[no-any-return]
