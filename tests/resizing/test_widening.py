"""`manager.widen`: the function is kept, what was learned stays, and it is whole or not at all."""

import copy
import pkgutil
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxgraft
from fxgraft.commands import SEED, WIDEN
from fxgraft.errors import ChannelError, DistributedError, StageError
from fxgraft_passes.channels.groups import find
from fxgraft_passes.channels.growth import grow
from fxgraft_passes.channels.settings import applied
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.channels.trying import tried
from tests.harness import assert_same_bits, counting_backend, snapshot, train
from tests.resizing.models import Attention, Bare, CharGpt, Cnn, Experts, Gated, Gpt, Mlp, OffsetNorm, ResNet

TOKENS = torch.arange(12).reshape(2, 6) % 11

MODELS = {
    "mlp": (Mlp, torch.randn(3, 4)),
    "gated": (lambda: Gated(fused=False), torch.randn(3, 4)),
    "fused gate": (lambda: Gated(fused=True), torch.randn(3, 4)),
    "cnn": (Cnn, torch.randn(3, 3, 8, 8)),
    "resnet": (ResNet, torch.randn(3, 3, 9, 9)),
    "heads": (Attention, torch.randn(2, 5, 12)),
    "gpt, layer norm": (lambda: Gpt(depth=1), TOKENS),
    "gpt, rms norm": (lambda: Gpt(nn.RMSNorm, depth=1), TOKENS),
    "gpt, norm by hand": (lambda: Gpt(OffsetNorm, depth=1), TOKENS),
    "no norm in front of the head": (Bare, torch.randn(3, 4)),
    "shared width": (CharGpt, TOKENS),
    "shared width by hand": (lambda: CharGpt(by_hand=True), TOKENS),
    "experts": (Experts, torch.randn(3, 4)),
}


def managed(model, batch, **options):
    host = fxgraft.trace(model, (batch,))
    optimizer = torch.optim.AdamW(host.parameters(), lr=1e-2)
    return host, optimizer, fxgraft.SeedManager(host, optimizer, check_every=0, **options)


def steps(host, optimizer, manager, batch, n=2):
    for _ in range(n):
        optimizer.zero_grad()
        host(batch).float().pow(2).mean().backward()
        optimizer.step()
        manager.step()


def outputs(host, batch):
    with torch.no_grad():
        return copy.deepcopy(host).eval()(batch)


@pytest.mark.parametrize("init", ["zero", "split"])
@pytest.mark.parametrize("name", MODELS)
def test_every_free_group_of_a_plain_model_grows_and_keeps_the_function(name, init):
    make, batch = MODELS[name]
    model = make().eval()
    subject = Subject.of(model, (batch,))
    groups = [g for g in tried(subject, find(subject)).values() if g.fixed is None]
    assert groups
    for group in groups:
        if init == "split" and group.normalised:
            continue
        with subject.session(), torch.no_grad():
            before = model(batch)
            growth = grow(subject, group, 2 * group.grain, init, seed=0, before=[before])
            with subject.with_tensors(growth.tensors), applied(growth.settings, subject):
                torch.testing.assert_close(model(batch), before, rtol=1e-4, atol=1e-5)
                assert sum(p.numel() for p in model.parameters()) > sum(
                    t.numel() for t in make().parameters()
                )


@pytest.mark.parametrize("name", ["cnn", "gpt, layer norm", "experts", "resnet", "gated", "heads"])
def test_a_host_grows_wider_and_trains_on(name):
    make, batch = MODELS[name]
    host, optimizer, manager = managed(make(), batch)
    steps(host, optimizer, manager, batch)
    before = outputs(host, batch)
    for group in [group for group in host.channels.values() if group.fixed is None]:
        done = manager.widen(group, 2 * group.grain)
        assert host.channels[group.name].size == done.size == group.size + 2 * group.grain
        assert done.parameters > 0
    torch.testing.assert_close(outputs(host, batch), before, rtol=1e-4, atol=1e-5)
    sizes = {n: tuple(p.shape) for n, p in host.named_parameters()}
    steps(host, optimizer, manager, batch)
    assert all(p.grad is not None and p.grad.shape == sizes[n] for n, p in host.named_parameters())


