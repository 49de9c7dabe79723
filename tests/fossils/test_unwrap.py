"""A host with fossils, unwrapped: the same to the bit, plain, and alive where there is no fxgraft."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import linecache
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
import tests.hosts.hard  # noqa: F401 - registers its hosts
from fxgraft.blueprints import get, names
from fxgraft.capture import fallback, merge, trace_operators
from fxgraft.errors import FxGraftError, StageError
from fxgraft.fossils import _plain_code
from fxgraft.seeds.dropout import PrivateDropout
from fxgraft_passes import operators
from fxgraft_passes.graft import MODES
from tests.harness import assert_same_bits, frozen, loss_of, snapshot
from tests.hosts.hosts import HOSTS, Given
from tests.hosts.hosts import ran as step
from tests.hosts.transformer_models import MODELS
from tests.seed_modules import Scale

CONVOLUTIONAL = [name for name in names() if "NCHW" in get(name).accepts or "any" in get(name).accepts]


class ScaledConvBlock(nn.Module):
    """A residual block with an argument that is constant in the example."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        y = self.drop(torch.relu(self.norm(self.conv(x))))
        return x + y if scale is None else x + scale * y


class TwoConvBlocks(nn.Module):
    """Two equal blocks between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.Sequential(ScaledConvBlock(), ScaledConvBlock())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Switch(nn.Module):
    """Its root has no graph: its children's boundaries are slots."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.high(self.low(x)) if x.sum() > -1e9 else x


class Scales(nn.Module):
    """It goes through the parameters of a layer, from code without a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        halved = {name: p * 0.5 for name, p in self.low.named_parameters() if str(x.sum())}
        return self.high(torch.func.functional_call(self.low, halved, (x,)))


def net() -> Given:
    return Given(TwoConvBlocks(), (torch.randn(2, 3, 8, 8),))


def switch() -> Given:
    return Given(Switch(), (torch.randn(2, 6),))


def fossil(
    manager: fxgraft.SeedManager, slot: str, blueprint: Any, *, to: float = 1.0, **options: Any
) -> fxgraft.Seed:
    """A seed that is not what it was born as, made permanent."""
    seed = manager.germinate(slot, blueprint, **options)
    assert seed.module is not None
    with torch.no_grad():
        for parameter in seed.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    manager.blend(seed, to=to, steps=1)
    manager.step()
    manager.fossilize(seed)
    return seed


def grown(given: Given, *fossils: tuple[Any, ...], **options: Any) -> fxgraft.Host:
    host = fxgraft.trace(given.model, given.args, given.kwargs)
    manager = fxgraft.SeedManager(host)
    for slot, blueprint, *rest in fossils:
        fossil(manager, slot, blueprint, **(rest[0] if rest else {}), **options)
    return host


def ran(module: nn.Module, given: Given) -> dict[str, Any]:
    """Output, gradients by parameter and buffers of one step; buffers are put back."""
    parameters = list(module.parameters())
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    for parameter in parameters:
        parameter.grad = None
    torch.manual_seed(5)
    out = module(*given.args, **given.kwargs)
    loss_of([t for t in _tensors(out) if t.is_floating_point()]).backward()
    found = {
        "out": frozen(_tensors(out)),
        "gradients": {id(p): frozen(p.grad) for p in sorted(parameters, key=id)},
        "buffers": {id(b): b.clone() for b, _ in sorted(buffers, key=lambda pair: id(pair[0]))},
    }
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    return found


def _tensors(out: Any) -> list[Tensor]:
    values = out.to_tuple() if hasattr(out, "to_tuple") else (out,)
    return [value for value in values if isinstance(value, Tensor)]


def reloaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded, nn.Module)
    return loaded


def assert_same_step(host: fxgraft.Host, module: nn.Module, given: Given) -> None:
    """In both modes, and in every gradient of what they share."""
    for training in (True, False):
        expected = ran(host.train(training), given)
        got = ran(module.train(training), given)
        steering = {id(b) for n, b in host.named_buffers() if n.startswith("_seeds.")} - got["buffers"].keys()
        expected["buffers"] = {k: b for k, b in expected["buffers"].items() if k not in steering}
        assert_same_bits(got["out"], expected["out"], "outputs")
        assert_same_bits(got["gradients"], expected["gradients"], "gradients")
        assert_same_bits(got["buffers"], expected["buffers"], "buffers")


@pytest.mark.parametrize("mode", MODES)
def test_every_blueprint_in_every_mode(mode: str) -> None:
    given = net()
    places = [f"blocks.{i}.{node}" for i in (0, 1) for node in ("conv", "norm", "relu", "drop", "add")]
    fitting = [name for name in CONVOLUTIONAL if mode in get(name).modes]
    fossils = [
        (places[i % len(places)], name, {"mode": mode, "to": (1.0, 0.3)[i % 2]})
        for i, name in enumerate([*fitting, *fitting[::-1]])
    ]
    assert len(fitting) > 5
    host = grown(given, *fossils)
    assert_same_step(host, fxgraft.unwrap(host), given)


def test_seeds_at_many_places_and_several_at_one() -> None:
    given = net()
    places = [
        ("stem", "low_rank"),
        ("blocks.0.relu", "mlp", {"to": 0.5}),
        ("blocks.0.relu", "norm", {"mode": "convex", "to": 0.5}),
        ("blocks.1", "attention"),
        ("head", lambda slot: nn.Linear(3, 3)),
    ]
    host = grown(given, *places)
    plain = fxgraft.unwrap(host)
    assert_same_step(host, plain, given)
    reference = fxgraft.unwrap(grown(given))
    assert not torch.equal(plain.eval()(*given.args), reference.eval()(*given.args))


def test_a_model_of_which_only_boundaries_are_known() -> None:
    given = switch()
    host = grown(given, ("low", "mlp"), ("high", "low_rank", {"to": 0.5}))
    assert_same_step(host, fxgraft.unwrap(host), given)


class Twice(nn.Module):
    """A layer that is called twice, and a value with two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.fc(x))
        return self.out(torch.tanh(self.fc(y))) + y[:, :3]


