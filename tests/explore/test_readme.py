"""README's first example prints what the page says, and ends as it says."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.test_docs import BLOCK, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECONDS = re.compile(r"; [\d.]+ s$")
LAST_LINE = "print(growth)"


def ended(code: str, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], str, str, Any]:
    """What a program prints; loss and accuracy at the end as the page writes them; its growth."""
    scope: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), scope)
    x, y, host = scope["x"][1500:], scope["y"][1500:], scope["host"].eval()
    with torch.no_grad():
        out = host(x)
    accuracy = (out.argmax(1) == y).float().mean()
    lines = capsys.readouterr().out.splitlines()
    return lines, f"{cross_entropy(out, y):.2f}", f"{accuracy:.2f}", scope.get("growth")


def words(line: str) -> list[str]:
    """Columns are as wide as the rows that are shown."""
    return SECONDS.sub("", line).split()


def test_the_example_prints_and_ends_as_the_page_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")  # as where there is no terminal: no row is folded
    code = BLOCK.findall(README)[0]
    shown = README.split("```text\n")[1].split("```")[0].splitlines()
    lines, loss, accuracy, growth = ended(code, capsys)
    printed = [words(line) for line in lines]
    assert [words(line) for line in shown if words(line) not in printed] == []
    kept = [line for line in printed if {"kept", "widened"} & set(line[1:2])]
    assert [words(line) for line in shown[-len(kept) :]] == kept, "the page leaves out a part that stayed"
    plain = "\n".join(line for line in code.splitlines() if not line.startswith(("growth = ", LAST_LINE)))
    _, bare_loss, bare_accuracy, _ = ended(plain, capsys)
    said = f"the loss is {loss} and the accuracy {accuracy}; without growth they are "
    assert f"{said}{bare_loss} and {bare_accuracy}." in " ".join(README.split())
    guide = " ".join((ROOT / "docs" / "guides" / "explore.md").read_text(encoding="utf-8").split())
    assert f"all this cost {growth.cost['training_steps'] / 1500:.1f} times the FLOPs of 1,500 steps" in guide
