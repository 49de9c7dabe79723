"""Importing fxgraft imports nothing that only some users need."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fxgraft
from tests.test_public_api import MODULES

ROOT = Path(__file__).parents[1]
OPTIONAL = [
    "accelerate", "hypothesis", "jinja2", "lightning", "matplotlib", "mkdocs", "peft", "plotly",
    "pydot", "rich", "selenium", "sklearn", "tensorboard", "transformers", "typer", "wandb", "yaml",
]  # fmt: skip
NO_MODULES = {"md", "rank", "safetensors"}
"""What follows ``fxgraft.`` in the documents, and is a file's ending, or a name in another table."""
HEAVY = ["networkx", "sympy", "torch._dynamo", "torch._inductor.compile_fx", "torch.distributed.fsdp"]


FORKER = """
import json, os, sys, torch

for line in sys.stdin:
    told, tell = os.pipe()
    if not os.fork():
        before = set(sys.modules)
        scope = {"torch": torch, "sys": sys, "before": before}
        exec(json.loads(line), scope)
        with open(tell, "w") as out:
            json.dump(sorted(set(sys.modules) - scope["before"]), out)
        os._exit(0)
    os.close(tell)
    with open(told) as found:
        print(found.read(), flush=True)
"""
"""Imports torch once, and runs each program in a process forked from there."""


@pytest.fixture(scope="module")
def imported() -> Iterator[Callable[[str], set[str]]]:
    """The modules that a program imports beyond those of ``import torch``, in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as forker:
        assert forker.stdin is not None
        assert forker.stdout is not None
        ask, answer = forker.stdin, forker.stdout

        def run(program: str) -> set[str]:
            print(json.dumps(program), file=ask, flush=True)
            return set(json.loads(answer.readline()))  # no JSON, where the program has failed

        yield run
        ask.close()


def test_import_is_light(imported: Callable[[str], set[str]]) -> None:
    found = imported("import fxgraft")
    assert "fxgraft.manager.manager" in found
    tops = {name.split(".")[0] for name in found}
    assert tops.isdisjoint(OPTIONAL), tops & set(OPTIONAL)
    assert found.isdisjoint(HEAVY), found & set(HEAVY)


def test_the_first_seed_imports_little(imported: Callable[[str], set[str]]) -> None:
    """Beyond what its optimizer does (torch's imports the compiler as it is made)."""
    program = (
        "x, sgd = torch.ones(1, 3), torch.optim.SGD([torch.zeros(1)], 0.1); before |= set(sys.modules); "
        "import fxgraft; model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU()); "
        "host = fxgraft.trace(model, (x,)); "
        "manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1)); "
        "manager.germinate('0', 'mlp'); host(x).sum().backward(); manager.step()"
    )
    found = imported(program)
    assert "fxgraft.manager.manager" in found
    assert [name for name in found if name.startswith(("networkx", "sklearn", "torch.distributed"))] == []


@pytest.mark.parametrize(
    ("packages", "needs"),
    [
        ("report, config, cost, training, controllers", set()),
        ("report.screen", {"rich"}),
        ("report.page", {"jinja2", "plotly"}),
        ("integrations.peft", {"peft", "transformers", "accelerate", "yaml", "jinja2"}),
    ],
)
def test_a_package_needs_its_extra_only(
    packages: str, needs: set[str], imported: Callable[[str], set[str]]
) -> None:
    program = "; ".join(f"import fxgraft.{package}" for package in packages.split(", "))
    tops = {name.split(".")[0] for name in imported(program)}
    assert tops & set(OPTIONAL) <= needs


def test_what_the_documents_name_is_there_after_a_plain_import() -> None:
    """``import fxgraft`` is enough for ``fxgraft.training.Trainer``: a package is imported when named."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    pages = [page for page in pages if page.name != "messages.md"]  # which says where a message is from
    named = {
        name for page in pages for name in re.findall(r"\bfxgraft((?:\.[a-z_]+)+)", page.read_text("utf-8"))
    }
    paths = {name.removeprefix(".") for name in named} - NO_MODULES
    packages = {name.removeprefix("fxgraft.") for name in MODULES if name.startswith("fxgraft.")}
    code = "import fxgraft, operator, sys\nfor name in sys.argv[1:]: operator.attrgetter(name)(fxgraft)"
    done = subprocess.run(
        [sys.executable, "-c", code, *sorted(paths | packages)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert {"training", "controllers", "report", "cost", "gates"} <= paths | packages


def test_the_packages_are_listed_and_a_strange_name_is_refused() -> None:
    assert {"training", "controllers", "report", "cost", "config", "testing", "SeedManager"} <= set(
        dir(fxgraft)
    )
    assert {"lightning", "peft", "accelerate", "hugging_face"} <= set(dir(fxgraft.integrations))
    with pytest.raises(
        AttributeError, match=r"'fxgraft' has no attribute 'trainign'\. Did you mean 'training'"
    ):
        fxgraft.trainign
    assert not hasattr(fxgraft, "no_such_name")
