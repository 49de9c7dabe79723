"""The operators of the literature in the guide: each line runs, and keeps the function where it says so."""

import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "operators.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\w.+?) \(\[.+?\| `(.+?)` \| (kept|changes) \|", PAGE, flags=re.MULTILINE)
NAMES = [
    "Net2WiderNet", "Net2DeeperNet", "bert2BERT", "LEMON", "LiGO", "HyperCloning", "G_stack", "MIDAS",
    "LLaMA-Pro", "SOLAR", "Sparse upcycling",
]  # fmt: skip


def test_every_operator_has_a_line():
    assert len(ROWS) == PAGE.count("https://arxiv.org/abs/")
    assert all(any(row.startswith(name) for row, *_ in ROWS) for name in NAMES)


@pytest.mark.parametrize(
    ("name", "line", "function"), ROWS, ids=[f"{i}-{row[0]}" for i, row in enumerate(ROWS)]
)
def test_each_line_runs(name, line, function):
    code = re.search(r"```python\n(.+?)```", PAGE, flags=re.DOTALL)
    scope = {"__name__": "guide"}
    exec(code[1], scope)
    host, optimizer, manager, tokens = (scope[key] for key in ("host", "optimizer", "manager", "tokens"))

    def train():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(host(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
        manager.step()

    train()
    size = sum(p.numel() for p in host.parameters())
    before = host(tokens).detach()
    exec(line, scope)
    assert sum(p.numel() for p in host.parameters()) > size
    is_same = torch.allclose(host(tokens), before, rtol=1e-4, atol=1e-5)
    assert is_same == (function == "kept")
    train()