def test_new_units_learn():
    host, optimizer, manager = managed(Gpt(depth=1), TOKENS)
    manager.widen("token", 4)
    manager.widen("blocks.0.mlp.0", 4)
    new = {"token.weight": (slice(None), slice(12, None)), "blocks.0.mlp.0.weight": slice(16, None)}
    before = {name: host.get_parameter(name)[at].clone() for name, at in new.items()}
    steps(host, optimizer, manager, TOKENS, 3)
    assert all((host.get_parameter(name)[at] != before[name]).any() for name, at in new.items())


def test_what_reads_a_stream_behind_its_norm_is_initialised_and_what_reads_it_in_front_is_zero():
    host, optimizer, manager = managed(Bare(), torch.randn(3, 4))
    manager.widen("stem", 3)
    assert host.up.weight[:, 12:].abs().min() > 0
    assert host.head.weight[:, 12:].abs().max() == 0
    steps(host, optimizer, manager, torch.randn(3, 4))
    assert host.head.weight[:, 12:].abs().min() > 0


def test_heads_that_share_the_width_grow_with_it():
    host, optimizer, manager = managed(CharGpt(), TOKENS)
    steps(host, optimizer, manager, TOKENS)
    group = host.channels["token"]
    assert (group.size, group.grain, group.fixed) == (12, 3, None)
    assert {m.name for m in group.members} >= {"blocks.1.attn.qkv.weight", "blocks.0.attn.proj.weight"}
    before = outputs(host, TOKENS)
    manager.widen("token", 6)
    assert host.blocks[1]["attn"].qkv.weight.shape == (54, 18)
    torch.testing.assert_close(outputs(host, TOKENS), before, rtol=1e-4, atol=1e-5)
    new = host.blocks[0]["attn"].qkv.weight.detach().clone()
    steps(host, optimizer, manager, TOKENS, 3)
    rows = [4, 5, 10, 11, 16, 17]  # of the queries, then of the keys and of the values
    moved = (host.blocks[0]["attn"].qkv.weight != new).any(dim=1)
    assert all(moved[[18 * part + row for part in range(3) for row in rows]])


def test_zero_keeps_the_function_to_the_last_digits():
    _, _, manager = managed(Mlp(nn.ReLU()), MODELS["mlp"][1])
    assert manager.widen("up", 8).max_abs <= 1e-7


def test_parameters_stay_themselves_and_old_moments_stay_in_place():
    host, optimizer, manager = managed(Gated(fused=True), MODELS["mlp"][1][:3])
    batch = torch.randn(3, 4)
    steps(host, optimizer, manager, batch, 3)
    ids = {name: id(p) for name, p in host.named_parameters()}
    old = host.both.weight.detach().clone(), optimizer.state[host.both.weight]["exp_avg"].clone()
    manager.widen("both", 2)
    assert ids == {name: id(p) for name, p in host.named_parameters()}
    rows = [*range(8), *range(10, 18)]  # the gates, two new ones, the values, two new ones
    moments = optimizer.state[host.both.weight]["exp_avg"]
    assert_same_bits((host.both.weight[rows], moments[rows]), old)
    assert not moments[[8, 9, 18, 19]].any()
    assert optimizer.state[host.both.weight]["step"] == 3


def test_moments_can_be_copied():
    host, optimizer, manager = managed(Mlp(), torch.randn(3, 4))
    steps(host, optimizer, manager, torch.randn(3, 4))
    manager.widen("up", 8, init="split", optimizer_state="copy")
    weight, moments = host.up.weight, optimizer.state[host.up.weight]["exp_avg"]
    for new in range(8, 16):
        like = [i for i in range(8) if torch.equal(weight[i], weight[new])]
        assert len(like) == 1
        assert torch.equal(moments[like[0]], moments[new])


