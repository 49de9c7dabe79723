"""Each private part of torch that is used, as this torch has it; and that they are in one file."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxgraft import _torch
from fxgraft.util.bits import same_bits
from fxgraft.util.flops import count_flops

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(r"\btorch(?:\.[a-z]\w*)*\._[a-zA-Z]|_dynamo_")
EVERYWHERE = (
    "torch.amp.autocast_mode",
    "torch.utils._pytree",
    "torch.utils._python_dispatch",
    "torch._dynamo.config.metrics_count",
)
"""Half public: torch's own documentation shows them, or only a comment has them.

Those of autocast are in `fxgraft.fossils._plain_code` too, whose text runs where there is no fxgraft.
"""


def test_private_parts_are_used_in_one_file_only() -> None:
    found = []
    for folder in ("fxgraft", "passes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name == "_torch.py":  # one for each package
                continue
            for line in path.read_text("utf-8").splitlines():
                rest = line
                for allowed in EVERYWHERE:
                    rest = rest.replace(allowed, "")
                if PRIVATE.search(rest):
                    found.append(f"{path.relative_to(ROOT)}: {line.strip()}")
    assert found == []


def test_hooks_that_hold_their_module() -> None:
    module = nn.Linear(2, 2)
    module.register_load_state_dict_pre_hook(lambda *_: None)
    module.register_load_state_dict_post_hook(lambda *_: None)
    assert all(map(_torch.is_hook_with_module, module._load_state_dict_pre_hooks.values()))
    assert not any(map(_torch.is_hook_with_module, module._load_state_dict_post_hooks.values()))


def test_settings_of_the_compiler() -> None:
    _torch.import_compiler()
    dynamo, functorch, inductor = _torch.compiler_configs()
    before = _torch.overrides(inductor)
    assert "max_autotune" not in before
    with inductor.patch(max_autotune=True), dynamo.patch(recompile_limit=3):
        assert _torch.overrides(inductor) == {**before, "max_autotune": True}
        assert _torch.overrides(dynamo)["recompile_limit"] == 3
    assert not _torch.overrides(inductor).get("max_autotune", False)
    assert isinstance(_torch.overrides(functorch), dict)


def test_artifacts_and_their_guards() -> None:
    def entry(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = module(x)
        return out

    module, x = nn.Linear(3, 2), torch.ones(4, 3)
    made = torch.compile(entry, backend="aot_eager", fullgraph=True).aot_compile(((module, x), {}))
    data = _torch.artifact_bytes(made, entry.__globals__)
    parts = _torch.ArtifactParts(data)
    run, check = parts.code(parts.guards_state())
    assert torch.equal(run(module, x), module(x))
    assert check({"module": module, "x": x})
    assert not check({"module": module, "x": x.double()})


def test_guards_that_no_artifact_holds_have_names() -> None:
    assert {"ID_MATCH", "CLOSURE_MATCH"} <= _torch.unserializable_guards()


@pytest.mark.usefixtures("fresh_compiler")
def test_counts_of_dynamo() -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    counter = _torch.counting_backend("eager")
    x = torch.ones(3, 2)
    _torch.mark_maybe_dynamic(x, 0)
    torch.compile(double, backend=counter, fullgraph=True)(x)
    assert counter.frame_count == 1
    assert _torch.graphs_of(double.__code__) == 1
    assert _torch.compilations()[-1].co_name == "double"
    assert isinstance(_torch.graph_breaks(), int)


def test_inductor() -> None:
    _torch.forget_files()
    _torch.forget_compilations()
    assert "triton.cudagraphs" in _torch.mode_options("reduce-overhead")


def test_what_is_constant_when_compiled() -> None:
    said = []

    def say() -> None:
        said.append(1)

    def shout(x: torch.Tensor) -> torch.Tensor:
        say()
        return x + 1

    _torch.constant_when_compiled(say)
    compiled = torch.compile(shout, backend="eager", fullgraph=True)
    for _ in range(3):
        compiled(torch.ones(2))
    assert said == [1]  # while it compiled


def test_autograd_and_transforms() -> None:
    inside = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
            inside.append(_torch.is_in_backward())
            return grad

    Look.apply(torch.ones(1, requires_grad=True)).backward()
    assert inside == [True]
    assert not _torch.is_in_backward()

    assert _torch.unpatched(math.sqrt) is math.sqrt
    patched = torch.fx._symbolic_trace._create_wrapped_func
    assert _torch.unpatched(patched(patched(math.sqrt))) is math.sqrt

    forward = []
    torch.func.jvp(
        lambda x: forward.append(_torch.is_in_forward_mode()) or x, (torch.ones(2),), (torch.ones(2),)
    )
    assert forward == [True]
    assert not _torch.is_in_forward_mode()

    seen = []
    torch.func.vmap(lambda x: seen.append(_torch.is_inside_transform()) or x)(torch.ones(2))
    assert seen == [True]
    assert not _torch.is_inside_transform()
    with torch.enable_grad():
        _torch.set_grad_enabled(False)
        assert not torch.is_grad_enabled()


def test_sizes() -> None:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = _torch.fake_tensor_mode(ShapeEnv())
    with _torch.sizes_may_be_one(), mode:
        fake = mode.from_tensor(torch.ones(3, 2))
        assert fake.shape[1] == 2
        with pytest.raises(_torch.data_dependent_errors()):
            bool(torch.nonzero(mode.from_tensor(torch.ones(3))).shape[0] == 2)
    assert _torch.python_of(torch.sym_int(3)) == "3"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_are_finite_leaves_all_bits(dtype: torch.dtype) -> None:
    found, one = torch.zeros(()), torch.ones(())
    numbers = torch.tensor([-0.0, 6e-8, 1e-45, 6e4])
    tensors = [torch.randn(3, 4).to(dtype).t(), numbers.to(dtype), torch.zeros(0)]
    before = [tensor.clone() for tensor in tensors]
    assert _torch.are_finite(tensors, found, one)
    assert all(map(same_bits, tensors, before))
    for bad in ("nan", "inf", "-inf"):
        assert not _torch.are_finite([*tensors, torch.tensor([1.0, float(bad)]).to(dtype)], found, one)
    assert _torch.are_finite(tensors, found, one)


def test_are_finite_refuses_what_it_cannot_look_at() -> None:
    for strange in (torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse(), torch.ones(1).expand(2)):
        with pytest.raises(RuntimeError):
            _torch.are_finite([strange], torch.zeros(()), torch.ones(()))


def test_norms() -> None:
    found = _torch.norms([torch.tensor([3.0, 4.0]), torch.zeros(2, dtype=torch.bfloat16)], torch.float32)
    assert [norm.item() for norm in found] == [5.0, 0.0]
    assert {norm.dtype for norm in found} == {torch.float32}


def test_attention_on_a_cpu() -> None:
    """Both are what runs: FLOPs are those of 2 products of (5, 4) by (4, 5), for each of 3 heads."""
    query = torch.randn(1, 3, 5, 4, requires_grad=True)
    forward = count_flops(lambda: F.scaled_dot_product_attention(query, query, query))
    step = count_flops(lambda: F.scaled_dot_product_attention(query, query, query).sum().backward())
    assert forward == 2 * 2 * 3 * 5 * 5 * 4
    assert step == 3.5 * forward  # backward computes the scores again, and four products
    assert all(map(callable, _torch.cpu_attention()))
