"""What `compile_report` tells is what happened."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.testing import no_recompiles
from tests.forks import run_program
from tests.harness import counting_backend, loss_of
from tests.seed_modules import Scale

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def grown(**options: object) -> tuple[fxgraft.Host, fxgraft.SeedManager]:
    torch.manual_seed(0)
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (torch.randn(3, 4),))
    host.compile(**options)
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 1e-2))
    loss_of(host(torch.randn(3, 4))).backward()
    return host, manager


def test_structures_and_graphs_are_counted() -> None:
    backend = counting_backend()
    host, manager = grown(backend=backend)
    manager.germinate("1", Scale(), name="a")
    report = fxgraft.compile_report(host)
    assert report.units == ("",)
    assert [variant.label for variant in report.variants] == [
        "host empty isolated",
        "host a@1 isolated",
        "host a@1 settled",
    ]
    assert [variant.graphs for variant in report.variants] == [1, 1, 1]
    assert report.graphs == backend.frame_count == 3
    assert report.artifacts == report.uncompiled_calls == report.graph_breaks == 0
    assert "3 graphs compiled here" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["variants"][1]["graphs"] == 1


def test_a_recompile_comes_with_its_reason() -> None:
    host, _ = grown(backend="aot_eager")
    host(torch.randn(5, 4))
    row = fxgraft.compile_report(host).variants[0]
    assert row.graphs == 2
    assert len(row.recompiles) == 1
    assert "size mismatch" in row.recompiles[0]
    assert "size mismatch" in str(fxgraft.compile_report(host))


def test_graph_breaks_are_refused_or_counted() -> None:
    class Breaks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return x + 1

    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 4), Breaks()), (torch.randn(3, 4),))
    host.compile(backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        host(torch.randn(3, 4))
    torch._dynamo.utils.counters.clear()
    host.compile(backend="eager", fullgraph=False)
    host(torch.randn(3, 4))
    assert fxgraft.compile_report(host).graph_breaks > 0


def test_a_host_that_is_not_compiled_and_what_is_no_host_are_refused() -> None:
    with pytest.raises(TypeError, match="Linear"):
        fxgraft.compile_report(nn.Linear(4, 4))
    with pytest.raises(fxgraft.errors.FxGraftError, match=r"host\.compile"):
        fxgraft.compile_report(fxgraft.trace(nn.Sequential(nn.Linear(4, 4)), (torch.randn(3, 4),)))


LIFE = """
    import torch, fxgraft
    from torch import nn
    from torch._dynamo.utils import counters
    torch.manual_seed(0)
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (torch.randn(3, 4),))
    host.compile(**{options})
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 1e-2))
    def train(rows=3):
        host(torch.randn(rows, 4)).square().sum().backward()
        manager.step()
    train()
    manager.germinate("1", "low_rank", name="a")
    with torch.compiler.set_stance("fail_on_recompile"):
        train()
        manager.blend("a", to=0.5, steps=2)
        train(); train(); train()
        manager.cull("a")
        train()
    {more}
    print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


def life(folder: Path, options: str = "{}", more: str = "") -> list[int]:
    program = textwrap.dedent(LIFE).replace("{options}", options).replace("{more}", more)
    told = run_program(program, TORCHINDUCTOR_CACHE_DIR=folder)
    return [int(word) for word in told.split()[-2:]]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder that a first life has filled: what others have in common with it is compiled once."""
    folder = tmp_path_factory.mktemp("inductor")
    assert life(folder) == [0, 6]  # forward and backward of three structures
    return folder


@pytest.mark.inductor
def test_a_resumed_run_starts_warm_from_inductors_cache_folder(warm: Path) -> None:
    assert life(warm) == [6, 0]


@pytest.mark.inductor
@pytest.mark.parametrize("options", ['{"mode": "reduce-overhead"}', '{"mode": "max-autotune"}'])
def test_inductors_modes_are_accepted(options: str, warm: Path) -> None:
    assert sum(life(warm, options)) >= 3


@pytest.mark.inductor
def test_under_inductor_the_helpers_code_has_the_values_of_ours(warm: Path) -> None:
    more = """
    before = [p.detach().clone() for p in host.parameters()]
    x = torch.randn(3, 4)
    host.zero_grad()
    with torch.compiler.set_stance("fail_on_recompile"):
        manager.germinate("1", "mlp", name="b", wait=False)
        while manager.seeds["b"].stage.name == "GERMINATED":
            manager._background.wait(120)
            manager.step()
        manager.blend("b", to=0.5, steps=1)
        manager.step()
        host(x).sum().backward()
        ours = [host(x), *(p.grad for p in host.parameters())]
    torch.testing.assert_close([p.detach() for p in host.host_parameters()], before)
    eager = host._root(x)
    torch.testing.assert_close(ours[0], eager)
    grads = torch.autograd.grad(eager.sum(), list(host.parameters()))
    torch.testing.assert_close(ours[1:], list(grads))
    assert fxgraft.compile_report(host).artifacts
    """
    life(warm, more=textwrap.dedent(more))


def test_dynamic_shapes_keep_working() -> None:
    backend = counting_backend("aot_eager")
    host, manager = grown(backend=backend, dynamic=True)
    host(torch.randn(7, 4))
    assert backend.frame_count == 1
    manager.germinate("1", Scale(), name="a")
    with no_recompiles():
        for rows in (3, 5, 8):
            loss_of(host(torch.randn(rows, 4))).backward()
            manager.step()