def test_split_parts_are_not_equal_and_add_up():
    host, _, manager = managed(Mlp(), torch.randn(3, 4))
    before = host.down.weight.detach().clone()
    manager.widen("up", 8, init="split")
    weight = host.down.weight.detach()
    like = [
        next(j for j in range(8, 16) if torch.equal(host.up.weight[i], host.up.weight[j])) for i in range(8)
    ]
    torch.testing.assert_close(weight[:, :8] + weight[:, like], before)
    assert (weight[:, :8] != weight[:, like]).all()


def test_hooks_gradients_and_a_graph_that_lives():
    host, optimizer, manager = managed(Mlp(), torch.randn(3, 4))
    batch, seen = torch.randn(3, 4), []
    host.up.weight.register_post_accumulate_grad_hook(lambda p: seen.append(tuple(p.grad.shape)))
    kept = host(batch).sum()
    kept.backward(retain_graph=True)
    grad = host.up.weight.grad.clone()
    manager.widen("up", 2)
    assert torch.equal(host.up.weight.grad, torch.cat([grad, torch.zeros(2, 4)]))
    steps(host, optimizer, manager, batch)
    assert seen == [(8, 4), (10, 4), (10, 4)]


def half(host, batch):
    """What a host gives in lower precision, and its gradients."""
    out = host(batch)
    gradients = torch.autograd.grad(out.float().square().sum(), list(host.parameters()))
    return out.detach(), *gradients


