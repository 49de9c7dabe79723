"""Growth of the model's own layers: more blocks, more channels, and fossils fused into layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fxgraft.errors import DistributedError
from fxgraft.host.wrapped import is_wrapped
from fxgraft.manager._core import ManagerCore
from fxgraft.manager._deepening import BlocksRequest
from fxgraft.resizing import Widening
from fxgraft.resizing.arguments import At
from fxgraft.seeds.seed import Seed
from fxgraft.util import validate
from fxgraft.util.interrupts import uninterruptible
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
    """Insert more blocks in a stack, as copies of its blocks. If it fails, nothing is changed.

    An inserted block gets all arguments that the block in front of it gets, and runs in calls of any form. It
    has slots, and more blocks can be inserted behind it.

    Args:
        stack: a name in ``host.stacks``.
        count: the number of blocks.
        at: None distributes them evenly; ``"end"``; ``"start"`` (in front of the first block); or a list of
            indices in ``host.stacks[stack].blocks``: the blocks behind which the new ones are inserted.
        init: ``"zero"`` copies the block in front (at the start: the first one) and zeroes the output
            layers of its branches, which are found on its graph: the function is kept to the bit.
            ``"copy"`` copies it. ``"random"`` initialises anew, as the model does. A block that is wanted in
            any case learns better as a copy: with ``"zero"`` a small GPT ended 0.004 to 0.018 nats higher,
            and two small CNNs with BatchNorm 0.010 and 0.044, on three random seeds each. Early copies (1 → 2
            → 4 blocks at 0.05 and 0.15 of the FLOPs), with a learning rate divided by the root of the depth,
            ended 0.018 ± 0.003 nats below every fixed size in long runs of a GPT (docs/growth.md).
        blend: the number of steps in which their alpha grows from 0 to 1; 0: they are fossils at once.
        isolated: whether they first train in isolation. With ``blend=0`` they are then seeds in
            TRAINING, for `blend` and `fossilize`.
        optimizer_state: ``"copy"`` gives each parameter a copy of the optimizer state of the one that it
            copies; ``"fresh"`` gives it none. Either way it joins that one's group (lr, weight decay).
        name: the name of the seed; several are ``<name>_0``, ``<name>_1``, …; by default a new name.
        wait: False prepares them in the background; a later `step` inserts them.
        like: the indices of the blocks to copy, one for each new block; by default those in front.

    Returns:
        The seeds, in running order: FOSSILIZED ones with ``blend=0``. Seeds in a block, and hooks on it,
        are not copied; ``nn.Dropout`` in a copy draws from a stream of its own.

    Raises:
        SlotError: there is no such stack, no block can be inserted there, or no output layers were found.
        BlueprintError: a parameter of the block has no initialisation (``init="random"``); or the block is
            isolated, and would draw from the global random stream.
        DistributedError: the host is sharded.
        ValueError: a count, place or option is invalid.
        StageError: the name is taken; or inside of ``torch.inference_mode``.
    """
    self._allow("deepen")
    self._refuse_inference_mode("deepen")
    if self.peers.folder is not None:  # each rank has a part of each block, or all of it for a moment
        raise DistributedError(
            "cannot deepen a host that is sharded. Deepen it before fully_shard: on each rank alike, with a "
            "manager for the host alone; then shard it, and make optimizer and manager"
        )
    request = BlocksRequest(init, blend, isolated, optimizer_state)
    with self._acts.block(validate.boolean("wait", wait)):
        return self._deepening.deepen(stack, count, at, like, request, name, self.enabled)


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
    """Add channels to a group of channels. The host is a wider network then, and computes the same.

    Each parameter stays the same object, with its optimizer state, its hooks and its gradient. Averages made
    with `fxgraft.averaging.follow` grow too. Before anything is changed, copies are checked to compute the
    same outputs for the example call. Then modules whose code reads a number that has changed are traced
    again; the graphs of others are kept, and compared with their code. The model that the host was traced
    from shares the parameters, and does not run any more. Call it between steps: torch cannot go back through
    a forward pass that ran with the narrow weights.

    Args:
        group: a value of ``host.channels``, or its name.
        by: the number of new channels: a multiple of the ``grain`` of the group.
        init: ``"zero"``: what makes the new channels begins as the layer initialises it, what reads them
            is zero. Where a layer norm or RMSNorm is computed over them, the new ones begin as the mean
            of the others, or zero, the norm makes up for them, and what reads them begins as the layer
            initialises it. The function is kept to the bit where the matrix product keeps the bits of a
            sum with zeros in it, and within rounding otherwise. ``"split"``: copies of old ones, among
            which what reads them is shared in parts not quite equal (Net2Wider); within rounding.
        optimizer_state: of the new entries: ``"fresh"`` begins as the optimizer begins that of a new
            parameter (at zero for Adam and SGD); ``"copy"`` as that of the entries that they are made like.
            Old entries keep theirs.
        wait: True: a compiled host compiles at its next call. False: a later `step` makes the change, with
            code from the compiler process. For a compiled host, planning, and trying it for a moment, are
            done in a `step` each; what was prepared is done anew if the host is another one then.

    Returns:
        A record of the change; ``max_abs`` is the largest difference of the outputs in the example call.
        Inside `together`, and with ``wait=False``, it is filled in when the change is made (``done``) or
        has failed (``failed``, the reason).

    Raises:
        ChannelError: there is no such group, it cannot grow, or not by this number; or the outputs would
            differ. The host and the optimizers are unchanged, to the bit.
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
def fuse(self: ManagerCore, *seeds: Seed | str, wait: bool = True) -> Mapping[str, str]:
    """Merge fossils into the host's own layers. The seeds are gone then, and the host computes the same.

    A linear fossil is merged into the weights of the layer in front of it, as `fxgraft.fold` does in a copy.
    A branch (``germinate(slot, module, source=...)``) that has, node by node, the structure of the layers
    parallel to it, adds its channels to those layers, with their optimizer state: the host is as wide as one
    built that way. Where no other fossil is left in a region it runs its class's own forward again.

    Two biases that are added become one, which is trained as one from then on. The step counts in the
    optimizer are those of the host's parameters; moments of Adam, AdamW and Adamax are scaled so that they
    mean the same under these. A warning says where hyper-parameters of the branch were others. Call it
    between steps, as `widen`.

    Args:
        *seeds: the fossils, or their names; without any: all that can be fused, the others stay.
        wait: True: a compiled host compiles at its next call. False: a later `step` makes the change, with
            code from the compiler process.

    Returns:
        Seed name -> the name of the layer, or of the group of channels, into which it was merged. Inside
        `together`, and with ``wait=False``, it is empty until the change is made.

    Raises:
        StageError: one of them is no fossil, and does not become one in the same act, or is fused by an
            earlier call of it; or inside of ``torch.inference_mode``.
        SlotError: one of them cannot be fused; with the reason. Nothing is changed.
        ChannelError: the outputs would differ. Nothing is changed.
        DistributedError: the host is under ``DistributedDataParallel`` or sharded.
    """
    self._allow("fuse")
    self._refuse_inference_mode("fuse")
    _refuse_ranks(self, "fuse")
    found = [self._find(seed, "fuse") for seed in seeds]
    with self._acts.block(validate.boolean("wait", wait)):
        return self._widenings.fuse(self._lifecycle, found)


def _refuse_ranks(manager: ManagerCore, action: str) -> None:
    if manager.peers.size > 1 or manager.peers.folder is not None or is_wrapped(manager.host):
        raise DistributedError(
            f"cannot {action} a host that several ranks train, or that is wrapped for them: save the run, "
            f"load it in one process, {action}, save; for all ranks, host = fxgraft.load_model(path, "
            f"model); host.clear(); then wrap that, and SeedManager.load(path, ...)"
        )
