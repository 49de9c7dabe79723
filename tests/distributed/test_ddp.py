"""DistributedDataParallel on real processes, over gloo: see ddp_worker.py for what is promised."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.distributed.launch import launch

WORKER = Path(__file__).parent / "ddp_worker.py"


def cases() -> set[str]:
    """The functions of the worker that take nothing, or only options, and that do not help others."""
    tree = ast.parse(WORKER.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) if not node.args.args} - {
        "main",
        "stacked",
    }


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_promise_holds_on(ranks: int, tmp_path: Path) -> None:
    said = launch("ddp_worker.py", ranks, tmp_path)
    passed = {line.split()[1] for line in said.splitlines() if line.startswith("ok ")}
    assert passed == cases()


@pytest.mark.parametrize("how", ["ends", "hangs"])
def test_a_rank_that_is_lost_ends_in_an_error_that_says_so(how: str) -> None:
    said = launch("lost_worker.py", 2, how)
    assert "told: rank 0 of 2 lost the others" in said
    assert "from the last checkpoint" in said
