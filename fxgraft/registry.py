"""Who owns a parameter, and which optimizer group it is in.

A parameter of a seed has one owner, and joins one existing optimizer group: groups added after a
scheduler was made break five of torch's ten schedulers at their next step.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fxgraft.seed import Seed
from fxgraft_passes.errors import BlueprintError


class SeedParameterRegistry:
    """The parameters of live seeds: parameter -> owner, and their place in the optimizers.

    Args:
        optimizers: those that seeds are trained by; may be empty.
    """

    def __init__(self, optimizers: Sequence[Optimizer] = ()):
        self._optimizers = tuple(optimizers)
        self._owned: dict[str, list[weakref.ref[nn.Parameter]]] = {}

    def claim(self, seed: Seed, module: nn.Module, of_host: Callable[[nn.Parameter], bool]) -> None:
        """Make ``seed`` the owner of the parameters of ``module``. ``of_host`` tells the host's.

        Raises:
            BlueprintError: if one is the host's or another seed's; nothing is claimed then.
        """
        self.admit(seed, module, of_host)
        self._owned[seed.name] = [weakref.ref(p) for p in module.parameters()]

    def admit(self, seed: Seed, module: nn.Module, of_host: Callable[[nn.Parameter], bool]) -> None:
        """Raise `BlueprintError` if a parameter of ``module`` is the host's or another seed's."""
        owners = {id(p): f"seed {owner!r}" for owner in self._owned for p in self.parameters(owner)}
        for name, parameter in module.named_parameters():
            owner = "the host" if of_host(parameter) else owners.get(id(parameter))
            if owner:
                raise BlueprintError(
                    f"seed {seed.name!r} at slot {seed.slot!r}: expected parameters of its own; {name} "
                    f"belongs to {owner}, whose training it would change"
                )

    def disown(self, seed: str) -> None:
        """Forget a seed's ownership (its parameters are the host's now, or gone)."""
        self._owned.pop(seed, None)

    def parameters(self, seed: str) -> list[nn.Parameter]:
        """The parameters that ``seed`` owns."""
        return [p for ref in self._owned.get(seed, ()) if (p := ref()) is not None]

    def join(self, module: nn.Module, prefix: str) -> None:
        """Add the trainable parameters of ``module`` to the optimizers' existing groups.

        Each joins the group that holds the most parameters of its own number of dimensions: biases
        go where biases are, matrices to the optimizer for matrices.
        """
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and self._optimizers:
                group = self._group_for(parameter)
                group["params"].append(parameter)
                if "param_names" in group:
                    group["param_names"].append(f"{prefix}.{name}")

    def leave(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take parameters out of every group and every optimizer's state."""
        leaving = {id(p) for p in parameters}
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                staying = [i for i, p in enumerate(group["params"]) if id(p) not in leaving]
                for key in ("params", "param_names"):
                    if key in group and len(staying) < len(group[key]):
                        group[key][:] = [group[key][i] for i in staying]
            for parameter in [p for p in optimizer.state if id(p) in leaving]:
                del optimizer.state[parameter]

    def _group_for(self, parameter: nn.Parameter) -> dict[str, Any]:
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]

        def closeness(group: dict[str, Any]) -> tuple[int, int]:
            dims = Counter(p.dim() for p in group["params"])
            return dims[parameter.dim()], sum(n for d, n in dims.items() if d < 2)

        return max(groups, key=closeness)
