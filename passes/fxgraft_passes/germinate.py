"""Splice a seed in after a node.

before::

    relu = self.relu(x)
    fc = self.fc(relu)

after, ``phase=Phase.ISOLATED`` (the value that leaves is ``relu``, bit for bit)::

    relu = self.relu(x)
    seed_input = relu.detach()
    seed = self._seeds.a(seed_input)
    graft = isolated(relu, seed, 'residual', 'trust', 0.03, False)
    fc = self.fc(graft)

after, ``phase=Phase.BLENDED``::

    relu = self.relu(x)
    seed_input = relu.detach()
    seed = self._seeds.a(seed_input)
    alpha = self._seeds.a.alpha
    learning = self._seeds.a.learning
    graft = residual(relu, seed, alpha, learning, 'trust', 0.03)
    fc = self.fc(graft)

Several seeds at one node stand one after the other in the order in which they came, or where ``before``
and ``after`` say. Their names say nothing of it.

A branch around what lies between, ``source="fc1"`` (its input is read where the source is computed,
behind all seeds there; ``spec.copy_source`` copies it, where something writes into it later)::

    fc1 = self.fc1(x)
    seed_input = fc1.detach()
    relu = self.relu(fc1)
    seed = self._seeds.a(seed_input)
    graft = isolated(relu, seed, 'residual', 'trust', 0.03, False)
    fc2 = self.fc2(graft)

A block that takes more than the one value, ``arguments=((x, mask), {})`` and ``spec.call`` (``x`` is the
value, and is passed once; the other arguments of the block are nodes of the graph)::

    add = x + attn
    seed = self._seeds.a(add, mask)
    graft = residual(add, seed, ...)
    return graft
"""

from __future__ import annotations

import keyword
from dataclasses import dataclass, field, replace
from itertools import count

import torch
import torch.fx as fx
from torch import nn
from torch.fx.passes.infra.pass_base import PassResult

from fxgraft_passes.base import GraphPass, node_named
from fxgraft_passes.errors import SlotError
from fxgraft_passes.graft import SEEDS, Graft, GraftSpec, Phase, alpha_shape, check_name, is_graft_holder
from fxgraft_passes.graft_nodes import Arguments, describe, nodes_between, read_early, shape_of, write_graft
from fxgraft_passes.sites import GraftSite, chain_at, end_of_chain, exit_of, mark, mark_reader