@pytest.mark.parametrize("ran_before", [False, True])
def test_copies_that_autocast_keeps_of_the_weights_do_not_outlive_them(ran_before):
    host, optimizer, manager = managed(Mlp(), torch.randn(3, 4))
    batch = torch.randn(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if ran_before:
            host(batch)
        manager.widen("up", 3)
        inside = half(host, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_bits(inside, half(host, batch), "outputs and gradients")
    steps(host, optimizer, manager, batch)


def test_averages_follow():
    host, optimizer, manager = managed(Gpt(depth=1), TOKENS)
    average = AveragedModel(host, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    fxgraft.averaging.follow(host, average)
    for _ in range(2):
        steps(host, optimizer, manager, TOKENS, 1)
        average.update_parameters(host)
    before = outputs(average, TOKENS)
    manager.widen("blocks.0.attn.qkv", 4)
    manager.widen("token", 4)
    torch.testing.assert_close(outputs(average, TOKENS), before, rtol=1e-4, atol=1e-5)
    steps(host, optimizer, manager, TOKENS, 1)
    average.update_parameters(host)
    assert [p.shape for p in average.module.parameters()] == [p.shape for p in host.parameters()]


def test_what_grew_elsewhere_stays():
    host, optimizer, manager = managed(Gpt(), TOKENS)
    manager.germinate("blocks.1.mlp.1", nn.Linear(16, 16), name="a")
    steps(host, optimizer, manager, TOKENS)
    manager.blend("a", steps=0)
    before = outputs(host, TOKENS)
    manager.widen("blocks.0.mlp.0", 4)
    torch.testing.assert_close(outputs(host, TOKENS), before, rtol=1e-4, atol=1e-5)
    assert "_graft_0" in host.regions["blocks.1.mlp"].code
    with pytest.raises(ChannelError, match="the seed 'a'"):
        manager.widen("blocks.1.mlp.0", 4)
    steps(host, optimizer, manager, TOKENS)
    assert manager.seeds["a"].steps > 2


def test_the_class_runs_its_own_forward():
    host, _, manager = managed(Attention(), torch.randn(2, 5, 12))
    manager.widen("qkv", 8)
    assert host.heads == 5
    assert "forward" not in host.regions[""].module.__dict__
    plain = Attention(heads=5)
    plain.load_state_dict(host.state_dict())
    x = torch.randn(2, 5, 12)
    assert_same_bits(plain(x), host(x))


def test_a_compiled_host_compiles_at_its_next_call(fresh_compiler):
    backend = counting_backend()
    host, optimizer, manager = managed(Mlp(), torch.randn(3, 4))
    host.compile(backend=backend)
    batch = torch.randn(3, 4)
    steps(host, optimizer, manager, batch)
    before = outputs(host, batch)
    manager.widen("up", 2)
    torch.testing.assert_close(host(batch).detach(), before)
    steps(host, optimizer, manager, batch)
    assert host.up.weight.grad.shape == (10, 4)


def test_a_number_of_numpy_is_a_number():
    host, _, manager = managed(Cnn(), MODELS["cnn"][1])
    assert type(manager.widen("first", np.int64(2)).by) is int
    assert type(host.widenings[-1].by) is int


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("nowhere", 1), ChannelError, "has no channels 'nowhere'; did you mean 'qkv.weight', 'qkv'"),
        ((3, 1), ChannelError, "group: expected a name, one of host.channels; got int"),
        (("qkv", 0), ChannelError, "qkv: by: expected a whole number of channels, 1 or more; got 0"),
        (("qkv", -4), ChannelError, "qkv: by: expected a whole number of channels, 1 or more; got -4"),
        (("qkv", 2.0), ChannelError, r"qkv: by: expected a whole number of channels, 1 or more; got 2\.0"),
        (("qkv", True), ChannelError, "qkv: by: expected a whole number of channels, 1 or more; got True"),
        (("qkv", 10**12), ChannelError, "qkv: by: expected at most 16,777,216 .* got 1,000,000,000,000"),
        (("qkv", 6), ChannelError, "qkv: by: expected a multiple of 4, .* got 6"),
        (("out", 4), ChannelError, "out: its 12 channels cannot grow: it is a size of the output. Choose"),
        (("qkv", 4, "ones"), ValueError, "init: expected one of 'zero', 'split'; got 'ones'"),
        (("qkv", 4, "zero", "old"), ValueError, "optimizer_state: expected one of .* got 'old'"),
    ],
)
def test_bad_input_changes_nothing(arguments, error, said):
    batch = torch.randn(2, 5, 12)
    host, optimizer, manager = managed(Attention(), batch)
    train(host, optimizer, [batch])
    before = snapshot(host, batch, [optimizer])
    group, by, *rest = arguments
    with pytest.raises(error, match=said):
        manager.widen(group, by, **dict(zip(("init", "optimizer_state"), rest, strict=False)))
    assert_same_bits(before, snapshot(host, batch, [optimizer]))


