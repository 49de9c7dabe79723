"""The host: a module that behaves as the model it was traced from, and whose structure can change."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxgraft import _torch
from fxgraft.capture.capture import Capture
from fxgraft.capture.fallback import say_first_call
from fxgraft.capture.first_call import FirstCallState
from fxgraft.capture.region import Region
from fxgraft.errors import FxGraftError, StageError, TraceError
from fxgraft.host import engine
from fxgraft.host._call_check import unmet
from fxgraft.host._explain import Explanation, explain
from fxgraft.host._links import Links
from fxgraft.host._members import Members
from fxgraft.host._own_methods import say_own_loading, state_of
from fxgraft.host._own_tensors import Ownership, keep_tied_weights
from fxgraft.host._running import Running
from fxgraft.host._traced import Traced
from fxgraft.host.channels import Channels, Example, Widened
from fxgraft.host.example import CallForm, ExampleCall, form_of
from fxgraft.host.growth_history import without_seeds
from fxgraft.host.numbering import Depths
from fxgraft.host.save_pretrained import writers
from fxgraft.host.stacks import Stacks
from fxgraft.host.state_loading import DescribeStructure, LoadedEntry, add_structure_entry, insert_seeds_of
from fxgraft.host.steering import load_steering
from fxgraft.host.summary import table_of
from fxgraft.host.values import ValueForm, Values
from fxgraft.slots.selection import Slots
from fxgraft.slots.structure import Structure, kind_of
from fxgraft_passes import Graft, Phase, Slot, devices
from fxgraft_passes.channels.groups import ChannelGroup
from fxgraft_passes.graft import SEEDS

if TYPE_CHECKING:
    from fxgraft.compiling.compiled import CompiledHost


class Host(Members):
    """A traced model. Make one with `trace`; grow it with a `SeedManager`.

    Args:
        capture: what `trace` found: the model, and the graphs of its modules.

    Raises:
        TraceError: the model has a member ``_seeds``.

    Attributes:
        seed_blueprints: seed name -> module or factory, for seeds that were germinated from code; used when a
            ``state_dict`` with such seeds is loaded.
        structure_entry: a function of the host that returns the entry of ``state_dict`` which says how the
            seeds are wired (see `SeedManager.describe`); None: there is no such entry.
        widenings: the growths of its channels since it was traced.

    It has the children, parameters and buffers of the model, under the same names; seeds are under
    ``_seeds``. Other attributes of the model can be read from it (``host.config``).
    """

    def __init__(self, capture: Capture):
        super().__init__()
        root = capture.root
        if any(SEEDS in register for register in (root._modules, root._parameters, root._buffers)):
            raise TraceError(
                f"{type(root).__name__} has {SEEDS!r} of its own, under which a host keeps its seeds: rename "
                f"it, or trace the part of the model that is to grow"
            )
        self.__dict__["_links"] = Links()
        self._traced = Traced.of(capture)
        self._external_state = capture.external_state
        self._channels = Channels(capture.example, root)
        self.widenings: tuple[Widened, ...] = ()
        self._example_call = ExampleCall(args=capture.example[0], kwargs=capture.example[1])
        self._depths = Depths()
        self._first_call = capture.first_call
        say_first_call(root, self._first_call.names)
        say_own_loading(root)
        self._running = Running(root, capture.regions)
        self.seed_blueprints: dict[str, Any] = {}
        self.structure_entry: DescribeStructure | None = None
        self._writers = writers(root)
        self.training = root.training
        self._modules.update(root._modules)
        # States are read and written by both.
        for register in ("_parameters", "_buffers", _torch.UNSAVED_BUFFERS, *_torch.STATE_HOOKS):
            self.__dict__[register] = root.__dict__[register]
        # Whatever goes through the whole host is done here, and not when a seed germinates.
        self.slots  # noqa: B018
        self._own = Ownership(root, weakref.WeakMethod(self._fossils))
        self._values = Values(root)
        # Beside nn.Module's registers: the root's children are the host's own, not one level below. Last, as
        # what is set from now on is the model's, where the model has such an attribute and the host has none.
        self.__dict__["_root"] = root

    # What can be grown

    @property
    def slots(self) -> Slots:
        """Slot name -> `Slot`, in execution order. ``host.slots.select(...)`` selects some of them."""
        return self._traced.slots(self.structure)

    def slot(self, name: str) -> Slot:
        """The slot of that name, or of an edge, an input or an element (see `fxgraft.slots.places`).

        Args:
            name: of the slot, or of the place.

        Raises:
            SlotError: there is none; with the reason, or with the most similar names.
        """
        return self._traced.slot(name, self.structure)

    def site(self, name: str, source: str | None = None) -> Slot:
        """The slot of that name; with ``source``, for a seed that reads the value of that earlier slot.

        Args:
            name: of the slot.
            source: the name of the earlier slot. Default None: the seed reads the value at the slot itself.

        Raises:
            SlotError: there is no such slot, or no such branch; with the reason.
        """
        slot = self.slot(name)
        if source is None or source == name:
            return slot
        owner = weakref.ref(self.regions[slot.region].module)
        return replace(self._traced.branch(self.slot(source), slot), owner=owner)

    def value_at(self, slot: Slot | str) -> ValueForm:
        """Dtype, device and layout of the value at ``slot`` (not of its source) in the present host.

        Args:
            slot: one of the host's, or its name.

        Raises:
            SlotError: there is no slot of that name.
        """
        at = self.slot(slot) if isinstance(slot, str) else slot
        return self._values.at(at, self._traced.regions)

    @property
    def channels(self) -> Mapping[str, ChannelGroup]:
        """Group name -> `ChannelGroup`, in execution order; see ``SeedManager.widen``.

        A group is named after the layer whose outputs are the channels, ``"blocks.0.up"``. If one layer has
        several groups (heads, and channels within a head), the further ones are ``"attn.qkv[1]"`` and so on.
        Channels that no layer outputs are named after the parameter that reads them, ``"up.weight"``. A group
        that cannot grow has the reason in ``fixed``.

        The groups are found by running the example call on copies without data, in train and in eval mode, at
        the first access and after each change of the structure. Code that could not be traced is included.

        Raises:
            ChannelError: the host is sharded, or the call that it was traced with is not known, as of a copy.
        """
        return self._channels.of(self)

    def example_call(self) -> Example:
        """The arguments (args, kwargs) of the example call, as they fit the present host.

        Raises:
            ChannelError: the example call is not known, as in a copy of a host.
        """
        return self._channels.call(self)

    @property
    def stacks(self) -> Stacks:
        """Name of a container -> `Stack`: equal blocks that run one after the other, inserted ones included.

        ``host.stacks.rejected`` has the other containers, with the reason.
        """
        return self._traced.stacks(self._root, self.structure)

    @property
    def regions(self) -> Mapping[str, Region]:
        """Qualified module name -> region; ``""`` is the root (if it could be traced)."""
        return MappingProxyType(self._traced.regions)

    @property
    def rejected(self) -> Mapping[str, str]:
        """Nodes that are no slots, and modules that could not be traced -> the reason."""
        return MappingProxyType(self._traced.rejected)

    @property
    def opaque(self) -> Mapping[str, str]:
        """Modules whose code could not be traced -> the reason."""
        return MappingProxyType(self._traced.opaque)

    @property
    def left_out(self) -> Mapping[str, str]:
        """Modules that are called from such code, and whose outputs are no slots -> the reason."""
        return MappingProxyType(self._traced.left_out)

    @property
    def example(self) -> CallForm | None:
        """The form of the example call, as JSON; None if an argument is neither data nor a tensor."""
        return self.__dict__.get("_example")

    def explain(self) -> Explanation:
        """How each module was traced, or why not; print it for a tree, or use its ``to_dict()``."""
        return explain(self, self._root, self._traced.uncompared)

    def unmet(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        """In which way a call has another form than the traced one, in words; None if its form is the same.

        Runs the model once, and does not change it.

        Args:
            args: the positional arguments of the call.
            kwargs: its keyword arguments.
        """
        return unmet(self._root, self._traced.regions, args, kwargs)

    def retrace(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Trace the model again, in place, with another call: slots and guards are then those of that call.

        Args:
            args: the positional arguments of the call.
            kwargs: its arguments by name.

        Raises:
            StageError: something has grown in regions that would change.
            TraceError: the call fails. The host is unchanged.
        """
        if self.structure.placements:
            grown = ", ".join(placement.seed for placement in self.structure.placements)
            raise StageError(f"cannot trace the host anew: expected one without seeds; it has {grown}")
        with self.compiled.stopped() if self.compiled else nullcontext():
            capture = Capture(self._root, args, dict(kwargs), clone=False)
        self._traced, self._running.regions = Traced.of(capture), capture.regions
        self._example_call = ExampleCall(args=capture.example[0], kwargs=capture.example[1])
        self.__dict__["_example"] = form_of(args, kwargs)
        self._channels = Channels((args, dict(kwargs)), self._root)
        self.slots  # noqa: B018

    def example_for(self, module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """New arguments (args, kwargs) of the example call for ``module``, on its device and of its dtype.

        Args:
            module: the host, or a copy or wrapper of it: what is to be called.
        """
        return self._example_call.for_(module)

    def show(self) -> Any:
        """The graph as a picture. A notebook displays it, and ``.save(path)`` writes SVG, PNG or HTML.

        Needs the extra ``show`` and graphviz; see `fxgraft.report.host_picture.Picture`.
        """
        from fxgraft.report.host_picture import Picture  # on demand: an extra, and it draws hosts

        return Picture(self)

    def model_state(self) -> dict[str, torch.Tensor]:
        """The ``state_dict`` of the traced model, without the seeds."""
        found: dict[str, torch.Tensor] = self._root.state_dict()  # itself: it has the versions of modules
        return found

    def host_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the host without those of live seeds. Fossilized seeds count as the host."""
        yield from self._root.parameters()
        for graft in self._fossils():
            yield from graft.parameters()

    def _fossils(self) -> list[Graft]:
        return [self.graft(p.seed) for p in self.structure.placements if p.spec.fossil is not None]

    def __str__(self) -> str:
        return table_of(self)

    # Running

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward, with the seeds in it.

        Args:
            *args: the arguments of the model.
            **kwargs: the same, by name.

        Raises:
            TraceError: the class of a module in which something grew was changed.
        """
        running = self._running
        if running.compiled is not None and torch.compiler.is_dynamo_compiling():
            return running.compiled.untraced(self.forward, *args, **kwargs)
        running.classes.check()
        if (on_call := self._links.on_call) is not None:
            on_call(args, kwargs)
        return running.call(*args, **kwargs)

    def compile(self, *, granularity: str = "host", **options: Any) -> None:  # type: ignore[override]
        """Run the host through ``torch.compile(**options)`` from now on. The first call compiles.

        Every structure gets two compiled forwards, isolated and blended, so that alpha and stage
        changes recompile nothing. ``fullgraph`` is True unless it is given.

        Args:
            granularity: what is compiled as a whole. ``"host"``: the host, the fastest step.
                ``"region"``: each of its blocks, so that a change compiles one block, and equal blocks
                share their code; what is between blocks runs eager. ``"auto"``: by region where the
                model repeats a block often.
            **options: of ``torch.compile``.
        """
        self._running.compile(options, granularity, self.grafts())

    # Structure

    @property
    def structure(self) -> Structure:
        """The grafts that the host has now."""
        return self._running.structure

    @property
    def phase(self) -> Phase:
        """Which forward of the structure runs now."""
        return self._running.phase

    @property
    def compiled(self) -> CompiledHost | None:
        """The compiled form; None before `compile` was called."""
        return self._running.compiled

    def graft(self, seed: str) -> Graft:
        """The graft of a live or fossilized seed.

        Args:
            seed: the name of the seed.
        """
        graft = getattr(self._modules[SEEDS], seed)
        assert isinstance(graft, Graft)
        return graft

    def grafts(self) -> dict[str, Graft]:
        """All grafts by the names of their seeds."""
        return {p.seed: self.graft(p.seed) for p in self.structure.placements}

    def clear(self) -> None:
        """Remove every graft, fossils included: the host is as traced. Its manager cannot be used any more.

        Compiled code is kept, for another manager and another run.
        """
        gone = [placement.seed for placement in self.structure.placements]
        engine.set_structure(self, Structure(), Phase.ISOLATED, {})
        self.widenings = without_seeds(gone, self.widenings)
        self.structure_entry = self._links.led_by = None

    # nn.Module's protocol: the root's state is the host's

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            root = self.__dict__.get("_root")
            if root is None or name.startswith("__"):
                raise
            return getattr(root, name)

    def __setattr__(self, name: str, value: Any) -> None:
        root = self.__dict__.get("_root")
        if root is not None and isinstance(value, nn.Module) and name in root._modules:
            raise FxGraftError(f"{name!r} is part of a traced host: replace modules before tracing")
        if root is not None and name in root.__dict__ and name not in self.__dict__:
            setattr(root, name, value)  # an attribute that is the model's, as one sees it through the host
            return
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> Host:
        """Set the mode of the model and of its seeds.

        Args:
            mode: True: training; False: evaluation.
        """
        self._root.train(mode)
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Host:
        self._own.forget()
        if self.compiled is not None:
            self.compiled.variants.forget_calls()  # what is called from now on may be of another dtype
        with keep_tied_weights(*engine.trees(self)):
            self._root._apply(fn, recurse)
            if recurse and SEEDS in self._modules:
                self._modules[SEEDS]._apply(fn)  # type: ignore[union-attr]
        self._own.look()
        return self

    def state_dict(
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Any:  # type: ignore[override]
        """The state: the model's entries under the model's keys, a seed's under ``_seeds.<name>.…``.

        Args:
            *args: as of ``nn.Module``, which deprecates them.
            destination: a dictionary to add the entries to. Default: a new one.
            prefix: put in front of each key. Default none.
            keep_vars: whether the tensors stay connected to autograd. Default False.
        """
        if (reshard := getattr(type(self), "reshard", None)) is not None:
            reshard(self)  # fully_shard's hook for that is on the host, which this goes around
        found = state_of(self._root, *args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        if (seeds := self._modules.get(SEEDS)) is not None:
            seeds.state_dict(destination=found, prefix=f"{prefix}{SEEDS}.", keep_vars=keep_vars)
        if seeds is not None or self.widenings:
            add_structure_entry(self, found, prefix)
        return found

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state of the model, or of a host. Seeds that it describes are inserted if they are missing.

        Args:
            state_dict: what `state_dict` of a host, or of the model, returned.
            strict: whether missing and unexpected keys are an error. Default True.
            assign: whether to take the tensors themselves. Default False: their values are copied.

        Returns:
            The missing and the unexpected keys, as of ``nn.Module``.

        Raises:
            RuntimeError: keys or shapes do not match, as of ``nn.Module``.
            CheckpointError: the state has seeds that cannot be inserted.
        """
        before = dict(self.named_parameters()) if assign else {}
        with torch.inference_mode(False):  # seeds that are made inside of it could not be trained
            result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        devices.forget_casts()
        if assign and (on_replaced := self._links.on_replaced) is not None:
            after = dict(self.named_parameters())
            kept = {name: p for name, p in before.items() if name in after}
            on_replaced({p: after[name] for name, p in kept.items() if after[name] is not p})
        return result

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        self._own.forget()
        insert_seeds_of(self, state_dict, prefix)
        load_steering(self, state_dict, prefix)
        # What the model's hooks and its own code change in the state is for its children: no copy of it.
        seeds = f"{prefix}{SEEDS}."  # are children of the host's, and strange to the root
        strange = [key for key in state_dict if key.startswith(seeds)] if SEEDS in self._modules else []
        aside = {key: state_dict.pop(key) for key in strange}
        try:
            self._root._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        finally:
            state_dict.update(aside)

    def __deepcopy__(self, memo: dict[int, Any]) -> Host:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        self._links.copies.add(made)
        return made

    def __getstate__(self) -> dict[str, Any]:
        derived = ("_links", "_own", "_writers")
        entry = self.structure_entry if isinstance(self.structure_entry, LoadedEntry) else None
        kept = {**self.__dict__, **dict.fromkeys(derived), "structure_entry": entry}
        return {**kept, "_channels": Channels(), "_first_call": FirstCallState()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.__dict__["_links"] = Links()
        self._own = Ownership(self._root, weakref.WeakMethod(self._fossils))
        self._writers = writers(self._root)
        # Copies of slots belong to the copied graphs: take each structure's from there.
        grafts = self.grafts()
        placements = [
            replace(p, slot=self.site(*p.slot.names), kind=kind_of(grafts[p.seed].module))
            for p in self.structure.placements
        ]
        self._running.structure = Structure(tuple(placements))
        engine.set_structure(self, self.structure, self.phase, grafts)
