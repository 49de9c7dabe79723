"""The conditions inside of a graph as guards in front of it; see ``sizes``.

Sizes of values that are computed on the way become formulas over the sizes of the inputs (`_size_formulas`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch.fx as fx
from torch import nn

from fxgraft.capture._facts import Fact, Written
from fxgraft.capture._size_formulas import Formulas, calls_code, formulas, may_squeeze
from fxgraft.capture._sizes import (
    conditions,
    devices_of_example,
    drop_conditions,
    facts_of,
    kinds_of_example,
    layouts_of_example,
    ranks_of_example,
    sizes_of_example,
)
from fxgraft.capture.call_form import CallForm


def with_conditions(form: CallForm, module: nn.Module, graph: fx.Graph) -> CallForm:
    """The form with what ``graph`` assumes, which is taken out of the graph.

    Raises:
        SlotError: an assumption is about a size that depends on data.
    """
    if next(conditions(graph), None) is None:
        return form
    inputs = {known.name: known.expression for known in form.inputs}
    facts, unknown = facts_of(graph, inputs)
    asked = {condition.of for condition in unknown}
    if "kind" in asked:
        facts += kinds_of_example(module, graph, inputs)
    if "device" in asked:
        facts += devices_of_example(graph, inputs)
    if "layout" in asked:
        facts += layouts_of_example(module, graph, inputs)
    if of_rank := dict.fromkeys(condition.node for condition in unknown if condition.of == "rank"):
        facts += ranks_of_example(graph, inputs)
        if calls_code(module, of_rank):
            found = formulas(module, graph, inputs, of_rank)
            if may_squeeze(module, of_rank) if found is None else found.squeezes:
                facts += _as_formulas(found, graph, inputs)
    if of_size := dict.fromkeys(condition.node for condition in unknown if condition.of == "size"):
        found = formulas(module, graph, inputs, of_size)
        written, unknown = facts_of(graph, inputs, found.sizes) if found is not None else ([], unknown)
        facts += written
        if any(condition.of == "size" for condition in unknown):
            found = None
        facts += _as_formulas(found, graph, inputs)
    drop_conditions(graph)
    form = copy.copy(form)
    form.require(facts)
    return form


def _as_formulas(found: Formulas | None, graph: fx.Graph, inputs: Mapping[str, str]) -> list[Fact]:
    """The facts for which formulas hold; without any, that all sizes are those of the example."""
    if found is None:
        return sizes_of_example(graph, inputs)
    return [Fact(Written(source), (), "$") for source in found.conditions]