@pytest.mark.parametrize(
    "step",
    [
        "fxgraft.resizing.widening.grow",
        "fxgraft.resizing.widening.check_moments",
        "fxgraft.resizing.widening.replace_moments",
        "fxgraft.resizing.widening.replace_tensors",
        "fxgraft_passes.channels.replacing.set_tensor",
        "fxgraft_passes.channels.growth.GroupGrowth.spread",
        "fxgraft_passes.channels.settings.Setting.apply",
        "fxgraft.resizing.widening.retrace",
        "fxgraft.host.retracing.Capture",
        "fxgraft.resizing.widening.follow",
        "fxgraft.resizing.widening.outputs",
        "fxgraft.resizing.widening.difference",
    ],
)
def test_a_failure_at_any_step_leaves_everything(step, monkeypatch):
    batch = torch.randn(2, 5, 12)
    host, optimizer, manager = managed(Attention(), batch)
    average = AveragedModel(host, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    fxgraft.averaging.follow(host, average)
    steps(host, optimizer, manager, batch)
    host(batch).sum().backward()
    host.channels  # found before: finding them applies settings as well
    before = snapshot(host, batch, [optimizer]), snapshot(average.module, batch)
    failed = 0
    for after in range(3):  # in its first call, and in later ones
        with monkeypatch.context() as patch:
            calls = _fail(patch, step, after)
            try:
                manager.widen("qkv", 4)
            except KeyError:
                failed += 1
            else:
                assert len(calls) <= after
                break
        assert_same_bits(before, (snapshot(host, batch, [optimizer]), snapshot(average.module, batch)))
    assert failed
    steps(host, optimizer, manager, batch)
    assert host.channels["qkv"].fixed is None


def _fail(patch, step, after):
    """Let the function of that name raise in one of its calls; returns the list that counts them."""
    place, _, name = step.rpartition(".")
    owner, calls = pkgutil.resolve_name(place), []
    real = getattr(owner, name)

    def failing(*args, **kwargs):
        calls.append(name)
        if len(calls) == after + 1:
            raise KeyError("injected")
        return real(*args, **kwargs)

    patch.setattr(owner, name, failing)
    return calls


def test_an_optimizer_that_keeps_something_else_is_refused():
    host = fxgraft.trace(Mlp(), (torch.randn(3, 4),))
    optimizer = torch.optim.Adafactor(host.parameters())
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    batch = torch.randn(3, 4)
    steps(host, optimizer, manager, batch)
    before = snapshot(host, batch, [optimizer])
    with pytest.raises(ChannelError, match="Adafactor keeps 'row_var'"):
        manager.widen("up", 2)
    assert_same_bits(before, snapshot(host, batch, [optimizer]))


def test_an_optimizer_that_keeps_one_vector_of_all_is_refused():
    batch = torch.randn(3, 4)
    host = fxgraft.trace(Mlp(), (batch,))
    optimizer = torch.optim.LBFGS(host.parameters(), lr=0.1, max_iter=2)
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)

    def closure():
        optimizer.zero_grad()
        loss = host(batch).square().mean()
        loss.backward()
        return loss

    manager.widen("up", 2)  # it keeps nothing yet
    optimizer.step(closure)
    with pytest.raises(ChannelError, match="expected an optimizer that keeps something for each parameter"):
        manager.widen("up", 2)
    assert host.up.out_features == 10
    optimizer.step(closure)


def test_a_function_that_depends_on_how_many_there_are_is_refused():
    class Scaled(Mlp):
        def forward(self, x):
            x = self.up(x)
            return self.down(x / x.shape[-1])

    batch = torch.randn(3, 4)
    host, optimizer, manager = managed(Scaled(), batch)
    before = snapshot(host, batch, [optimizer])
    with pytest.raises(ChannelError, match="depends on how many there are; it shows first in linear in down"):
        manager.widen("up", 2, init="split")
    assert_same_bits(before, snapshot(host, batch, [optimizer]))


class Tied(nn.Module):
    """An embedding, a residual block and a head without a normalisation in front of it."""

    def __init__(self, tied=True):
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 8), nn.Embedding(5, 8)
        self.norm, self.block, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, numbers):
        x = self.tokens(numbers) + self.places(torch.arange(5))
        return self.head(x + self.block(self.norm(x)))


def test_a_tied_head_that_holds_a_width_is_named():
    batch = torch.randint(0, 11, (2, 5))
    group = fxgraft.trace(Tied(), (batch,)).channels["tokens"]
    assert re.search(
        r"it shows first in linear in head, which reads them with tokens\.weight.*Untie", group.fixed
    ), group.fixed
    assert fxgraft.trace(Tied(tied=False), (batch,)).channels["tokens"].fixed is None


