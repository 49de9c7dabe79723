"""The operators that a trace puts into a graph: branches that were taken, modes, and code without a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fxgraft.errors import FxGraftError


def assume(condition: bool, expected: bool) -> None:
    """Stand for a branch on sizes that a trace took. Raises `FxGraftError` where it would not be taken."""
    if bool(condition) is not expected:
        raise FxGraftError(
            "a module with a graft in it was called with sizes for which its code takes another path "
            "than in the example call; trace the host with an example of these sizes, or cull the graft"
        )


def by_mode(training: bool, in_training: Any, in_eval: Any) -> Any:
    """The constant that a traced module passed on in its current train/eval mode."""
    return in_training if training else in_eval


def run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A module's own code as one node of a graph. (Dynamo cannot trace ``operator.call``.)"""
    return forward(*args, **kwargs)
