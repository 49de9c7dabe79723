"""Growth by itself with blocks and widths among its candidates: within its budget, and resumed to the bit."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxgraft import SeedManager
from fxgraft.explore import AutoGrowth
from tests.explore import runs
from tests.explore.runs import Run
from tests.explore.test_autogrow import Stacked
from tests.harness import assert_same_bits, frozen

STEPS = 14
FEW = settings(deadline=None, max_examples=max(settings().max_examples // 5, 2))


def grow(run: Run, budget: dict[str, float], prefers: str, gain: float) -> AutoGrowth:
    """Everything that there is, with a taste; twice within `STEPS`."""
    return run.manager.autogrow(
        run.evaluate, budget=budget, when=[0.1, 0.5], total_steps=14, steps=2, blend=1, hold=1, gain=gain,
        score=lambda row: (row.blueprint == prefers) - (row.parameters or 0) / 1e9,
    )  # fmt: skip


def size(run: Run) -> dict[str, int]:
    weights = list(run.host.host_parameters())
    return {
        "parameters": sum(p.numel() for p in weights),
        "memory": 4 * sum(p.numel() * p.element_size() for p in weights),
    }


@FEW
@given(
    budget=st.sampled_from([{"parameters": 1.6}, {"memory": 3.0}, {"parameters": 2.5, "memory": 2.0}]),
    prefers=st.sampled_from(["widen", "deepen", "mlp"]),
    gain=st.sampled_from([-1e9, 0.0, 1e9]),
    at=st.integers(1, STEPS - 1),
)
def test_it_keeps_its_budget_and_goes_on_to_the_bit(
    budget: dict[str, float], prefers: str, gain: float, at: int
) -> None:
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr(runs, "NormNet", Stacked)
        whole, file = Run(), Path(folder) / "run"
        before, growth = size(whole), grow(whole, budget, prefers, gain)
        for step in range(1, STEPS + 1):
            whole.train(1)
            now = size(whole)
            assert all(now[name] <= factor * before[name] for name, factor in budget.items()), growth
            if step == at:
                whole.manager.save(file)
        resumed = Run()
        resumed.manager = SeedManager.load(file, resumed.host, resumed.optimizer)
        again = grow(resumed, budget, prefers, gain)
        resumed.train(STEPS - at)
    assert "exploring" in {entry["what"] for entry in growth.history}
    assert again.history == growth.history
    assert_same_bits(frozen(resumed.host.state_dict()), frozen(whole.host.state_dict()), "weights")
    ours, theirs = ({**of.cost, "seconds": None} for of in (again, growth))
    assert ours == theirs