PARAMETRIZED = {
    "weight_norm": (
        nn.utils.parametrizations.weight_norm,
        r"up\.parametrizations\.weight\.0 \(_WeightNorm\)",
    ),
    "spectral_norm": (nn.utils.parametrizations.spectral_norm, r"mv in up\.parametrizations\.weight\.0"),
    "weight_norm, by a hook": (torch.nn.utils.weight_norm, "_weight_norm in up"),
    "spectral_norm, by a hook": (torch.nn.utils.spectral_norm, "mv in up"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(("parametrize", "told"), PARAMETRIZED.values(), ids=list(PARAMETRIZED))
def test_parametrized_weights_are_refused_by_name(parametrize, told):
    model, batch = Mlp(), torch.randn(3, 4)
    parametrize(model.up)
    host, optimizer, manager = managed(model, batch)
    group = next(
        g
        for g in host.channels.values()
        if any(m.name == "down.weight" and m.dimension == 1 for m in g.members)
    )
    before = snapshot(host, batch, [optimizer])
    with pytest.raises(ChannelError, match=told):
        manager.widen(group, 2)
    assert_same_bits(before, snapshot(host, batch, [optimizer]))


@pytest.mark.parametrize("broken", ["nan", "inf"])
def test_outputs_that_show_nothing_are_refused(broken):
    batch = torch.randn(3, 4)
    model = Mlp()
    with torch.no_grad():
        model.down.bias.fill_(float(broken))
    host, optimizer, manager = managed(model, batch)
    before = snapshot(host, batch, [optimizer])
    with pytest.raises(ChannelError, match="NaN or inf throughout"):
        manager.widen("up", 2)
    assert_same_bits(before, snapshot(host, batch, [optimizer]))


def test_odd_layers_grow_as_they_are():
    frozen = Mlp()
    frozen.up.requires_grad_(False)
    host, optimizer, manager = managed(frozen, torch.randn(3, 4))
    manager.widen("up", 2)
    assert [p.requires_grad for p in host.up.parameters()] == [False, False]
    steps(host, optimizer, manager, torch.randn(3, 4))

    class Twice(Mlp):
        def forward(self, x):
            return super().forward(x) + super().forward(x.flip(0))

    host, optimizer, manager = managed(Twice(), torch.randn(3, 4))
    assert manager.widen("up", 2).max_abs <= 1e-6
    steps(host, optimizer, manager, torch.randn(3, 4))


def test_channels_last_stays():
    batch = torch.randn(2, 3, 8, 8)
    host, optimizer, manager = managed(Cnn().to(memory_format=torch.channels_last), batch)
    steps(host, optimizer, manager, batch, 1)
    manager.widen("first", 2)
    weight = host.second.weight
    assert all(
        tensor.is_contiguous(memory_format=torch.channels_last)
        for tensor in (weight, weight.grad, optimizer.state[weight]["exp_avg"])
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_host_that_was_converted_since_its_trace(dtype):
    batch = MODELS["cnn"][1]
    host, _, manager = managed(Cnn(), batch)
    host.to(dtype)
    assert manager.widen("first", 2).max_abs <= (0.05 if dtype is torch.bfloat16 else 1e-12)
    assert host.second.weight.dtype is dtype


def test_a_host_without_data_grows():
    with torch.device("meta"):
        model = Mlp()
    host = fxgraft.trace(model, (torch.randn(3, 4),))
    assert fxgraft.SeedManager(host).widen("up", 2).size == 10
    assert host.down.weight.is_meta


def test_where_it_cannot_be_asked_for(monkeypatch):
    batch = torch.randn(3, 4)
    host, optimizer, manager = managed(Mlp(), batch)
    before = snapshot(host, batch, [optimizer])
    with torch.inference_mode(), pytest.raises(StageError, match="inference_mode"):
        manager.widen("up", 1)
    with pytest.raises(ValueError, match="wait: expected True or False"):
        manager.widen("up", 1, wait="later")
    with monkeypatch.context() as patch:
        patch.setattr(manager.peers, "size", 2, raising=False)
        for call in (lambda: manager.widen("up", 1), manager.fuse):
            with pytest.raises(DistributedError, match="several ranks"):
                call()
    assert_same_bits(before, snapshot(host, batch, [optimizer]))


def test_a_command_widens():
    batch = torch.randn(3, 4)
    host, _, manager = managed(Mlp(), batch)
    reply = manager.handle({"type": "WIDEN", "group": "up", "by": 2, "init": "split"})
    assert (reply.accepted, reply.reason) == (True, "up has 10 channels")
    refused = manager.handle(WIDEN(group="down", by=2))
    assert not refused.accepted
    assert "is a size of the output" in refused.reason
    futures = [manager.submit(WIDEN(group="up", by=1)), manager.submit(SEED(slot="down", blueprint="mlp"))]
    manager.step()
    assert [future.result().accepted for future in futures] == [True, True]
    assert host.channels["up"].size == 11


class Sentinels(nn.Module):
    """Its code scales by its width, and one of its outputs may be masked by a large number."""

    def __init__(self, scales, masks):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 5)
        self.scales, self.masks = scales, masks

    def forward(self, x):
        y = self.up(x)
        y = self.down(y / y.shape[-1] ** 0.5 if self.scales else y)
        return y.masked_fill(torch.arange(5) == 4, self.masks) if self.masks else y


@pytest.mark.parametrize("masks", [0, -1e9, torch.finfo(torch.float32).min, -float("inf")])
def test_a_large_output_hides_no_difference_of_the_others(masks):
    host = fxgraft.trace(Sentinels(True, masks), (torch.randn(6, 4),))
    with pytest.raises(ChannelError, match="expected the outputs of before"):
        fxgraft.SeedManager(host).widen("up", 8)
    host = fxgraft.trace(Sentinels(False, masks), (torch.randn(6, 4),))
    assert fxgraft.SeedManager(host).widen("up", 8).done


class Cancelling(nn.Module):
    """Its outputs are small differences of large values, whose rounding they have."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.large = nn.Linear(4, 64), nn.Linear(64, 5), nn.Linear(4, 5)

    def forward(self, x):
        large = 1e4 * self.large(x)
        return torch.stack([self.down(self.up(x).relu()) + large - large, large])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_of_large_values_that_cancel_is_allowed(dtype):
    torch.manual_seed(0)
    host = fxgraft.trace(Cancelling().to(dtype), (torch.randn(6, 4, dtype=dtype),))
    done = fxgraft.SeedManager(host).widen("up", 8, init="split")
    assert done.max_abs is not None


class ComputedInFewDigits(nn.Module):
    """Weights of float32, with which it computes in bfloat16; or all in that."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.out = nn.Linear(16, 64), nn.Linear(64, 32), nn.Linear(32, 5)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.out(self.down(self.up(x).relu()).relu())
            return y - y.mean(-1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(3))
def test_rounding_of_what_code_computes_in_is_allowed(dtype, seed):
    torch.manual_seed(seed)
    host = fxgraft.trace(ComputedInFewDigits().to(dtype), (torch.randn(64, 16, dtype=dtype),))
    manager = fxgraft.SeedManager(host)
    for init in ("zero", "split"):
        assert manager.widen("up", 16, init=init).done
    scaling = fxgraft.trace(Sentinels(True, -1e9).to(dtype), (torch.randn(6, 4, dtype=dtype),))
    with pytest.raises(ChannelError, match="expected the outputs of before"):
        fxgraft.SeedManager(scaling).widen("up", 24)


class Moving(nn.Module):
    """Writes into a buffer in each call, or counts its calls."""

    def __init__(self, counts):
        super().__init__()
        self.up, self.down, self.counts, self.calls = nn.Linear(4, 8), nn.Linear(8, 2), counts, 0
        self.register_buffer("decay", torch.ones(8))

    def forward(self, x):
        if self.counts:
            self.calls += 1
            return self.down(self.up(x).relu()) * self.calls
        self.decay.mul_(0.9)
        return self.down(self.up(x).relu() * self.decay.mean())


def test_a_buffer_that_moves_in_each_call_is_no_difference():
    host = fxgraft.trace(Moving(False), (torch.randn(6, 4),))
    assert fxgraft.SeedManager(host).widen("up", 2).done


def test_a_model_that_does_not_repeat_itself_is_told_apart():
    host = fxgraft.trace(Moving(True), (torch.randn(6, 4),))
    with pytest.raises(ChannelError, match="two runs of it differ"):
        fxgraft.SeedManager(host).widen("up", 2)
