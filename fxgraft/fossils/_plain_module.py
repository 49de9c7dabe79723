"""The plain module of a host with fossils, and how it is made.

Every region with fossils becomes an instance of a new subclass of its own class, whose ``forward`` is
the generated one (`_plain_code`), and in which the seeds' modules are children as any others::

    host                                       unwrap(host)
      _seeds.a.module       (the seed)           block                 (a subclass of Block)
      block                 (a Block)              fc
        fc                                         seed_a              (the seed)

All else keeps its class, its name and its tensors.
"""

from __future__ import annotations

import copy
import inspect
import operator
from types import FunctionType, ModuleType
from typing import Any

import torch
import torch.fx as fx
from torch import nn

from fxgraft.capture.call_form import CallForm
from fxgraft.capture.clone import clone_tree
from fxgraft.capture.codegen import Generated, generate
from fxgraft.capture.intercept import AutogradCall
from fxgraft.capture.region import Region
from fxgraft.errors import FxGraftError
from fxgraft.fossils import _plain_code
from fxgraft.fossils._configurations import configuration_for
from fxgraft.fossils._containers import put_in
from fxgraft.fossils._example_runs import computes_the_same
from fxgraft.fossils._plain_code import GrownCode
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.host.insertions import path_of
from fxgraft.host.numbering import give
from fxgraft.host.plain import is_own, take_out
from fxgraft.host.save_pretrained import writers
from fxgraft.seeds.dropout import PrivateDropout
from fxgraft_passes import Graft, operators
from fxgraft_passes.base import copy_graph
from fxgraft_passes.blends import FULL_PRECISION
from fxgraft_passes.graft import SEEDS
from fxgraft_passes.metadata import metadata

_TEXT = inspect.getsource(_plain_code)


