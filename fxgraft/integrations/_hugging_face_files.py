"""The files beside and in the checkpoints of a Hugging Face ``Trainer``."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import TrainerState, TrainingArguments

from fxgraft.host.host import Host
from fxgraft.util.bits import bits

FILE = "fxgraft.safetensors"
"""The name of our file in each checkpoint folder."""

STATES = ("optimizer.pt", "scheduler.pt")
"""What the trainer would load into an optimizer without seeds; our file has it."""

_REFUSED = (
    "none, because this model has grown: fxgraft.trace(model, ...).load_state_dict("
    "safetensors.torch.load_file('model.safetensors'), strict=False) grows it"
)
"""In the place of an implementation of attention: ``from_pretrained`` reads it and refuses with that."""


def file_to_resume(args: TrainingArguments, state: TrainerState) -> Path:
    """The path of fxgraft's file in the checkpoint that the trainer resumes from.

    The trainer does not pass that folder to callbacks, so it is worked out from the trainer's arguments.
    """
    given = args.resume_from_checkpoint
    name = f"checkpoint-{state.global_step}"
    if isinstance(given, str) and given not in ("True", "true") and (Path(given) / FILE).exists():
        return Path(given) / FILE
    return Path(str(args.output_dir)) / name / FILE


def refuse_from_pretrained(folder: Path) -> None:
    """Make ``from_pretrained`` of this folder raise: it cannot load what grew."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["attn_implementation"] = _REFUSED
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def sums_of_bits(host: Host) -> list[int]:
    """A sum of the bits of each tensor of the model."""
    found = []
    for tensor in host.model_state().values():
        if isinstance(tensor, torch.Tensor):
            found.append(int(bits(tensor.detach()).to(torch.int64).sum()))
    return found
