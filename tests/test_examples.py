"""The examples run, from the first line to the last."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
SAYS = {
    "char_gpt.py": "bits per character",
    "digits_cnn.py": "grown at",
    "low_rank_and_peft.py": "PEFT LoRA",
}


def test_every_example_is_tested_and_told_of() -> None:
    assert {file.name for file in EXAMPLES} == set(SAYS)
    readme = (EXAMPLES[0].parent / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in SAYS)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_an_example_runs(file: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(file), "--quick"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[file.name] in done.stdout
