"""Names that are made say what a seed is made from and where it is, and each is made once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxgraft
from fxgraft.seeds.names import SeedNames
from tests.networks import ResidualMLP


@pytest.mark.parametrize(
    ("blueprint", "slot", "name"),
    [
        ("mlp", "relu", "mlp_at_relu"),
        ("low_rank", "blocks.0.up", "low_rank_at_blocks_0_up"),
        ("mlp", "relu->fc2", "mlp_at_relu_fc2"),
        ("mlp", "lstm[0]", "mlp_at_lstm_0"),
        ("mlp", "fc@*", "mlp_at_fc"),
        ("<lambda>", "", "lambda_at_seed"),
        ("mlp", "_seeds.Block_at_blocks_0.module.up", "mlp_at_Block_at_blocks_0_up"),
    ],
)
def test_a_name_says_what_and_where(blueprint: str, slot: str, name: str) -> None:
    assert SeedNames().make(blueprint, slot, ()) == name


def test_the_second_name_has_a_number_that_no_slot_can_have() -> None:
    names = SeedNames()
    assert names.make("mlp", "add_2", ()) == "mlp_at_add_2"
    assert [names.make("mlp", "add", ()) for _ in range(3)] == ["mlp_at_add", "mlp_at_add-2", "mlp_at_add-3"]
    assert names.make("mlp", "add_2", {"mlp_at_add_2-2"}) == "mlp_at_add_2-3"


NAMES = st.from_regex(r"[ab]_at_[cd](-[1-9][0-9]?)?", fullmatch=True)


@given(st.lists(st.one_of(NAMES, st.tuples(st.sampled_from("ab"), st.sampled_from(["c", "d", "c.d"])))))
def test_no_name_is_made_twice_nor_one_that_was_given(asked: list[str | tuple[str, str]]) -> None:
    names, made = SeedNames(), []
    for one in asked:
        if isinstance(one, str):
            names.note(one)
            made.append(one)
        else:
            previewed = names.preview(*one, ())
            new = names.make(*one, ())
            assert new == previewed
            assert new not in made
            made.append(new)
            names = SeedNames(names.next_numbers)  # as from a checkpoint


def test_names_of_seeds_and_blocks_are_usable_wherever_names_are(tmp_path) -> None:
    host = fxgraft.trace(ResidualMLP(), (torch.randn(2, 4),))
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    first = manager.germinate("relu", "low_rank", rank=1)
    assert manager.plan("relu", "low_rank", rank=1).name == "low_rank_at_relu-2"
    second = manager.germinate("relu", nn.Linear(8, 8))
    third = manager.germinate("relu", "low_rank", rank=1)
    assert list(manager.seeds) == ["low_rank_at_relu", "Linear_at_relu", "low_rank_at_relu-2"]
    host(torch.randn(2, 4)).sum().backward()
    manager.cull(first)
    manager.fossilize(third, force=True)
    manager.save(tmp_path / "run.fxg")
    again = fxgraft.trace(ResidualMLP(), (torch.randn(2, 4),))
    optimizer = torch.optim.SGD(again.parameters(), 0.1)
    loaded = fxgraft.SeedManager.load(
        tmp_path / "run.fxg", again, optimizer, blueprints={second.name: nn.Linear(8, 8)}
    )
    assert list(loaded.seeds) == ["Linear_at_relu", "low_rank_at_relu-2"]
    assert loaded.germinate("relu", "low_rank", rank=1).name == "low_rank_at_relu-3"
