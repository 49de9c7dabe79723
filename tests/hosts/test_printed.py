"""What is printed of a host is a table in lines of 80 characters, and loses nothing of long names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.util.tables import text_table
from tests.networks import ResidualMLP

CONTAINER = "transformation_of_the_first_kind"


class LongNames(nn.Module):
    """Names of modules that no line of 80 characters has room for beside anything else."""

    def __init__(self) -> None:
        super().__init__()
        blocks = nn.ModuleList([ResidualMLP() for _ in range(3)])
        self.representation_of_inputs = nn.ModuleDict({CONTAINER: blocks})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.representation_of_inputs[CONTAINER]:  # type: ignore[union-attr]
            x = block(x)
        return x


@pytest.fixture(scope="module")
def manager() -> fxgraft.SeedManager:
    host = fxgraft.trace(LongNames(), (torch.randn(2, 4),))
    made = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    made.germinate(next(iter(host.slots)), "mlp", name="seed_with_a_long_name_as_well", hidden=2)
    return made


PRINTED: dict[str, tuple[Callable[[fxgraft.SeedManager], object], list[str]]] = {
    "host": (lambda manager: manager.host, ["module", "class", "parameters", "slots", "seeds"]),
    "slots": (lambda manager: manager.host.slots, ["slot", "value", "behind"]),
    "stacks": (lambda manager: manager.host.stacks, ["stack", "blocks", "class", "names"]),
    "channels": (lambda manager: manager.host.channels, ["channels", "size", "grow by", "tensors", "fixed"]),
    "plan": (lambda manager: manager.plan(last(manager), "mlp", hidden=2), ["parameter", "shape", "goes to"]),
}


def last(manager: fxgraft.SeedManager) -> str:
    return next(reversed(list(manager.host.slots)))


def table_in(text: str) -> list[str]:
    """The lines of the first table of a text, from its headers on."""
    lines = text.splitlines()
    rule = next(i for i, line in enumerate(lines) if set(line) == {"-", " "})
    end = next((i for i in range(rule, len(lines)) if lines[i].startswith("  FLOPs")), len(lines))
    return lines[rule - 1 : end]


def cells(table: list[str]) -> list[list[str]]:
    """The cells below each other, put together again; columns are where the rule has dashes."""
    starts = [i for i, (one, two) in enumerate(zip(" " + table[1], table[1])) if (one, two) == (" ", "-")]
    rows: list[list[str]] = []
    for line in table[2:]:
        parts = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None])]
        if parts[1]:
            rows.append(parts)
        else:
            rows[-1] = [a + b for a, b in zip(rows[-1], parts)]
    return rows


@pytest.mark.parametrize("what", PRINTED)
def test_what_is_printed_is_a_table_in_80_columns(
    what: str, manager: fxgraft.SeedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")  # there are always 80
    printed, headers = PRINTED[what]
    table = table_in(str(printed(manager)))
    assert max(map(len, table)) <= 80
    assert " ".join(table[0].split()) == " ".join(headers)


def test_no_name_is_shortened(manager: fxgraft.SeedManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    host = manager.host
    assert [row[0] for row in cells(table_in(str(host.slots)))] == list(host.slots)
    assert [row[0] for row in cells(table_in(str(host.channels)))] == list(host.channels)
    ((stack, blocks, kind, names),) = cells(table_in(str(host.stacks)))
    assert (stack, blocks, kind) == (f"representation_of_inputs.{CONTAINER}", "3", "ResidualMLP")
    assert names.split(",") == [f"{stack}.{i}" for i in range(3)]


def test_a_wide_terminal_has_room_for_whole_names(
    manager: fxgraft.SeedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    slots = manager.host.slots
    assert [line.split()[0] for line in str(slots).splitlines()[2:]] == list(slots)


def test_why_channels_cannot_grow_is_in_their_row(manager: fxgraft.SeedManager) -> None:
    host = manager.host
    fixed = [row[0] for row in cells(table_in(str(host.channels))) if row[4]]
    assert fixed == [name for name, group in host.channels.items() if group.fixed] != []


def test_text_that_does_not_fit_is_continued_below_and_numbers_are_whole() -> None:
    assert text_table(("name", "n"), [("one.two.three", 12345)], width=14).splitlines() == [
        "name         n",
        "------  ------",
        "one.    12,345",
        "two.",
        "three",
    ]
    assert text_table(("name",), [("undivided",)], width=4).splitlines()[2:] == ["undi", "vide", "d"]


def test_columns_of_strings_stand_to_the_right_where_they_are_numbers_to_readers() -> None:
    assert text_table(("a", "ms"), [("x", "1.25")], right=("ms",)).splitlines()[2] == "x  1.25"
    assert text_table(("ms",), [("1",), ("1.25",)], right=("ms",)).splitlines()[2] == "   1"
