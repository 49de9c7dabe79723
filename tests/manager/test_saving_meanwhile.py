"""A save while something is prepared in the background: what is not in the file is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import SeedManager, Stage
from tests.harness import warnings_in

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def fresh() -> tuple[fxgraft.Host, torch.optim.Optimizer]:
    torch.manual_seed(0)
    host = fxgraft.trace(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), (X,))
    return host, torch.optim.SGD(host.parameters(), 0.1)


def manager_with_seeds() -> SeedManager:
    manager = SeedManager(*fresh())
    for name in ("a", "b", "c"):
        manager.germinate("1", "low_rank", name=name)
        manager.blend(name, steps=0)
    manager.fossilize("c")
    return manager


def act(manager: SeedManager) -> None:
    with manager.together(wait=False):
        manager.germinate("1", "mlp", name="new")
        manager.cull("a")
        manager.blend("b", to=0.5, steps=3)
        manager.widen("0", 2)  # which will not be, as b works there: said when it comes to that


def widen(manager: SeedManager) -> None:
    for name in ("a", "b"):
        manager.fossilize(name)
    manager.widen("0", 2, wait=False)


def pauses(manager: SeedManager) -> None:
    with manager.together(wait=False):
        manager.pause("a")
        manager.fossilize("b")


CHANGES: dict[str, tuple[Callable[[SeedManager], object], str]] = {
    "germinate": (
        lambda m: m.germinate("1", "mlp", name="new", wait=False),
        "the germination of new",
    ),
    "fossilize": (lambda m: m.fossilize("a", wait=False), "the fossilization of a"),
    "widen": (widen, "the growth of 0 by 2 channels"),
    "fuse": (lambda m: m.fuse("c", wait=False), "the fusion of c"),
    "act": (
        act,
        "the germination of new, the end of a, the blend of b, the growth of 0 by 2 channels",
    ),
    "pauses": (pauses, "the pause of a, the fossilization of b"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_in_the_file_is_named(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    do, words = CHANGES[change]
    manager = manager_with_seeds()
    do(manager)
    before = {name: seed.stage for name, seed in manager.seeds.items() if seed.module is not None}
    for _ in range(2):
        caplog.clear()
        manager.save(tmp_path / "run")
        assert warnings_in(caplog) == [
            f"{tmp_path / 'run'}: has not what is still prepared in the background (wait=False): {words}. "
            f"A run that goes on from this file has to ask for it again; or save once it is live"
        ]
    resumed = SeedManager.load(tmp_path / "run", *fresh())
    assert {name: seed.stage for name, seed in resumed.seeds.items()} == before


def test_a_seed_that_is_culled_without_waiting_is_in_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = manager_with_seeds()
    seed = manager.seeds["a"]
    manager.cull("a", wait=False)
    assert seed.stage is Stage.CULLED
    manager.save(tmp_path / "run")
    assert warnings_in(caplog) == []
    assert "a" not in SeedManager.load(tmp_path / "run", *fresh()).seeds
