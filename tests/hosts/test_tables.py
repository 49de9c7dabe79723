"""``print(host)`` and ``print(host.slots)`` are tables: each value stands below its header."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.util.tables import text_table


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([Layer(), Layer(), Layer()]), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def grown() -> fxgraft.Host:
    host = fxgraft.trace(Stack(), (torch.randn(2, 4),))
    manager = fxgraft.SeedManager(host)
    manager.germinate("blocks.2.relu", "mlp", name="a", hidden=2)
    manager.germinate("head", "scale_shift", name="b")
    manager.fossilize("b", force=True)
    return host


HOST = """\
host of Stack: 70 parameters and 26 of seeds, 10 slots, 2 seeds
module               class  parameters  slots  seeds
-------------------  -----  ----------  -----  ----------------------------
(root)               Stack          70      4  b at head (fossil)
blocks.0 … blocks.1  Layer          20      2
blocks.2             Layer          20      2  a at blocks.2.relu (alpha 0)"""


def test_a_host_prints_as_a_table() -> None:
    assert str(grown()) == HOST


def test_slots_print_as_a_table() -> None:
    lines = str(grown().slots).splitlines()
    assert lines[0].split() == ["slot", "value", "behind"]
    assert [line.split()[0] for line in lines[2:]] == list(grown().slots)
    assert lines[2].split() == ["blocks.0.fc", "float32", "(2,", "4)", "Linear"]
    assert len(str(grown().slots.select("head")).splitlines()) == 3


def test_columns_are_as_wide_as_what_is_in_them_and_numbers_stand_to_the_right() -> None:
    assert text_table(("a", "number"), [("long", 1234), ("x", None)]) == (
        "a     number\n----  ------\nlong   1,234\nx"
    )
    assert text_table(("a", "b"), []) == "a  b\n-  -"
