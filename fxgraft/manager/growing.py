"""Growth of the model's own layers: blocks more, channels more, and fossils that become a part of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from fxgraft import wider
from fxgraft.deeper.spread import At
from fxgraft.errors import DistributedError, StageError
from fxgraft.host.wrapped import is_wrapped
from fxgraft.manager.core import ManagerCore
from fxgraft.manager.deepening import Wish
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft.util import validate
from fxgraft.util.interrupts import uninterruptible
from fxgraft.wider import Widening
from fxgraft_passes.channels.groups import ChannelGroup


@uninterruptible
def deepen(
    self: ManagerCore,
    stack: str,
    count: int = 1,
    *,
    at: At = None,
    init: str = "zero",
    blend: int = 0,
    isolated: bool = False,
    optimizer_state: str = "fresh",
    name: str | None = None,
    wait: bool = True,
    like: Sequence[int] | None = None,
) -> list[Seed]:
    """Insert further blocks in a stack, as copies of those that are there: whole, or not at all.

    An inserted block gets all the arguments that the block in front of it gets, runs in calls of any
    form, and is a place like any other: it has slots, and more blocks can be put behind it.

    Args:
        stack: one of ``host.stacks``.
        count: how many blocks.
        at: None spreads them evenly; ``"end"``, ``"start"`` (in front of the first block), or a list of
            the indices, in ``host.stacks[stack].blocks``, of the blocks to stand behind.
        init: ``"zero"`` copies the block in front (at the start: the first one) and zeroes the output
            layers of its branches, which are found on its graph: the function is kept to the bit.
            ``"copy"`` copies it. ``"random"`` initialises anew, as the model does.
        blend: in how many steps their share grows from 0 to 1; 0: they are there at once, as fossils.
        isolated: whether they learn first without the host feeling them: with ``blend=0`` they are seeds
            in TRAINING then, for `blend` and `fossilize`.
        optimizer_state: ``"copy"`` gives each parameter the optimizer's state of that which it is a copy
            of; ``"fresh"`` none. Each joins the group of that one either way: its lr and weight decay.
        name: the name of the seed; of several, ``<name>_0``, ``<name>_1``, …; by default new ones.
        wait: False lets them land at a later `step`, prepared in the background.
        like: the indices of the blocks to copy, one for each new block, in the place of those in front.

    Returns:
        The seeds, in running order: FOSSILIZED ones with ``blend=0``. Seeds in a block, and hooks on it,
        are not copied; ``nn.Dropout`` in a copy draws from a stream of its own.

    Raises:
        SlotError: there is no such stack, no block can stand there, or there are no output layers.
        BlueprintError: nothing initialises a parameter of the block; or it is isolated, and would draw
            from the global random stream.
        ValueError: a count, place or option is invalid.
        StageError: the name is taken.
    """
    self._allow("deepen")
    wish = Wish(init, blend, isolated, optimizer_state)
    with self._acts.block(validate.boolean("wait", wait)):
        return self._deepening.deepen(stack, count, at, like, wish, name, self.enabled)


@uninterruptible
def widen(
    self: ManagerCore,
    group: str | ChannelGroup,
    by: int,
    *,
    init: str = "zero",
    optimizer_state: str = "fresh",
    wait: bool = True,
) -> Widening:
    """Let a group of channels grow: the host is a wider network from then on, and computes the same.

    Each parameter stays the same object, with what optimizers keep for it, its hooks and its gradient;
    averages that follow (`fxgraft.averaging.follow`) grow along. That the outputs are those of before is
    checked on copies, with the example of the trace, before anything is changed. The host is traced anew.
    The model that it was traced from shares the parameters, and does not run any more.

    Args:
        group: one of ``host.channels``, or its name.
        by: how many channels more: a multiple of the group's grain.
        init: ``"zero"``: what makes the new channels begins as the layer initialises it, what reads them
            is zero. Where a layer norm or RMSNorm is computed over them, the new ones begin as the mean
            of the others, or zero, the norm makes up for them, and what reads them begins as the layer
            initialises it. The function is kept to the bit where the matrix product keeps the bits of a
            sum with zeros in it, and within rounding otherwise. ``"split"``: copies of old ones, among
            which what reads them is shared in parts not quite equal (Net2Wider); within rounding.
        optimizer_state: of the new entries: ``"fresh"`` begins at zero; ``"copy"`` as that of the entries
            that they are made like. Old entries keep theirs.
        wait: True: a compiled host compiles at its next call. False: it lands at a later `step`, with
            what the compiler process has compiled for it; plan and trace are made on this thread, in the
            `step` that begins with it.

    Returns:
        What was done; ``max_abs`` is the largest difference of the outputs on the example. Inside of
        `together`, and with ``wait=False``, it says so once that has landed (``done``), or why it has not
        (``failed``).

    Raises:
        ChannelError: there is no such group, it cannot grow, or not by this; or the outputs would differ.
            The host and the optimizers are as before, to the bit.
        DistributedError: the host is under ``DistributedDataParallel`` or sharded.
        StageError: inside of ``torch.inference_mode``, or where seeds cannot change.
        ValueError: for an unknown ``init`` or ``optimizer_state``.
    """
    self._allow("widen")
    self._refuse_inference_mode("widen")
    _refuse_ranks(self, "widen")
    with self._acts.block(validate.boolean("wait", wait)):
        return self._widenings.widen(group, by, init, optimizer_state)


@uninterruptible
def fuse(self: ManagerCore, *seeds: Seed | str) -> Mapping[str, str]:
    """Make fossils part of the host's own layers: they are gone then, and the host computes the same.

    A linear fossil goes into the weights of the layer in front of it, as `fxgraft.fold` does with a copy.
    A branch (``germinate(slot, module, source=...)``) of the same form as what it stands beside, node by
    node, gives its channels to those layers, with what optimizers keep for them: the host is as wide as
    one by hand. Where no other fossil is left in a region it runs its class's own forward again.

    Biases that both add up become one, which is trained as one from then on; and the counts of steps of
    the optimizer are those of the host's parameters.

    Args:
        *seeds: the fossils; without any, all that can be fused, and those that cannot stay.

    Returns:
        Fossil -> the layer, or the group of channels, that it has become part of.

    Raises:
        StageError: one is no fossil.
        SlotError: one cannot be fused; says why. Nothing is changed.
        ChannelError: the outputs would differ. Nothing is changed.
        DistributedError: the host is under ``DistributedDataParallel`` or sharded.
    """
    self._allow("fuse")
    self._acts.refuse("fuse")
    _refuse_ranks(self, "fuse")
    fossils = {seed.name for seed in self._seeds.values() if seed.stage is Stage.FOSSILIZED}
    names = [self._find(seed).name for seed in seeds]
    for name in names:
        if name not in fossils:
            stage = self._seeds[name].stage.name
            raise StageError(f"cannot fuse seed {name!r}: it is {stage}, and no fossil")
    found = wider.fuse(self._lifecycle, names or sorted(fossils), self._optimizers, skip=not seeds)
    for name, layer in found.items():
        self._reporter.emit("fused", name, into=layer)
    return MappingProxyType(found)


def _refuse_ranks(manager: ManagerCore, action: str) -> None:
    if manager.peers.size > 1 or manager.peers.folder is not None or is_wrapped(manager.host):
        raise DistributedError(
            f"cannot {action} a host that several ranks train, or that is wrapped for them: save the run, "
            f"load it in one process, {action}, save; for all ranks, host = fxgraft.load_model(path, "
            f"model); host.clear(); then wrap that, and SeedManager.load(path, ...)"
        )
