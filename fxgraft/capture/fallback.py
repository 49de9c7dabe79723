"""What is done of a call that is not of the form that a region was traced in: its seeds do not run.

The call runs the module's own ``forward``. It is counted, in eager mode and in compiled code alike, and
said once in the log (`logging.getLogger("fxgraft")`).
"""

from __future__ import annotations

import logging
import weakref

import torch
from torch import Tensor, nn

from fxgraft_passes.errors import FxGraftError

logger = logging.getLogger("fxgraft")

COUNTER = "_fallbacks"
"""The attribute of a module with grafts that counts: no buffer, as the model's state has none of it."""

_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_said: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_said_of_kinds: weakref.WeakSet[type] = weakref.WeakSet()


def name_region(module: nn.Module, name: str) -> None:
    """Let the log call ``module`` by its qualified name."""
    _names[module] = name


def new_counter() -> Tensor:
    """A count of 0: int64, 0-d, on the CPU.

    A tensor, because compiled code adds to it in place at every call, where a Python number would be a
    constant of the code (and a recompilation at each change). In code that falls back, and only there,
    it keeps ``mode="reduce-overhead"`` from using CUDA graphs.
    """
    with torch.inference_mode(False):
        return torch.zeros((), dtype=torch.int64, device="cpu")


def fell_back(module: nn.Module) -> None:
    """Count a call of ``module`` in which its seeds do not run, and say so the first time.

    Raises:
        FxGraftError: in ``torch.export``: the program would be another model than the host.
    """
    if torch.compiler.is_exporting():
        raise FxGraftError(
            f"{_names.get(module, type(module).__name__)!r} is exported in another form of call than in the "
            f"example call of fxgraft.trace: without its seeds the program would be another model"
        )
    counter = getattr(module, COUNTER, None)
    if counter is not None:
        counter.add_(1)
    if torch.compiler.is_compiling():
        _say_at_compile_time(type(module))
    elif module not in _said:
        _said.add(module)
        name = _names.get(module)
        _say(f"{name!r} ({type(module).__name__})" if name else f"the {type(module).__name__}")


def _say_at_compile_time(kind: type) -> None:
    # Runs while the call is compiled: nothing of it is in the graph. The name of the module would make
    # graphs of equal modules differ.
    if kind not in _said_of_kinds:
        _said_of_kinds.add(kind)
        _say(f"a {kind.__name__}")


# What torch.compiler.assume_constant_result does. That imports the compiler, which takes a second.
_say_at_compile_time._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _say(who: str) -> None:
    logger.warning(
        "%s was called with other kinds of arguments than in the example call of fxgraft.trace: it runs "
        "as the model has it, and its seeds do not run in such calls; host.explain() counts them, and "
        "has the guards that a call has to pass",
        who,
    )
