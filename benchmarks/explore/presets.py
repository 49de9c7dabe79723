"""What the presets of `fxgraft.explore.presets` try and cost, against ``"auto"``, on models of transformers.

    python -m benchmarks.explore.presets [--only NAME ...]

Processor time of a training step of the bare host, of one with the candidates of the preset beside it, and of
one with those of ``"auto"``: in one process, in turns. Writes ``benchmarks/results/presets.json`` and the
table in ``docs/guides/explore.md``.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxgraft
from benchmarks.environment import describe
from benchmarks.timing import processor_ms
from fxgraft.explore import presets

RESULTS = Path(__file__).parents[1] / "results" / "presets.json"
PAGE = Path(__file__).parents[2] / "docs" / "guides" / "explore.md"
BEGIN, END = "<!-- presets: begin -->", "<!-- presets: end -->"
TURNS, WARM_UP = 9, 2
WIDTH, BLOCKS = 64, 4

_TEXT = {"vocab_size": 96, "hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 4}
_TEXT |= {"intermediate_size": 4 * WIDTH, "max_position_embeddings": 64}
_IMAGE = {k: v for k, v in _TEXT.items() if k not in ("vocab_size", "max_position_embeddings")}
_STAGES = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "layer_type": "basic"}

# What is shown -> preset, what it tries (behind each block; and), model and configuration of transformers.
FAMILIES: dict[str, tuple[str, str, str, str, str, dict[str, Any]]] = {
    "GPT-2": (
        "decoder", "`mlp`, causal `attention`, one more block", "`mlp` before the head",
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": 96, "n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64},
    ),
    "Llama": ("decoder", "", "", "LlamaForCausalLM", "LlamaConfig", _TEXT),
    "BERT": (
        "encoder", "the same, attention to both sides", "`mlp` before the head",
        "BertForMaskedLM", "BertConfig", _TEXT,
    ),
    "ViT": (
        "vision", "as `encoder`", "", "ViTForImageClassification", "ViTConfig",
        {**_IMAGE, "image_size": 32, "patch_size": 8},
    ),
    "ResNet": (
        "resnet", "`conv_bottleneck`, `squeeze_excite`, one more block", "",
        "ResNetForImageClassification", "ResNetConfig", _STAGES,
    ),
}  # fmt: skip


def example(config: str) -> Tensor:
    """One small batch: 8 texts of 32 tokens, or 8 images of 32 x 32 pixels."""
    draw = torch.Generator().manual_seed(0)
    if config in ("ViTConfig", "ResNetConfig"):
        return torch.randn(8, 3, 32, 32, generator=draw)
    return torch.randint(0, 96, (8, 32), generator=draw)


class Training:
    """A model in training, alone or beside an exploration of ``candidates``."""

    def __init__(self, family: str, candidates: Callable[[fxgraft.Host], Any] | None = None):
        import transformers

        _, _, _, model, config, settings = FAMILIES[family]
        torch.manual_seed(0)
        self.x = example(config)
        made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
        self.host = fxgraft.trace(made, (self.x,))
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-3)
        self.manager = fxgraft.SeedManager(self.host, self.optimizer, check_every=0)
        self.exploration = None
        if candidates is not None:
            self.exploration = self.manager.explore(candidates(self.host), evaluate=self.loss, steps=10_000)

    def loss(self) -> Tensor:
        logits: Tensor = self.host(self.x).logits
        return logits.float().square().mean()

    def step(self) -> None:
        """Of training."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        self.manager.step()

    def tried(self) -> dict[str, int]:
        assert self.exploration is not None
        found = Counter(row.status for row in self.exploration.table)
        return {"tried": found["learning"], "failed": found["failed"], "left_out": found["left out"]}


def measure(family: str) -> dict[str, Any]:
    """One row of the table."""
    preset = getattr(presets, FAMILIES[family][0])
    explored = {"preset": Training(family, preset), "auto": Training(family, lambda host: "auto")}
    arms = {"bare": Training(family), **explored}
    medians = processor_ms({name: arm.step for name, arm in arms.items()}, TURNS, WARM_UP)
    return {
        "family": family,
        **{name: {**arm.tried(), "step": medians[name] / medians["bare"]} for name, arm in explored.items()},
        "bare_ms": medians["bare"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """For the guide."""
    head = [
        "preset",
        "behind each block",
        "and",
        "measured on",
        "candidates",
        "a step with them, of the bare one",
    ]
    head += ['`"auto"`: tried', "left out by its cap", "a step with them"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    before = ""
    for row in rows:
        preset, inside, ends, *_ = FAMILIES[row["family"]]
        name = f"`{preset}`" if preset != before else ""
        ours, auto = row["preset"], row["auto"]
        cells = [name, inside, ends, row["family"], _tried(ours), f"{ours['step']:.1f}", _tried(auto)]
        lines.append(f"| {' | '.join(map(str, [*cells, auto['left_out'], format(auto['step'], '.1f')]))} |")
        before = preset
    return "\n".join(lines)


def _tried(found: dict[str, Any]) -> str:
    failed = found.get("failed", 0)
    return f"{found['tried']}, and {failed} fail" if failed else str(found["tried"])


def into_page(text: str, rows: list[dict[str, Any]]) -> str:
    """The guide with the table between its markers."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explore.presets", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), help="print these, write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for family in options.only or FAMILIES:
        rows.append(measure(family))
        print(json.dumps(rows[-1]), flush=True)
    if not options.only:
        data = {"command": "python -m benchmarks.explore.presets", "environment": describe(), "rows": rows}
        RESULTS.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(into_page(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main()
