"""Calls of another form than the one that a region was traced in: its seeds do not run in them.

The call runs the module's own ``forward``. It is counted, in eager mode and in compiled code alike, and
said once in the log (`logging.getLogger("fxgraft")`).
"""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fxgraft import _torch
from fxgraft.errors import FxGraftError

logger = logging.getLogger("fxgraft")

COUNTER = "_fallbacks"
"""The attribute of a module with grafts that counts: no buffer, as the model's state has none of it."""


class Form(Protocol):
    """What a call has to be; see ``CallForm``."""

    def unmet(self, given: Mapping[str, Any]) -> str | None:
        """The first condition that a call with these arguments does not meet."""


@dataclass(frozen=True)
class Mismatch:
    """Why the first call of a module fell back.

    Attributes:
        expected: the condition that was not met; empty where no single one is known.
        what: what it is about, as an expression of the module's arguments; empty where that is not known.
        got: what that was in the call, in words.
    """

    expected: str = ""
    what: str = ""
    got: str = ""

    def __str__(self) -> str:
        got = f"; got {self.what} = {self.got}" if self.what else ""
        return f"expected {self.expected}{got}" if self.expected else ""


class FallbackReport(IntEnum):
    """What is done about a call that falls back."""

    IGNORE = 0
    """Nothing: the call is of fxgraft's own making, and none of the host's."""
    COUNT = 1
    """It is counted, and `mismatch_of` knows why."""
    LOG = 2
    """It is counted, and the first one of each module is logged."""


_known: weakref.WeakKeyDictionary[nn.Module, tuple[str, Form]] = weakref.WeakKeyDictionary()
_mismatches: weakref.WeakKeyDictionary[nn.Module, Mismatch] = weakref.WeakKeyDictionary()
_set_once: weakref.WeakKeyDictionary[nn.Module, frozenset[str]] = weakref.WeakKeyDictionary()
_first_calls: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_fallback_report = FallbackReport.LOG
_said_of_kinds: weakref.WeakSet[type] = weakref.WeakSet()


def set_expected_form(module: nn.Module, name: str, form: Form) -> None:
    """Set the name of ``module`` and the form of its calls, for log messages."""
    _known[module] = name, form


def say_first_call(root: nn.Module, names: frozenset[str]) -> None:
    """Set which attributes the first call of a model sets, for log messages."""
    for module in root.modules() if names else ():
        _set_once[module] = names


def new_counter() -> Tensor:
    """A count of 0: int64, 0-d, on the CPU.

    A tensor, because compiled code adds to it in place at every call, where a Python number would be a
    constant of the code (and a recompilation at each change). In code that falls back, and only there,
    it keeps ``mode="reduce-overhead"`` from using CUDA graphs.
    """
    with torch.inference_mode(False):
        return torch.zeros((), dtype=torch.int64, device="cpu")


def fell_back(module: nn.Module, given: Mapping[str, Any]) -> None:
    """Count a call of ``module`` with these arguments, in which its seeds do not run; say so the first time.

    Raises:
        FxGraftError: in ``torch.export``: the program would be another model than the host.
    """
    if torch.compiler.is_exporting():
        raise FxGraftError(
            f"{_name(module) or type(module).__name__!r} is exported in another form of call than in the "
            f"example call of fxgraft.trace: without its seeds the program would be another model. Trace "
            f"with an example that is called as the export calls it"
        )
    if _fallback_report is FallbackReport.IGNORE:
        return
    counter = getattr(module, COUNTER, None)
    if counter is not None:
        counter.add_(1)
    if torch.compiler.is_compiling():
        _say_at_compile_time(type(module))
    elif module not in _mismatches:
        _mismatches[module] = mismatch = _mismatch(module, given)
        name, kind = _name(module), type(module).__name__
        who = f"{name} ({kind})" if name else f"the {kind}"
        if (set_now := _set_by_this_call(module, mismatch)) is not None:
            del _mismatches[module]  # it says nothing of other calls
            _first_calls.add(module)
            _say_first_call(who, set_now)
        else:
            _say(who, f" ({mismatch})" if mismatch.expected else "")


def nothing_lost(module: nn.Module, given: Mapping[str, Any]) -> None:
    """A call of another form of a module in which all that grew runs in such a call, too."""


def mismatch_of(module: nn.Module) -> Mismatch | None:
    """Why its first call in eager mode fell back; None if none did."""
    return _mismatches.get(module)


def take_first_call(module: nn.Module) -> bool:
    """Whether it fell back in the first call of a model, which is as it should be; says so once."""
    was_first = module in _first_calls
    _first_calls.discard(module)
    return was_first


@contextmanager
def report_fallbacks_at_most(report: FallbackReport) -> Iterator[None]:
    """Do no more than this of a call inside that falls back; where less is done already, that stays."""
    global _fallback_report
    before, _fallback_report = _fallback_report, min(_fallback_report, report)
    try:
        yield
    finally:
        _fallback_report = before


def _mismatch(module: nn.Module, given: Mapping[str, Any]) -> Mismatch:
    scope = {**given, "self": module}
    expected = _known[module][1].unmet(scope) if module in _known else None
    if expected is None:
        return Mismatch()
    _, _, compared = expected.partition(" and ")  # of "this is an int, and is 3" the second
    what = _COMPARES.split(compared or expected)[0]
    what = what.lstrip("(") if what.count("(") > what.count(")") else what
    try:
        return Mismatch(
            expected, what, _describe_value(eval(what, {}, scope))
        )  # of our own making, as the guard is
    except Exception:  # the guard is of another form than "this is that"
        return Mismatch(expected)


def _set_by_this_call(module: nn.Module, mismatch: Mismatch) -> str | None:
    """The attribute for which the first call of a model is of another form than the later ones, if it is."""
    if mismatch.got not in ("None", ""):
        return None
    words = set(_WORD.findall(mismatch.expected))
    return next((name for name in sorted(_set_once.get(module, ())) if name in words), None)


_WORD = re.compile(r"\w+")
_COMPARES = re.compile(r" (?:==|!=|<=|>=|<|>|is not|is|not in|in) ")


def _describe_value(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(value).__name__}"


def _name(module: nn.Module) -> str:
    name, _ = _known.get(module, ("", None))
    return repr(name) if name else ""


def _say_at_compile_time(kind: type) -> None:
    # Runs while the call is compiled: nothing of it is in the graph. The name of the module would make
    # graphs of equal modules differ.
    if kind not in _said_of_kinds:
        _said_of_kinds.add(kind)
        _say(f"a {kind.__name__}")


_torch.constant_when_compiled(_say_at_compile_time)


def _say_first_call(who: str, attribute: str) -> None:
    if _fallback_report is FallbackReport.LOG:
        logger.warning(
            "%s: the first call of this model sets %s, so it runs the model's own code: seeds there run from "
            "the second call on. Expected of such a model; to avoid it, call the host once before it grows",
            who,
            attribute,
        )


def _say(who: str, mismatch: str = "") -> None:
    if _fallback_report is not FallbackReport.LOG:
        return
    logger.warning(
        "%s was called with other kinds of arguments than in the example call of fxgraft.trace%s: it runs as "
        "the model has it, and its seeds do not run in such calls. Where they should, trace with an example "
        "that is such a call (example_args, example_kwargs); host.explain() counts them, and has all guards",
        who,
        mismatch,
    )