@pytest.mark.parametrize("place", ["fc@*", "fc_1", "relu->fc_1", "->out"])
def test_a_seed_at_one_call_at_all_calls_and_on_an_edge(place: str) -> None:
    given = Given(Twice(), (torch.randn(2, 6),))
    host = grown(given, (place, "mlp", {"to": 0.5, "name": "a"}))
    plain = fxgraft.unwrap(host)
    assert_same_step(host, plain, given)
    assert [name for name, _ in plain.named_children()] == ["fc", "out", "seed_a"]
    assert_same_bits(reloaded(plain)(*given.args), plain(*given.args))


def test_a_branch_between_regions() -> None:
    given = net()
    host = grown(given, ("blocks.1.relu", "conv_depthwise", {"source": "blocks.0.conv"}))
    assert_same_step(host, fxgraft.unwrap(host), given)


def test_a_branch_between_regions_goes_where_a_hook_would_miss_its_module() -> None:
    given = net()
    host = grown(given, ("blocks.1.relu", "conv_depthwise", {"source": "blocks.0.conv"}))
    plain = fxgraft.unwrap(host).eval()
    plain.get_submodule("blocks.0").register_forward_hook(lambda module, args, out: out * 2)
    with pytest.warns(UserWarning, match="without what was grown in it"):
        got = plain(*given.args)
    fresh = fxgraft.unwrap(fxgraft.trace(given.model, given.args)).eval()
    fresh.get_submodule("blocks.0").register_forward_hook(lambda module, args, out: out * 2)
    assert_same_bits(got, fresh(*given.args))


