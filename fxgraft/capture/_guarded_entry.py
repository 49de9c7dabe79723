"""The ``forward`` in front of a graph, as Python: calls of another form go to the module's own ``forward``.

def forward(self, hidden_states, attention_mask=None, use_cache=False):
if not (attention_mask is None and use_cache is False):
_fell_back(self, {'hidden_states': hidden_states, ...})
return _fallback(self, hidden_states, attention_mask=attention_mask, ...)
return _graph(self, hidden_states)
"""

from __future__ import annotations

import textwrap
from inspect import Parameter
from typing import Any

import torch

from fxgraft import _torch
from fxgraft.capture.call_form import CallForm
from fxgraft.capture.fallback import fell_back
from fxgraft.errors import SlotError


class Name:
    """Prints as a bare name where a signature prints a default."""

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return self.name


def printed_default(parameter: Parameter) -> Any:
    """The printed form of the default of ``parameter``: `Parameter.empty`, a literal, or a name."""
    if parameter.default is Parameter.empty:
        return Parameter.empty
    simple = parameter.default is None or type(parameter.default) in (bool, int, str)
    return parameter.default if simple else Name(f"_default_{parameter.name}")


_LOCALS = ("self", "_graph", "_fallback", "opened", "as_traced")


def entry_source(form: CallForm) -> str:
    """The source of the guarded ``forward``. Its names are in `entry_scope`, ``_graph`` and ``_fallback``.

    Raises:
        SlotError: a parameter has one of these names.
    """
    reserved = {*_LOCALS, *entry_scope(form)}
    for name in form.signature.parameters:
        if name in reserved:
            raise SlotError(
                f"a forward has a parameter named {name!r}: expected any name but this one, which "
                f"generated code needs for itself; rename it, or take a slot of another module"
            )
    parameters = [
        p.replace(annotation=Parameter.empty, default=printed_default(p))
        for p in form.signature.parameters.values()
    ]
    head = str(form.signature.replace(parameters=parameters, return_annotation=Parameter.empty))
    again = ", ".join(_pass_on(form, p) for p in form.signature.parameters.values())
    given = ", ".join(f"{name!r}: {name}" for name in form.signature.parameters)
    inputs = ", ".join(known.expression for known in form.inputs)
    run = f"    return _graph(self, {inputs})"
    # Where the graph raises inside of its part under no_grad, gradients are on again outside.
    if form.switches_gradients:
        run = f"    with _set_gradients(_gradients_on()):\n    {run}"
    if form.switches_autocast:  # likewise
        run = (
            f"    opened = _open_autocasts()\n"
            f"    try:\n{textwrap.indent(run, '    ')}\n"
            f"    except BaseException:\n        _leave_autocasts(opened)\n        raise"
        )
    condition = "\n            and ".join(form.guards) or "True"
    check = f"    if not (\n            {condition}\n    ):\n"
    if form.facts:  # what they look at may be gone
        check = (
            f"    try:\n        as_traced = (\n            {condition}\n        )\n"
            f"    except (AttributeError, KeyError, IndexError, TypeError):\n        as_traced = False\n"
            f"    if not as_traced:\n"
        )
    return (
        f"def forward(self, {head[1:-1]}):\n"
        f"{check}"
        f"        _fell_back(self, {{{given}}})\n"
        f"        return _fallback(self, {again})\n"
        f"{run}\n"
    )


def _pass_on(form: CallForm, parameter: Parameter) -> str:
    name = parameter.name
    match parameter.kind:
        case Parameter.VAR_POSITIONAL:
            return f"*{name}"
        case Parameter.VAR_KEYWORD:
            return f"**{name}"
    kinds = [known.kind for known in form.signature.parameters.values()]
    position = list(form.signature.parameters).index(name)
    must = parameter.kind is Parameter.POSITIONAL_ONLY or Parameter.VAR_POSITIONAL in kinds[position:]
    return name if must or position < form.positional else f"{name}={name}"


def entry_scope(form: CallForm) -> dict[str, Any]:
    """The names that `entry_source` uses."""
    defaults = {
        f"_default_{p.name}": p.default
        for p in form.signature.parameters.values()
        if p.default is not Parameter.empty
    }
    called = {
        "_fell_back": fell_back,
        "_set_gradients": torch.set_grad_enabled,
        "_gradients_on": torch.is_grad_enabled,
        "_open_autocasts": _torch.open_autocasts,
        "_leave_autocasts": _torch.leave_autocasts,
    }
    return {**defaults, **form.names, **called}