class Unwrapping:
    """One run of `unwrap`.

    Args:
        host: the host.
        in_containers: whether inserted blocks become children of their containers.
        depths: see `put_in`.

    Attributes:
        root: the plain module.
        in_containers: the argument.
        renamed: name of a module in the host -> in the plain one, where that is another.
    """

    def __init__(self, host: Host, in_containers: bool = False, depths: bool = True):
        self.root = clone_tree(engine.trees(host)[0])
        self.renamed: dict[str, str] = {}
        self._host, self.in_containers = host, in_containers
        self._names = {id(graft): name for name, graft in host.grafts().items()}
        self._codes: dict[Any, GrownCode] = {}
        for module in self.root.modules():
            take_out(module)
        self._blocks = {
            path_of(p.seed): self._plain_block(p.seed) for p in host.structure.placements if p.spec.call
        }
        self._writers = writers(self.root)
        for name in host.structure.by_region:
            self._grow(host.regions[name])
        wider = {}
        for name, module in self._writers.items():
            if name not in host.structure.by_region and (inside := self._grown_in(name)):
                if all(grown.endswith(engine.WIDER) for grown in inside):
                    wider[module] = inside
                else:
                    self._become(module, type(module), None, (), inside)
        if in_containers:
            self.renamed.update(put_in(host, self.root, self._module_of, depths))
        if wider and not self._is_given_configuration():
            for module, inside in wider.items():
                self._become(module, type(module), None, (), inside)

    def name_of(self, name: str) -> str:
        """The name of a module or a tensor of the host's in the plain form."""
        used: set[str] = set()
        while True:
            known = [old for old in self.renamed if f"{name}.".startswith(f"{old}.") and old not in used]
            if not known:
                return name
            old = max(known, key=len)
            used.add(old)
            name = self.renamed[old] + name[len(old) :]
            if not name.startswith(f"{SEEDS}."):  # a block in an inserted one has a way to go
                return name

    @property
    def inserted(self) -> list[str]:
        """The names of the inserted blocks in the plain form."""
        return [self.name_of(path) for path in self._blocks]

    def _is_given_configuration(self) -> bool:
        """Give the model the configuration from which its class builds these sizes, if there is one."""
        if type(self.root) is not type(self._host._root):
            return False
        found = configuration_for(self.root, lambda made: computes_the_same(self._host, made))
        if found is not None:
            give(self.root, self.root.__dict__["config"], found)
        return found is not None

    def _plain_block(self, seed: str) -> nn.Module:
        block = clone_tree(self._host.graft(seed).module)
        for module in block.modules():
            take_out(module)
        return self._plain_seed(block, {})

    def _module_of(self, name: str) -> nn.Module:
        """The plain form of a module of the host's."""
        for path, block in self._blocks.items():
            if name == path or name.startswith(f"{path}."):
                return block.get_submodule(name[len(path) :].lstrip("."))
        return self.root.get_submodule(name)

    def _grown_in(self, name: str) -> tuple[str, ...]:
        """What grew in a module, and is not as its class has it."""
        found = engine.grown_in(self._host, name)
        if not self.in_containers:
            return tuple(found)
        return tuple(seed for seed in found if path_of(seed) not in self._blocks)

    def _grow(self, region: Region) -> None:
        """Give the clone of a region's module its seeds as children, and the code that runs them."""
        structure = self._host.structure
        placements = structure.by_region[region.name]
        if self.in_containers:
            placements = tuple(p for p in placements if p.spec.call is None)
        if not placements:
            return
        parts = [self._host.regions[name] for name in structure.merged.get(region.name, ())]
        wirings = tuple(p.wired_in(region.name) for p in placements)
        grafts = {f"_graft_{i}": self._host.graft(p.seed) for i, p in enumerate(placements)}
        module = self._module_of(region.name)
        graph = copy_graph(region.forward_for(wirings, self._host.phase, parts).graph)
        children: dict[str, str] = {}
        for node in graph.nodes:
            metadata(node).pop("graft", None)
            metadata(node).pop("graft_of", None)
            attribute, _, _ = str(node.target).partition(".")
            graft = grafts.get(attribute)
            if node.op == "call_module" and graft is not None:
                if attribute not in children:  # a seed may stand behind several calls
                    children[attribute] = self._add_child(module, graft, region.name)
                node.target = children[attribute]
        for node in graph.find_nodes(op="call_function", target=operators.folded):
            _write_out(graph, node, next(self._host.parameters()).dtype)
        form = copy.copy(region.form_for(parts))
        form.facts = [fact.elsewhere() for fact in form.facts]  # it may run in another process
        generated = generate(graph, form, type(module).forward)
        inside = self._grown_in(region.name) if region.name in self._writers else ()
        self._become(module, type(module), generated, tuple(children.values()), inside)

    def _add_child(self, module: nn.Module, graft: Graft, region: str) -> str:
        seed = self._names[id(graft)]
        child = f"seed_{seed}".replace("-", "_")
        while hasattr(module, child):
            child += "_"
        made = self._blocks.get(path_of(seed))
        if made is None:
            made = self._plain_seed(clone_tree(graft.module), {})
        module.add_module(child, made)
        self.renamed[path_of(seed)] = f"{region}.{child}".lstrip(".")
        return child

    def _plain_seed(self, module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
        """``module`` with plain modules in the place of fxgraft's own."""
        if module in done:
            return done[module]
        done[module] = module
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = self._plain_seed(child, done)
        if isinstance(module, PrivateDropout):
            done[module] = module.like_torch()
        elif is_own(type(module)):
            graph = _LayerByLayer().trace(module)
            for node in graph.nodes:
                node.type = None
            form = CallForm(module.forward, (torch.empty(0),), {})  # one tensor in, nothing to guard
            self._become(module, nn.Module, generate(graph, form, type(module).forward))
        return done[module]

    def _become(
        self,
        module: nn.Module,
        base: type[nn.Module],
        generated: Generated | None,
        grown: tuple[str, ...] = (),
        inside: tuple[str, ...] = (),
    ) -> None:
        """Make ``module`` an instance of a class with that ``forward``; equal ones share it."""
        name, scope = type(module).__name__, _scope_of(generated) if generated else {}
        source = generated.source if generated else ""
        ids = tuple(sorted((n, id(value)) for n, value in scope.items()))
        key = (base, name, source, grown, inside, ids)
        if key not in self._codes:
            scope = {n: v.function.apply if isinstance(v, AutogradCall) else v for n, v in scope.items()}
            modules = {n: value.__name__ for n, value in scope.items() if isinstance(value, ModuleType)}
            functions = {n: _plain_name(value) for n, value in scope.items() if is_own(value)}
            values = {n: value for n, value in scope.items() if n not in modules and n not in functions}
            used = (modules, functions, values, grown, inside)
            self._codes[key] = GrownCode(_TEXT, base, name, source, *used)
        module.__class__ = self._codes[key].made


class _LayerByLayer(fx.Tracer):
    """Traces a module's own code; each child is a node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _write_out(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> None:
    """The fossil of a seed that was held below 1, in operations of torch."""
    h, s, mode, alpha = node.args
    with graph.inserting_before(node):
        value = graph.call_method("type_as", (s, h))
        if mode == "convex" and dtype in FULL_PRECISION:
            blend = graph.call_function(torch.lerp, (h, value, alpha))  # as `folded` does, to the bit
        else:
            if mode == "convex":
                value = graph.call_function(operator.sub, (value, h))
            scaled = graph.call_function(operator.mul, (alpha, value))
            blend = graph.call_function(operator.add, (h, scaled))
    node.replace_all_uses_with(blend)
    graph.erase_node(node)


def _scope_of(generated: Generated) -> dict[str, Any]:
    """The names that generated code uses, and their values."""
    scope, found = generated.function.__globals__, {}
    functions = [value for value in scope.values() if isinstance(value, FunctionType)]
    for function in functions:
        if function.__globals__ is scope:  # `forward`, and the graph behind its guards
            found.update({n: scope[n] for n in function.__code__.co_names if n in scope})
            found.update({n: v for n, v in scope.items() if n.startswith("_default_")})
    return {n: v for n, v in found.items() if n not in ("_fallback", "_graph", "forward")}


def _plain_name(value: Any) -> str:
    """The name in `_plain_code` of the replacement of a function of fxgraft."""
    name: str = value.__name__
    if name not in _plain_code.PLAIN:
        raise FxGraftError(
            f"a grown module calls {value.__module__}.{name}, which has no plain form: use the host itself "
            f"(manager.save, fxgraft.load_model), and report it"
        )
    return name