@pytest.mark.parametrize("name", HOSTS)
def test_hand_written_hosts(name: str) -> None:
    given = HOSTS[name]()
    host = fxgraft.trace(given.model, given.args, given.kwargs)
    manager = fxgraft.SeedManager(host)
    # FlexAttention has no backward pass on a CPU: no seed can stand in front of it.
    slots = [slot for slot in host.slots if name != "flex attention" or slot != "attention.qkv"]
    for i, slot in enumerate(slots[:6]):
        fossil(manager, slot, Scale(0.1, 0.05), to=(1.0, 0.5)[i % 2])
    buffers = {name: buffer.clone() for name, buffer in host.named_buffers()}
    for training in (True, False):
        expected = step(host, given, buffers, training, host)
        got = step(fxgraft.unwrap(host), given, buffers, training, host)
        for part in ("out", "gradients", "random", "python"):
            assert_same_bits(got[part], expected[part], f"{part}, training={training}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("to", [1.0, 0.3])
def test_under_autocast(mode: str, to: float) -> None:
    """The host's value is in single precision here, the seed's output in half."""
    given = Given(nn.Sequential(nn.ReLU(), nn.Tanh()), (torch.randn(2, 6),))
    host = grown(given, ("0", "mlp", {"mode": mode, "to": to}))
    plain = fxgraft.unwrap(host)
    with torch.autocast("cpu", torch.bfloat16):
        out = plain.eval()(*given.args)
        assert_same_bits(out, host.eval()(*given.args))
    assert not torch.equal(out.float(), plain(*given.args))


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama", "vit", "t5", "mamba"])
def test_transformers(name: str) -> None:
    given = MODELS[name]()
    given = Given(given.model.train(), given.args, given.kwargs)
    given.model(*given.args, **given.kwargs)  # which completes the configuration: config.problem_type
    host = fxgraft.trace(given.model, given.args, given.kwargs)
    manager = fxgraft.SeedManager(host)
    for slot in list(host.slots)[::7]:
        if len(host.slots[slot].shape) >= 2:
            fossil(manager, slot, "low_rank")
    plain = fxgraft.unwrap(host)
    assert_same_step(host, plain, given)
    assert isinstance(plain, type(given.model))
    assert plain.config is given.model.config
    kinds = {n: type(m).__name__ for n, m in given.model.named_modules()}
    assert kinds == {n: type(plain.get_submodule(n)).__name__ for n in kinds}


# What it is


def test_the_host_stays_as_it_was_and_shares_its_tensors() -> None:
    given = net()
    host = grown(given, ("blocks.0.relu", "mlp"), ("stem", "low_rank"))
    before = snapshot(host, given.args[0])
    plain = fxgraft.unwrap(host)
    plain.head = nn.Identity()
    plain.to(torch.float64)
    plain.float()
    assert_same_bits(snapshot(host, given.args[0]), before, "the host")
    again = fxgraft.unwrap(host)
    assert {id(p) for p in again.parameters()} == {id(p) for p in host.parameters()}


def test_keys_are_the_models_with_the_seeds_beside_what_they_grew_in() -> None:
    given = net()
    host = grown(given, ("blocks.0.relu", "mlp", {"name": "a-b"}), ("stem", "low_rank", {"name": "c"}))
    plain = fxgraft.unwrap(host)
    keys = set(plain.state_dict()) - set(given.model.state_dict())
    assert set(given.model.state_dict()) < set(plain.state_dict())
    layers = ("up.weight", "up.bias", "down.weight", "down.bias")
    assert keys == {f"blocks.0.seed_a_b.{n}" for n in layers} | {"seed_c.down.weight", "seed_c.up.weight"}
    assert isinstance(plain, TwoConvBlocks)
    assert isinstance(plain.get_submodule("blocks.0"), ScaledConvBlock)
    assert type(plain.get_submodule("blocks.1")) is ScaledConvBlock


def test_no_attribute_is_left_of_what_ran_the_host() -> None:
    given = net()
    host = grown(given, ("blocks.0.relu", "mlp"), ("blocks.1", "attention", {"source": "blocks.0.relu"}))
    plain = fxgraft.unwrap(host)
    for name, module in given.model.named_modules():
        assert sorted(plain.get_submodule(name).__dict__) == sorted(module.__dict__), name


def test_a_sequential_has_the_layers_that_it_had() -> None:
    given = net()
    plain = fxgraft.unwrap(grown(given, ("blocks.0", "low_rank"), ("blocks.1", "low_rank")))
    blocks = plain.get_submodule("blocks")
    assert len([name for name, _ in blocks.named_children()]) == 4
    for twin in (blocks, copy.deepcopy(blocks), reloaded(plain).get_submodule("blocks")):
        assert len(twin) == len(list(twin)) == 2
        assert twin[-1] is twin.get_submodule("1")


def test_a_name_that_is_taken() -> None:
    given = net()
    given.model.seed_a = nn.Identity()
    plain = fxgraft.unwrap(grown(given, ("stem", "low_rank", {"name": "a"})))
    assert isinstance(plain.get_submodule("seed_a"), nn.Identity)
    assert isinstance(plain.get_submodule("seed_a_"), nn.Sequential)


def test_a_seed_that_was_held_at_zero_is_not_there() -> None:
    given = net()
    host = grown(given, ("stem", "low_rank", {"to": 0.0}))
    plain = fxgraft.unwrap(host)
    assert list(plain.state_dict()) == list(given.model.state_dict())
    assert_same_bits(plain.eval()(*given.args), host.eval()(*given.args))


def test_a_host_without_seeds_is_the_model() -> None:
    given = net()
    plain = fxgraft.unwrap(fxgraft.trace(given.model, given.args))
    assert type(plain) is TwoConvBlocks
    assert_same_bits(plain.eval()(*given.args), given.model.eval()(*given.args))


def test_equal_seeds_share_their_code() -> None:
    host = grown(net(), *((f"blocks.{i}.relu", "attention", {"name": f"s{i}"}) for i in range(2)))
    seeds = [m for n, m in fxgraft.unwrap(host).named_modules() if n.endswith(("seed_s0", "seed_s1"))]
    assert len(seeds) == 2
    assert type(seeds[0]) is type(seeds[1])


def test_nothing_stays_behind_of_modules_that_are_gone() -> None:
    host = grown(net(), ("blocks.0.relu", "attention"), ("stem", "low_rank"))
    gc.collect()
    before = set(linecache.cache)
    plain = fxgraft.unwrap(host)
    sources = [name for name in linecache.cache if name not in before]
    assert any("seed_attention" in "".join(linecache.getlines(name)) for name in sources)
    kinds = [weakref.ref(type(module)) for module in (plain, plain.get_submodule("blocks.0"))]
    del plain
    gc.collect()
    assert [kind() for kind in kinds] == [None, None]
    assert set(linecache.cache) <= before


def test_dropout_in_a_seed_becomes_the_ordinary_one() -> None:
    given = net()
    made = nn.Sequential(nn.Dropout(0.25), nn.Dropout2d(0.5), nn.Conv2d(4, 4, 1))
    host = grown(given, ("stem", made), ("head", lambda slot: nn.Dropout(0.125)))
    assert any(isinstance(m, PrivateDropout) for m in host.modules())
    plain = fxgraft.unwrap(host)
    assert not any(isinstance(m, PrivateDropout) for m in plain.modules())
    drops = {n: (type(m), m.p) for n, m in plain.named_modules() if n.startswith("seed_") and hasattr(m, "p")}
    assert sorted(drops.values(), key=str) == [
        (nn.Dropout, 0.125),
        (nn.Dropout, 0.25),
        (nn.Dropout2d, 0.5),
    ]
    assert_same_bits(plain.eval()(*given.args), host.eval()(*given.args))


def test_a_call_of_another_form_warns_and_no_export_is_made_of_it() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = ScaledConvBlock()

        def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
            return self.block(x, scale)

    x = torch.randn(2, 4, 5, 5)
    model = Outer().eval()
    plain = fxgraft.unwrap(grown(Given(model, (x,)), ("block.relu", "mlp")))
    assert not torch.equal(plain(x), model(x))
    with pytest.warns(UserWarning, match=r"a \w+ was called with other kinds of arguments"):
        assert_same_bits(plain(x, 2.0), model(x, 2.0))
    with pytest.raises(RuntimeError, match="the exported program would be another model"):
        torch.export.export(plain, (x, 2.0))


def test_it_is_a_model_again_that_can_be_traced_and_grown() -> None:
    given = net()
    plain = fxgraft.unwrap(grown(given, ("blocks.0.relu", "mlp")))
    host = fxgraft.trace(plain, given.args)
    assert {"blocks.0.relu", "blocks.0.conv", "stem"} <= host.slots.keys()
    plain_again = fxgraft.unwrap(grown(Given(plain, given.args), ("blocks.0.relu", "low_rank")))
    assert plain_again(*given.args).shape == (2, 3)


@pytest.mark.parametrize("granularity", ["host", "region"])
def test_of_a_compiled_host_it_runs_eager(granularity: str, fresh_compiler: None) -> None:
    given = net()
    host = fxgraft.trace(given.model, given.args)
    host.compile(backend="aot_eager", granularity=granularity)
    host(*given.args)
    fossil(fxgraft.SeedManager(host), "blocks.0.relu", "mlp")
    plain = fxgraft.unwrap(host.eval())
    assert_same_bits(plain(*given.args), host(*given.args))
    assert all(module._compiled_call_impl is None for module in plain.modules())


def test_compiled(fresh_compiler: None) -> None:
    given = net()
    plain = fxgraft.unwrap(grown(given, ("blocks.0.relu", "mlp"), ("stem", "low_rank"))).eval()
    compiled = torch.compile(plain, backend="aot_eager", fullgraph=True)
    assert_same_bits(compiled(*given.args), plain(*given.args))


# What it refuses


def test_live_seeds_are_refused_by_name() -> None:
    host = grown(net(), ("stem", "low_rank"))
    manager = fxgraft.SeedManager(fxgraft.trace(TwoConvBlocks(), net().args))
    manager.germinate("stem", "low_rank", name="late")
    with pytest.raises(StageError, match=r"cannot unwrap .* live seeds: .* fossilize or cull late"):
        fxgraft.unwrap(manager.host)
    assert fxgraft.unwrap(host) is not None


def test_what_is_no_host() -> None:
    with pytest.raises(TypeError, match=r"expected a fxgraft.Host, from fxgraft.trace; got TwoConvBlocks"):
        fxgraft.unwrap(TwoConvBlocks())  # type: ignore[arg-type]
    around = nn.DataParallel(fxgraft.trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), (torch.randn(3, 2),)))
    with pytest.raises(TypeError, match=r"got DataParallel around one: give its \.module"):
        fxgraft.unwrap(around)  # type: ignore[arg-type]


