"""Each private part of torch that is used, as this torch has it; and that they are in one file."""

from __future__ import annotations

import ast
import inspect
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fxgraft import _torch
from fxgraft.util.bits import same_bits
from fxgraft.util.flops import count_flops
from fxgraft_passes import _torch as _torch_of_passes
from tests.sources import parsed

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(r"\btorch(?:\.[a-z]\w*)*\._[a-zA-Z]|_dynamo_")
EVERYWHERE = (
    "torch.amp.autocast_mode",
    "torch.utils._pytree",
    "torch.utils._python_dispatch",
    "torch._dynamo.config.metrics_count",
    "torch._dynamo.config.recompile_limit",
    "torch.compiler.is_dynamo_compiling",
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


OF_OBJECTS = {
    "_call_impl", "_compiled_call_impl", "_forward_hooks", "_forward_pre_hooks",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs",
    "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
    "_non_persistent_buffers_set", "_cdata", "_version", "_base", "_codegen", "_tracer_cls",
    "_get_fsdp_state", "_fsdp_param_groups", "_extract_tensor_metadata",
}  # fmt: skip
"""Private attributes of modules, tensors, storages, graphs and sharded modules, and of what makes these.

Not in it: ``_parameters``, ``_buffers`` and ``_modules``, which subclasses of ``nn.Module`` have always used.
"""

STAY = {
    "fxgraft/compiling/variants.py": {"_call_impl"},  # in the code that each variant has a copy of
    "fxgraft/fossils/_plain_code.py": {  # whose text runs where there is no fxgraft
        "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    },
    "fxgraft/optimizers/progress.py": {"_version"},  # asked of every weight in each step
    "passes/fxgraft_passes/blends.py": {"_backward_hooks"},  # in each forward of a seed
    "passes/fxgraft_passes/operators.py": {"_backward_hooks", "_base"},  # in each forward, and traced
}  # fmt: skip
"""Where which of them are used all the same."""


def test_private_attributes_of_objects_are_used_in_one_file_only() -> None:
    found: dict[str, set[str]] = {}
    for folder in ("fxgraft", "passes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name != "_torch.py":
                for node in ast.walk(parsed(path)):
                    if (name := _name_in(node)) in OF_OBJECTS:
                        found.setdefault(str(path.relative_to(ROOT)), set()).add(name)
    assert found == STAY


def _name_in(node: ast.AST) -> str:
    match node:
        case ast.Attribute(attr=name) | ast.alias(name=name) | ast.Constant(value=str(name)):
            return name
    return ""


def test_each_is_called_here() -> None:
    """With the torch at hand: so it is known at once which of them a new version has not."""
    text = Path(__file__).read_text("utf-8")
    for module in (_torch, _torch_of_passes):
        found = inspect.getmembers(module, inspect.isfunction)
        functions = {n for n, v in found if v.__module__ == module.__name__ and n[0] != "_"}
        assert {name for name in functions if not re.search(rf"_torch\w*\.{name}\b", text)} == set()


def test_a_refused_compilation_is_told_from_other_errors() -> None:
    @torch.compile(backend="eager")
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError) as raised:
        twice(torch.ones(2))
    assert _torch.is_refused_compilation(raised.value)
    assert not _torch.is_refused_compilation(RuntimeError("another"))


def test_hooks_of_modules() -> None:
    module, before = nn.Linear(2, 2), _torch.hooks_registered()
    assert not any((_torch.has_forward_hooks(module), _torch.has_backward_hooks(module)))
    handle = module.register_forward_hook(lambda *_: None)
    assert _torch.hooks_registered() != before
    assert _torch.has_forward_hooks(module)
    assert _torch.has_result_hooks(module)
    handle.remove()
    module.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    assert _torch.has_forward_hooks(module)
    assert not _torch.has_result_hooks(module)
    (number,) = _torch.pre_hooks(module)
    _torch.forget_pre_hook(module, number)
    assert not _torch.has_forward_hooks(module)
    module(torch.ones(1, 2))
    module.register_full_backward_pre_hook(lambda *_: None)
    assert _torch.has_backward_hooks(module)
    assert _torch.has_result_hooks(module)


def test_hooks_of_parameters() -> None:
    weight = nn.Linear(2, 2).weight
    assert _torch.gradient_hooks(weight) == []
    hooks = [lambda grad: grad, lambda parameter: None]
    weight.register_hook(hooks[0])
    handle = weight.register_post_accumulate_grad_hook(hooks[1])
    assert _torch.gradient_hooks(weight) == hooks
    handle.remove()
    assert _torch.gradient_hooks(weight) == hooks[:1]


def test_attributes_of_modules() -> None:
    module = nn.BatchNorm1d(2)
    module.register_buffer("seen", torch.zeros(1), persistent=False)
    assert _torch.unsaved_buffers(module) == {"seen"} == vars(module)[_torch.UNSAVED_BUFFERS]
    names = (*_torch.FORWARD_HOOKS, *_torch.BACKWARD_HOOKS, *_torch.OF_HOOKS, *_torch.STATE_HOOKS)
    assert {_torch.IS_FULL_BACKWARD_HOOK, *names} <= vars(module).keys()
    assert _torch.loading_hooks(module) == []
    module.register_load_state_dict_post_hook(lambda *_: None)
    assert len(_torch.loading_hooks(module)) == 1
    module.compile(backend="eager")
    assert vars(module)[_torch.COMPILED_CALL] is not None


def test_groups_of_a_sharded_module() -> None:
    found = [1, 2]
    state = SimpleNamespace(_fsdp_param_groups=found)
    assert _torch.fsdp_groups(SimpleNamespace(_get_fsdp_state=lambda: state)) == found
    from torch.distributed.fsdp import FSDPModule

    assert callable(FSDPModule._get_fsdp_state)


def test_tensors_and_graphs() -> None:
    x = torch.zeros(4)
    version = _torch_of_passes.version(x)
    assert _torch_of_passes.version(x.add_(1)) == version + 1
    assert _torch_of_passes.memory(x) == _torch_of_passes.memory(x[1:]) != _torch_of_passes.memory(x.clone())
    assert _torch_of_passes.base(x[1:]) is x
    assert _torch_of_passes.base(x) is None
    assert _torch_of_passes.tensor_metadata(x).shape == (4,)
    graph = torch.fx.symbolic_trace(nn.ReLU()).graph
    other = _torch_of_passes.empty_like_graph(graph)
    _torch_of_passes.take_code_generator(other, graph)
    assert not other.nodes
    assert other._codegen is graph._codegen


def test_modes_devices_and_autocast() -> None:
    assert {"cpu", "cuda"} <= set(_torch_of_passes.autocast_devices())
    assert not _torch_of_passes.is_any_autocast()
    with torch.autocast("cpu"):
        assert _torch_of_passes.is_any_autocast()
    assert _torch_of_passes.default_devices() == (None, ())
    with torch.device("meta"):
        assert _torch_of_passes.default_devices() == (None, (torch.device("meta"),))
        with _torch_of_passes.default_devices_are((torch.device("cpu"), ())):
            assert torch.empty(0).device.type == "cpu"
        with _torch_of_passes.unseen_by_modes():
            assert torch.empty(0).device.type == "cpu"
    assert not _torch_of_passes.is_watched()
    with FlopCounterMode(display=False):
        assert _torch_of_passes.is_watched()
    inside: list[bool] = []
    torch.func.vmap(lambda x: inside.append(_torch_of_passes.is_wrapped_by_transform(x)) or x)(torch.ones(2))
    assert inside == [True]
    shapes = []
    torch.func.vmap(lambda x: shapes.append(_torch_of_passes.unwrapped(x).shape) or x)(torch.ones(2))
    assert shapes == [(2,)]
    assert not _torch.has_saved_tensor_hooks()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert _torch.has_saved_tensor_hooks()


def test_autocast_that_is_entered_by_a_graph() -> None:
    assert _torch.open_autocasts() == 0
    entered = _torch.enter_autocast("cpu", torch.bfloat16, True, None)
    assert _torch.open_autocasts() == 1
    assert torch.is_autocast_enabled("cpu")
    _torch.exit_autocast(entered)
    _torch.enter_autocast("cpu", torch.bfloat16, True, None)
    _torch.leave_autocasts(0)
    assert not torch.is_autocast_enabled("cpu")
    assert _torch_of_passes.is_constant_when_compiled(_torch.open_autocasts)


@pytest.mark.usefixtures("fresh_compiler")
def test_what_dynamo_says_of_its_graphs() -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    x = torch.ones(3, 2)
    _torch.mark_static(x, 0)
    assert _torch.marks_of(x)
    with _torch.nothing_is_static():
        compiled = torch.compile(double, backend="eager", fullgraph=True)
        compiled(x)
    assert _torch.has_graph_for(double.__code__, {"x": x})
    assert not _torch.has_graph_for(double.__code__, {"x": torch.ones(4, 2, dtype=torch.float64)})
    other = torch.ones(7, 3, dtype=torch.float64)
    assert torch.equal(_torch.only_run(compiled)(other), other * 2)
    assert issubclass(_torch.dynamo_errors(), Exception)
    assert {_torch.dynamo_errors(), *_torch.recompile_limit_errors()} == set(_torch.compile_errors())


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
    inside, passes = [], []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
            inside.append(_torch.is_in_backward())
            passes.append(_torch.backward_pass())
            return grad

    for _ in range(2):
        Look.apply(torch.ones(1, requires_grad=True)).backward()
    assert inside == [True, True]
    assert not _torch.is_in_backward()
    assert len({*passes, _torch.backward_pass()}) == 3

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


def test_an_extra_state_is_told_by_its_key() -> None:
    class Extra(torch.nn.Module):
        def get_extra_state(self) -> int:
            return 1

    (key,) = torch.nn.Sequential(Extra()).state_dict()
    assert _torch.is_extra_state(key)
    assert not _torch.is_extra_state("0.weight")
