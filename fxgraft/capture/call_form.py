"""The form of one recorded call: which arguments become inputs of the graph, which are constants.

A graph is right for calls of the form that it was traced under. ``CallForm`` has the conditions that such a
call meets; ``guarded_entry`` writes them in front of the graph.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter
from types import ModuleType
from typing import Any

from torch import nn

from fxgraft import _torch
from fxgraft.capture._code import compared_in
from fxgraft.capture._exact import builtins_of, has_literal, unshadowed
from fxgraft.capture._facts import OF_TORCH, PLAIN, Fact, Self, Step, Written, check_of, equals
from fxgraft.capture._facts import expression as path_expression


def is_constant(value: Any) -> bool:
    """Whether an argument is baked into a graph (and guarded) rather than passed to it."""
    if type(value) in (tuple, list):
        return all(is_constant(item) for item in value)
    return isinstance(value, PLAIN + OF_TORCH)


@dataclass(frozen=True)
class Input:
    """One input of a region's graph: its name and the Python expression that finds it in a call."""

    name: str
    expression: str


class CallForm:
    """How a module was called in the example run.

    Attributes:
        signature: of the module's ``forward``, without ``self``.
        inputs: the graph's inputs in order.
        facts: other conditions on what the code read while the call was traced.
        inherited: the facts among them that only submodules read, on whose results it relies.
        relied_on: submodules of whose results the form was looked at (how many, which are None).
        constants: the names used in guards that are not literals.
        switches_gradients: whether the graph has parts under ``no_grad``.
        switches_autocast: whether it has parts under ``torch.autocast``.
        positional: how many arguments came by position.
        reads_sizes: whether the code took a size (or a number) of a tensor of the model's for a constant.
    """

    def __init__(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.signature = inspect.signature(forward)
        self.inputs: list[Input] = []
        self.facts: list[Fact] = []
        self.inherited: list[Fact] = []
        self.relied_on: set[str] = set()
        self.constants: dict[str, Any] = {}
        self.switches_gradients = False
        self.switches_autocast = False
        self.reads_sizes = False
        self._of_arguments: list[str | Fact] = []
        self.positional = len(args)
        bound = self.signature.bind(*args, **kwargs)
        self._passed = set(bound.arguments)
        bound.apply_defaults()
        self._arguments = {name: self._template(name, value) for name, value in self._split(bound)}
        for one, other in compared_in(inspect.unwrap(forward)):
            if one in bound.arguments and other in bound.arguments:
                self._guard_identity(one, other, bound.arguments[one] is bound.arguments[other])

    def _guard_identity(self, one: str, other: str, same: bool) -> None:
        """The code asks whether two arguments are the same object: then the graph has one input for both."""
        self._of_arguments.append(f"{one} is {other}" if same else f"{one} is not {other}")
        template = self._arguments[other]
        if same and isinstance(template, Input) and template != self._arguments[one]:
            self.inputs.remove(template)
            self._arguments[other] = self._arguments[one]

    def _split(self, bound: inspect.BoundArguments) -> Iterator[tuple[str, Any]]:
        """The arguments, with guards on the length of ``*args`` and the keys of ``**kwargs``."""
        for name, value in bound.arguments.items():
            kind = self.signature.parameters[name].kind
            if kind is Parameter.VAR_POSITIONAL:
                self._of_arguments.append(f"len({name}) == {len(value)}")
            elif kind is Parameter.VAR_KEYWORD:
                self._of_arguments.append(f"list({name}) == {list(value)!r}")
            yield name, value

    def _template(self, expression: str, value: Any) -> Any:
        """``value`` with an `Input` in the place of everything that is not constant."""
        kind = self.signature.parameters[expression].kind if expression.isidentifier() else None
        variadic = kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        if type(value) in (tuple, list) and (variadic or not is_constant(value)):
            if not variadic:
                self._guard_container(expression, value)
            return type(value)(self._template(f"{expression}[{i}]", item) for i, item in enumerate(value))
        if type(value) is dict and all(map(is_constant, value)):
            if not variadic:
                self._guard_container(expression, value)
                self._guard_constant(f"list({expression})", list(value))
            steps: list[Step] = [
                ("item", key) if has_literal(key) else ("value", i) for i, key in enumerate(value)
            ]
            return {
                key: self._template(path_expression(expression, (step,)), value[key])
                for key, step in zip(value, steps, strict=True)
            }
        if is_constant(value):
            self._guard_constant(expression, value)
            return value
        return self._input(expression, value)

    def _guard_container(self, expression: str, value: Any) -> None:
        self._of_arguments.append(f"type({expression}) is {type(value).__name__}")
        self._of_arguments.append(f"len({expression}) == {len(value)}")

    def _guard_constant(self, expression: str, value: Any) -> None:
        condition = equals(Written(expression), (), value)
        condition.source(self._name_of)  # which gives a name to what it compares with
        self._of_arguments.append(condition)

    def _input(self, expression: str, value: Any) -> Input:
        parameter = self.signature.parameters.get(expression)
        if parameter is None or parameter.default is None:
            self._of_arguments.append(f"{expression} is not None")
        name = "".join(c if c.isalnum() else "_" for c in expression).strip("_")
        while name in self._taken():
            name += "_value"
        found = Input(name, expression)
        self.inputs.append(found)
        return found

    @property
    def guards(self) -> list[str]:
        """Python expressions over the arguments and ``self`` that hold for a call of this form.

        Besides those, they use `names`.
        """
        guards = [self._source(condition) for condition in self._conditions]
        if of_code := [fact for fact in self.facts if fact.is_of_code]:
            guards.append(f"{self._name_of(check_of(of_code))}()")
        return list(dict.fromkeys(guards))

    @property
    def _conditions(self) -> list[str | Fact]:
        """On arguments, then on everything else except code."""
        return [*self._of_arguments, *(fact for fact in self.facts if not fact.is_of_code)]

    def _source(self, condition: str | Fact) -> str:
        source = condition.source(self._name_of) if isinstance(condition, Fact) else condition
        return unshadowed(source, self.signature.parameters)

    def require(self, facts: Iterable[Fact]) -> None:
        """Require these facts for calls of this form."""
        self.facts = list(dict.fromkeys((*self.facts, *facts)))

    def inherit(self, facts: Iterable[Fact]) -> None:
        """The same, of facts that the code of submodules read."""
        known = set(self.facts)
        self.inherited = [fact for fact in dict.fromkeys(facts) if fact not in known]
        self.require(self.inherited)

    def own(self) -> CallForm:
        """The form without what it has inherited."""
        found = copy.copy(self)
        if self.inherited:
            others = set(self.inherited)
            found.facts, found.inherited = [fact for fact in self.facts if fact not in others], []
        return found

    def add_mode(self, other: CallForm) -> None:
        """Require also what ``other`` requires, the form found in the other train/eval mode."""
        self.require(other.facts)
        self.reads_sizes |= other.reads_sizes

    def _name_of(self, value: Any) -> str:
        """The name by which the guards know an object."""
        for name, known in self.constants.items():
            if known is value:
                return name
        named = getattr(value, "__name__", None)
        stem = "_constant"
        if isinstance(named, str):
            kind = (
                "module"
                if isinstance(value, ModuleType)
                else "class"
                if isinstance(value, type)
                else "function"
            )
            stem = f"_{kind}_" + "".join(c if c.isalnum() else "_" for c in named)
        taken = sum(name.startswith(stem) for name in self.constants)
        name = f"{stem}_{taken}" if taken or stem == "_constant" else stem
        self.constants[name] = value
        return name

    def guard_layout(self) -> None:
        """Send calls with nested tensors elsewhere."""
        self._of_arguments += [
            f"not getattr({known.expression}, 'is_nested', False)" for known in self.inputs
        ]

    def _taken(self) -> set[str]:
        return {known.name for known in self.inputs}

    def bind(self, values: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call of this form with ``values`` for the inputs."""
        # As the caller wrote it: decorators look at what came by position and what by keyword.
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for name, parameter in self.signature.parameters.items():
            value = self._fill(self._arguments[name], values)
            if parameter.kind is Parameter.VAR_POSITIONAL:
                args.extend(value)
            elif parameter.kind is Parameter.VAR_KEYWORD:
                kwargs.update(value)
            elif name in self._passed and len(args) < self.positional:
                args.append(value)
            elif name in self._passed:
                kwargs[name] = value
        return tuple(args), kwargs

    def _fill(self, template: Any, values: dict[str, Any]) -> Any:
        if isinstance(template, Input):
            return values[template.name]
        if type(template) in (tuple, list):
            return type(template)(self._fill(item, values) for item in template)
        if type(template) is dict:
            return {key: self._fill(item, values) for key, item in template.items()}
        return template

    def values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """The inputs' values in a call, the inverse of `bind`; None for a call of another form."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError:
            return None
        bound.apply_defaults()
        found: dict[str, Any] = {}
        return found if _collect(self._arguments, dict(bound.arguments), found) else None

    @property
    def is_plain(self) -> bool:
        """Whether the graph's own signature already is the module's, with nothing to guard."""
        if self.guards or self.switches_gradients or self.switches_autocast:
            return False
        return [known.name for known in self.inputs] == list(self.signature.parameters)

    @property
    def readable(self) -> list[str]:
        """The guards for people: with the values of constants in the place of their names.

        That functions and classes are the ones that they were is left out.
        """
        of_code = [fact for fact in self.facts if fact.is_of_code]
        texts = [_said(condition) for condition in self._conditions]
        texts += [fact.said for fact in of_code if not fact.is_identity and not fact.is_default]
        return list(dict.fromkeys(texts))

    def unmet(self, given: Mapping[str, Any]) -> str | None:
        """The first guard that a call with these arguments (and ``self``) does not pass; or None."""
        sources = [(condition, self._source(condition)) for condition in self._conditions]
        names = self.names
        for condition, source in sources:
            try:  # of our own making: see guarded_entry
                passes = eval(source, names, dict(given))
            except Exception:  # of an argument that is something else altogether
                passes = False
            if not passes:
                return _said(condition)
        return self._broken_code()

    def _broken_code(self) -> str | None:
        """The first condition on functions, classes and the like that does not hold, in words."""
        for fact in self.facts:
            if fact.is_of_code:
                try:
                    holds = check_of([fact])()
                except Exception:  # what it looks at is gone
                    holds = False
                if not holds:
                    return fact.said
        return None

    def broken(self, module: nn.Module) -> list[str]:
        """The conditions on ``module`` itself that do not hold now: no call of it is of this form."""
        found = []
        for fact in self.facts:
            source = fact.source(self._name_of)
            try:
                holds = not isinstance(fact.base, Self) or eval(
                    source, dict(self.constants), {"self": module}
                )
            except (AttributeError, KeyError, IndexError, TypeError):
                holds = False
            if not holds:
                found.append(source)
        return found

    @property
    def names(self) -> dict[str, Any]:
        """The values of the names in `guards`, beside the arguments."""
        return {**self.constants, **builtins_of(self.signature.parameters)}

    def __getstate__(self) -> dict[str, Any]:
        # Modules of Python go by their names.
        constants = {
            name: _ModuleNamed(value.__name__) if isinstance(value, ModuleType) else value
            for name, value in self.constants.items()
            if not _torch.is_constant_when_compiled(value)  # which the facts make again
        }
        facts, inherited = (
            [fact.portable(_ModuleNamed) for fact in every] for every in (self.facts, self.inherited)
        )
        return {**self.__dict__, "constants": constants, "facts": facts, "inherited": inherited}

    def __setstate__(self, state: dict[str, Any]) -> None:
        def found(value: Any) -> Any:
            return importlib.import_module(value.name) if isinstance(value, _ModuleNamed) else value

        self.__dict__.update(state)
        self.constants = {name: found(value) for name, value in self.constants.items()}
        self.facts = [fact.found(found) for fact in self.facts]
        self.inherited = [fact.found(found) for fact in self.inherited]


def _said(condition: str | Fact) -> str:
    return condition.said if isinstance(condition, Fact) else condition


@dataclass(frozen=True)
class _ModuleNamed:
    """Stands for a module of Python in a file."""

    name: str


def _collect(template: Any, value: Any, found: dict[str, Any]) -> bool:
    """Fill ``found`` with what stands in ``value`` where ``template`` has inputs; False on a mismatch."""
    if isinstance(template, Input):
        found[template.name] = value
        return value is not None and not getattr(value, "is_nested", False)
    if type(template) is not type(value):
        return False
    if type(template) is dict:
        return _is_same(list(template), list(value)) and all(
            _collect(template[key], value[key], found) for key in template
        )
    if type(template) in (tuple, list):
        return len(template) == len(value) and all(
            _collect(ours, theirs, found) for ours, theirs in zip(template, value, strict=True)
        )
    return _is_same(template, value)


def _is_same(constant: Any, given: Any) -> bool:
    """Whether two constants are equal, with the types of their numbers: those print differently."""
    return bool(constant == given) and repr(constant) == repr(given)
