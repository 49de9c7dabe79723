"""The conditions inside of a graph as guards in front of it; see ``sizes``."""

from __future__ import annotations

import copy

import torch.fx as fx
from torch import nn

from fxgraft.capture._facts import Fact, Written
from fxgraft.capture._formulas import formulas
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
    if "rank" in asked:
        facts += ranks_of_example(graph, inputs)
    if of_size := dict.fromkeys(condition.node for condition in unknown if condition.of == "size"):
        found = formulas(module, graph, inputs, of_size)
        written, unknown = facts_of(graph, inputs, found.sizes) if found is not None else ([], unknown)
        facts += written
        if found is None or any(condition.of == "size" for condition in unknown):
            facts += sizes_of_example(graph, inputs)
        else:
            facts += [Fact(Written(source), (), "$") for source in found.conditions]
    drop_conditions(graph)
    form = copy.copy(form)
    form.require(facts)
    return form