@dataclass(frozen=True, eq=False)
class Germinate(GraphPass):
    """Insert the seed ``name`` after the node ``node``.

    Attributes:
        node: the name of the graph node whose value is the slot.
        name: the seed's name.
        seed: the module; None: only the graph is rewritten, and ``path`` exists already.
        spec: mode, objective, isolation.
        phase: which forward of the structure to write.
        path: the attribute for the `Graft`; by default ``_seeds.<name>``.
        source: the name of an earlier node, whose value the seed reads; by default it reads that of ``node``.
        before, after: names of seeds at this node; by default the new one comes behind all of them.
        arguments: with ``spec.call``: args and kwargs of the call, nodes of the graph in them; the argument
            that ``spec.call`` names is where the value goes. An input of the graph can be the slot then.

    Raises:
        SlotError: there is no such node, no branch from that source to it, or a seed of that name already;
            or the name is a keyword of Python, which the code of a ``GraphModule`` cannot have.
    """

    node: str
    name: str
    seed: nn.Module | None = None
    spec: GraftSpec = field(default_factory=GraftSpec)
    phase: Phase = Phase.ISOLATED
    path: str | None = None
    source: str | None = None
    before: str | None = None
    after: str | None = None
    arguments: Arguments | None = None

    def rewrite(self, graph: fx.Graph) -> bool:
        slot = node_named(graph, self.node)
        none = ("output", "get_attr") if self.spec.call else ("placeholder", "output", "get_attr")
        if slot is None or slot.op in none:
            raise SlotError(
                f"node {self.node!r}: expected a node of the graph that computes a value; got "
                f"{'no such node' if slot is None else slot.op}. FindSlots lists the slots."
            )
        if known := exit_of(graph, self.name):
            raise SlotError(f"there is a seed {self.name!r} in this graph already, at node {known[0].node!r}")
        source = self._source(graph, slot)
        self._splice(graph, slot, self._host(slot), source)
        return True

    def _host(self, slot: fx.Node) -> fx.Node:
        """The node that the graft stands behind: the slot, or a graft that is there already."""
        exits = {site.name: exit_node for site, exit_node in chain_at(slot)}
        names = list(exits)
        for name in (self.before, self.after):
            if name is not None and name not in exits:
                raise SlotError(
                    f"seed {self.name!r}: expected the name of a seed at node {self.node!r} to stand beside; "
                    f"got {name!r}, and there are: {', '.join(names) or 'none'}"
                )
        place = len(names) if self.before is None else names.index(self.before)
        if self.after is not None and (first := names.index(self.after) + 1) != place:
            if self.before is not None and first > place:
                raise SlotError(
                    f"seed {self.name!r}: expected a place behind {self.after!r} and before {self.before!r} "
                    f"at node {self.node!r}; they stand the other way: {', '.join(names)}"
                )
            place = first if self.before is None else place
        return exits[names[place - 1]] if place else slot

    def _source(self, graph: fx.Graph, slot: fx.Node) -> fx.Node | None:
        """The node that a branch reads; None where the seed reads the slot's value."""
        if self.source is None or self.source == self.node:
            return None
        before = next((n for n in graph.nodes if n is slot or n.name == self.source), slot)
        if before is slot or before.op == "get_attr":
            there = node_named(graph, self.source)
            given = "no such node" if there is None else "it comes later" if before is slot else before.op
            raise SlotError(
                f"source {self.source!r} of a seed at node {self.node!r}: expected an earlier node that "
                f"computes a value; got {given}"
            )
        return before

    def _splice(self, graph: fx.Graph, slot: fx.Node, host: fx.Node, source: fx.Node | None) -> None:
        consumers, following = list(host.users), host.next
        site = GraftSite(
            self.name, slot.name, self.graft_path, self.spec, None if source is None else source.name
        )
        read = None if source is None else end_of_chain(source)
        written = [] if read is None else read_early(graph, read, site, self.phase)
        while following.op == "placeholder":
            following = following.next
        first = following.prev
        with graph.inserting_before(following):
            exit_node = write_graft(
                graph, host, written[-1] if written else read, site, self.phase, self.arguments
            )
        written += nodes_between(first, following)
        mark(site, exit_node, written)
        for node in written:
            if read in node.all_input_nodes:
                mark_reader(node)
        for consumer in consumers:
            consumer.replace_input_with(host, exit_node)
        describe(written, host, read, self.spec.mode)

    def apply(self, graph_module: fx.GraphModule) -> PassResult:
        if self.path is None and (home := _home(graph_module)) != SEEDS:
            return replace(self, path=f"{home}.{self.name}").apply(graph_module)
        if words := [part for part in self.graft_path.split(".") if keyword.iskeyword(part)]:
            raise SlotError(
                f"seed {self.name!r} at node {self.node!r}: torch.fx writes the path of the graft into its "
                f"code: expected one without keywords of Python; got {words[0]!r} in {self.graft_path!r}. "
                f"Give another name, or path='{SEEDS}.{self.name}_'"
            )
        return super().apply(graph_module)

    def __post_init__(self) -> None:
        check_name(self.name)

    @property
    def graft_path(self) -> str:
        """The attribute that holds the `Graft`."""
        return self.path or f"{SEEDS}.{self.name}"

    def attach(self, graph_module: fx.GraphModule) -> None:
        if self.seed is None:
            return
        like = next(graph_module.parameters(), torch.empty(0, device="cpu"))
        form: tuple[int, ...] = ()
        if self.spec.mode == "channelwise":
            slot = node_named(graph_module.graph, self.node)
            shape = None if slot is None else shape_of(slot)
            if shape is None:
                raise SlotError(
                    f"seed {self.name!r} at node {self.node!r}: mode 'channelwise' has an alpha for each "
                    f"channel, and how many there are is not known: run FindSlots(example_args=...) before, "
                    f"or ShapeProp"
                )
            form = alpha_shape("channelwise", shape)
        graft = Graft(self.seed, dtype=like.dtype, device=like.device, alpha_shape=form)
        if not graph_module.add_submodule(self.graft_path, graft):
            raise SlotError(
                f"seed {self.name!r}: expected a path at which the module can hold the graft; got "
                f"{self.graft_path!r}, on which there is an attribute that is no module"
            )


def _home(graph_module: fx.GraphModule) -> str:
    """Where the module holds its grafts: ``_seeds``; ``_seeds_1`` and so on where it has that of its own."""
    for number in count():
        name = f"{SEEDS}_{number}" if number else SEEDS
        known = getattr(graph_module, name, None)
        if not hasattr(graph_module, name) or (type(known) is nn.Module and is_graft_holder(known)):
            return name
    raise AssertionError("unreachable")
