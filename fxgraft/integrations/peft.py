"""PEFT's LoRA as seeds: they grow in isolation, are blended in, and leave as an adapter. Needs peft.

config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05)
manager.germinate("fc2", lora(config, model.fc2), source="relu")  # relu is what fc2 reads
...
save_adapter("adapter", manager.seeds.values(), config)  # PeftModel.from_pretrained(base, "adapter")

Any other module of PEFT is a seed as it is: `SeedManager.germinate` takes an ``nn.Module``.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from fxgraft.seeds.seed import Seed
from fxgraft_passes import Slot

WEIGHTS = "adapter_model.safetensors"
"""What PEFT calls the weights in an adapter's folder."""


class LoraBranch(nn.Module):
    """The LoRA branch of a layer, ``scaling * B(A(dropout(x)))`` (Hu et al., 2021, arXiv:2106.09685).

    ``x`` is the layer's input. ``A`` and ``B`` are PEFT's own modules, with its initial values: B is zero.

    Args:
        adapted: a layer with one adapter, ``"default"``.
    """

    def __init__(self, adapted: LoraLayer):
        super().__init__()
        self.dropout: nn.Module = adapted.lora_dropout["default"]
        self.lora_A: nn.Module = adapted.lora_A["default"]
        self.lora_B: nn.Module = adapted.lora_B["default"]
        self.scaling = float(adapted.scaling["default"])

    def forward(self, x: Tensor) -> Tensor:
        """The value that is added to the output of the layer.

        Args:
            x: the input of the layer, (..., features in), of the layer's dtype.
        """
        added: Tensor = self.lora_B(self.lora_A(self.dropout(x))) * self.scaling
        return added


def lora(config: LoraConfig, layer: nn.Module) -> Callable[[Slot], nn.Module]:
    """A blueprint of the branch that PEFT would add to ``layer`` with ``config``.

    Germinate it at the slot of the layer; ``source`` is the slot whose value the layer reads.

    Args:
        config: rank, scaling, dropout, initial values. ``target_modules`` is ignored.
        layer: a layer that PEFT adapts (``nn.Linear``, ``nn.Conv2d``, transformers' ``Conv1D``, …).

    Raises:
        ValueError: PEFT does not adapt such a layer; or not by adding to its output (DoRA and the like).
    """

    def build(slot: Slot) -> nn.Module:
        alone = copy.copy(config)
        alone.target_modules = ["layer"]
        holder = nn.ModuleDict({"layer": copy.deepcopy(layer)})  # PEFT wraps the layer in place
        inject_adapter_in_model(alone, holder)
        adapted = holder["layer"]
        if not isinstance(adapted, LoraLayer):
            raise ValueError(f"layer: expected one that PEFT adapts; got {type(layer).__name__}")
        if adapted.lora_variant:
            raise ValueError(
                f"config: expected plain LoRA, whose result is added to the layer's; "
                f"got {type(adapted.lora_variant['default']).__name__}"
            )
        return LoraBranch(adapted)

    return build


def adapter_state(seeds: Iterable[Seed]) -> dict[str, Tensor]:
    """The weights of LoRA seeds, by PEFT's names, ``base_model.model.<layer>.lora_A.weight``.

    Args:
        seeds: the seeds of a manager; other seeds than LoRA are ignored.

    Raises:
        ValueError: the alpha of a seed is not 1, as it is in an adapter.
    """
    found: dict[str, Tensor] = {}
    for seed in seeds:
        if not isinstance(seed.module, LoraBranch):
            continue
        if seed.alpha != 1.0:
            raise ValueError(
                f"seed {seed.name!r}: expected alpha 1, as PEFT adds an adapter as a whole; "
                f"got {seed.alpha:g}. Blend it to 1 first"
            )
        for part in ("lora_A", "lora_B"):
            for name, value in seed.module.get_submodule(part).state_dict().items():
                found[f"base_model.model.{seed.slot}.{part}.{name}"] = value
    return found


def save_adapter(folder: str | os.PathLike[str], seeds: Iterable[Seed], config: LoraConfig) -> None:
    """Write LoRA seeds as an adapter that ``PeftModel.from_pretrained(base, folder)`` loads.

    Args:
        folder: the folder; it is created if it is missing.
        seeds: as for `adapter_state`.
        config: the configuration with which they were germinated.

    Raises:
        ValueError: as `adapter_state`; or there is no LoRA seed.
    """
    seeds = list(seeds)
    state = adapter_state(seeds)
    if not state:
        raise ValueError("seeds: expected one at least that fxgraft.integrations.peft.lora made; got none")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    saved = copy.copy(config)
    saved.target_modules = [seed.slot for seed in seeds if isinstance(seed.module, LoraBranch)]
    saved.save_pretrained(str(target))
    save_file({name: value.detach().contiguous().cpu() for name, value in state.items()}, target / WEIGHTS)