def test_what_a_fossil_may_call_has_a_plain_form() -> None:
    """Every operator but those of live seeds, with the same parameters."""
    live = {"isolated", "residual", "convex", "release", "shadowed", "folded"}
    live |= {"assume"}  # which is checked in front of a graph, and is none of its nodes then
    live |= {"branches_shown"}  # a context in which a graph is read, and no node
    own = {
        name: value
        for module in (operators, trace_operators)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
        if not name.startswith("_") and name not in live
    }
    own |= {"not_watched": merge.not_watched, "fell_back": fallback.fell_back}
    rest = {"code_holds", "enter_autocast", "exit_autocast", "open_autocasts", "leave_autocasts"}
    assert own.keys() | rest == _plain_code.PLAIN.keys()
    for name, function in own.items():
        ours = inspect.signature(function).parameters
        assert list(inspect.signature(_plain_code.PLAIN[name]).parameters) == list(ours), name


def test_code_that_would_meet_the_parameters_of_seeds_is_refused() -> None:
    """It would halve those of the seed too, which the host does not."""
    host = fxgraft.trace(Scales(), (torch.randn(4, 6),))
    manager = fxgraft.SeedManager(host)
    manager.germinate("low", nn.Linear(6, 6), name="a", isolated=False)
    manager.blend("a", steps=0)
    manager.fossilize("a", wait=True)
    before = list(host.state_dict())
    with pytest.raises(FxGraftError, match=r"cannot unwrap Scales: .* seeds there as well: a\."):
        fxgraft.unwrap(host)
    assert list(host.state_dict()) == before


class Loop(nn.Module):
    """A stack that the root goes through, behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.filterwarnings("error")
def test_a_fossil_that_has_learnt_nothing_runs_as_well(caplog: pytest.LogCaptureFixture) -> None:
    """It changes no value: that it did not run beside an inserted block could not be seen by those."""
    x = torch.randn(4, 6)
    host = fxgraft.trace(Loop(), (x,))
    manager = fxgraft.SeedManager(host)
    manager.deepen("blocks", name="n", init="copy")
    manager.germinate("first", "low_rank", name="f", isolated=False)
    manager.blend("f", steps=0)
    manager.fossilize("f")
    plain = fxgraft.unwrap(host)
    assert_same_bits(plain(x), host(x), "with both")
    assert any(name.startswith("seed_f.") for name in plain.state_dict())
    with torch.no_grad():
        for parameter in host.graft("f").parameters():
            parameter.add_(0.1)
    assert_same_bits(plain(x), host(x), "with a fossil that has learnt")
    assert "fossils in the code around the blocks: f" in caplog.text
