"""The conditions inside of a graph as guards in front of it; see ``sizes``."""

from __future__ import annotations

import copy

import torch.fx as fx
from torch import nn

from fxgraft.capture.call_form import CallForm
from fxgraft.capture.facts import Fact, Written
from fxgraft.capture.formulas import formulas
from fxgraft.capture.sizes import (
    conditions,
    drop_conditions,
    facts_of,
    kinds_of_example,
    sizes_of_example,
)


def with_conditions(form: CallForm, module: nn.Module, graph: fx.Graph) -> CallForm:
    """The form with what ``graph`` assumes, which is taken out of the graph.

    Raises:
        SlotError: an assumption is about a size that depends on data.
    """
    if next(conditions(graph), None) is None:
        return form
    inputs = {known.name: known.expression for known in form.inputs}
    facts, unknown = facts_of(graph, inputs)
    if any(condition.of_kind for condition in unknown):
        facts += kinds_of_example(module, graph, inputs)
    of_size = [condition.node for condition in unknown if not condition.of_kind]
    if of_size:
        found = formulas(module, graph, inputs, dict.fromkeys(of_size))
        if found is None:
            facts += sizes_of_example(graph, inputs)
        else:
            written, unknown = facts_of(graph, inputs, found.sizes)
            facts += written + [Fact(Written(source), (), "$") for source in found.conditions]
            if not all(condition.of_kind for condition in unknown):
                facts += sizes_of_example(graph, inputs)
    drop_conditions(graph)
    form = copy.copy(form)
    form.require(facts)
    return form
