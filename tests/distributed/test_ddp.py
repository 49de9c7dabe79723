"""DistributedDataParallel on real processes, over gloo: see ddp_worker.py for what is promised."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.distributed.launch import launch, passed
from tests.harness import THOROUGH

WORKER = Path(__file__).parent / "ddp_worker.py"


def cases() -> set[str]:
    """The functions of the worker that take nothing, or only options, and that do not help others."""
    tree = ast.parse(WORKER.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) if not node.args.args} - {
        "main",
        "stacked",
    }


MORE_THAN_TWO = (
    "the_result_is_that_of_one_process",
    "an_inf_on_one_rank_drops_the_seeds_gradients_on_all",
    "commands_are_given_to_rank_0_and_done_on_all",
    "inserted_blocks_are_the_same_on_all_ranks_and_those_of_one_process",
    "changes_in_the_background_are_applied_in_the_same_step",
    "what_fails_on_one_rank_fails_on_all",
)
"""Where a third rank might do something else than the second. `make soak` runs every promise on four."""


@pytest.mark.parametrize("ranks", [2, 4] if THOROUGH else [2])
def test_every_promise_holds_on(ranks: int, tmp_path: Path) -> None:
    assert passed(launch("ddp_worker.py", ranks, tmp_path)) == cases()


def test_promises_about_others_hold_on_four_ranks(tmp_path: Path) -> None:
    assert passed(launch("ddp_worker.py", 4, tmp_path, *MORE_THAN_TWO)) == set(MORE_THAN_TWO)


@pytest.mark.parametrize("how", ["ends", "hangs"])
def test_a_rank_that_is_lost_ends_in_an_error_that_says_so(how: str) -> None:
    said = launch("lost_worker.py", 2, how)
    assert "told: rank 0 of 2 lost the others" in said
    assert "from the last checkpoint" in said
