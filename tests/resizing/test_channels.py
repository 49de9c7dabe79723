"""`host.channels`: what can grow, with what, and why not."""

import copy

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from tests.harness import assert_same_bits, snapshot
from tests.hosts.transformer_models import vit
from tests.resizing.models import Attention, Bottleneck, Cnn, Experts, Gated, Gpt, Mlp, ResNet


def channels(model, *args):
    return fxgraft.trace(model, args).channels


def members(group):
    return {(m.name, m.dimension, m.role) for m in group.members}


def free(found):
    return [name for name, group in found.items() if group.fixed is None]


def test_hidden_units_have_producers_and_consumers():
    found = channels(Mlp(), torch.randn(2, 4))
    up = found["up"]
    assert (up.size, up.grain, up.fixed) == (8, 1, None)
    assert members(up) == {
        ("up.weight", 0, "producer"),
        ("up.bias", 0, "producer"),
        ("down.weight", 1, "consumer"),
    }
    assert found["down"].fixed == "is a size of the output"
    assert found["up.weight"].fixed == "is a size of the input"


@pytest.mark.parametrize("fused", [False, True])
def test_gated_units_grow_in_pairs(fused):
    found = channels(Gated(fused), torch.randn(2, 4))
    group = found["both" if fused else "gate"]
    assert (group.size, group.fixed) == (8, None)
    assert ("down.weight", 1, "consumer") in members(group)
    assert len(group.members) == (3 if fused else 5)


def test_convolutions_have_their_norms_with_them():
    found = channels(Cnn(), torch.randn(2, 3, 8, 8))
    assert ("norm.running_var", 0, "norm") in members(found["first"])
    assert (found["first"].grain, found["second"].grain) == (1, 2)
    assert ("head.weight", 1, "consumer") in members(found["second"])
    assert "group_norm" in found["second[1]"].fixed


def test_the_inner_channels_of_a_bottleneck_are_its_own():
    found = channels(ResNet(), torch.randn(2, 3, 9, 9))
    assert free(found) == [
        "conv1", *(f"layer1.{i}.{c}" for i in range(2) for c in ("conv1", "conv2"))
    ]  # fmt: skip
    stream = {m.path for m in found["conv1"].members}
    assert {"bn1", "layer1.0.conv3", "layer1.1.bn3", "fc"} <= stream


def test_heads_grow_whole():
    found = channels(Attention(), torch.randn(2, 5, 12))
    assert (found["qkv"].size, found["qkv"].grain, found["qkv"].fixed) == (12, 4, None)
    assert "scaled_dot_product_attention" in found["qkv[2]"].fixed


def test_the_stream_of_a_language_model_is_one_group_with_its_tied_head():
    found = channels(Gpt(), torch.randint(0, 11, (2, 6)))
    stream = members(found["token"])
    assert {("token.weight", 1, "producer"), ("token.weight", 1, "consumer"), ("place", 2, "scale")} <= stream
    assert {("blocks.1.ln2.bias", 0, "norm"), ("blocks.0.attn.out.weight", 0, "producer")} <= stream
    assert free(found) == [
        "token", *(f"blocks.{i}.{layer}" for i in range(2) for layer in ("attn.qkv", "mlp.0"))
    ]  # fmt: skip


def test_hidden_units_of_experts():
    found = channels(Experts(), torch.randn(2, 4))
    assert free(found) == ["up"]
    assert members(found["up"]) == {("up", 2, "producer"), ("down", 1, "consumer")}


class Planted(nn.Module):
    """An operation between two layers."""

    def __init__(self, operation, width=8):
        super().__init__()
        self.up, self.down, self.operation = nn.Linear(4, 8), nn.Linear(width, 3), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.operation(self.up(x)))


@pytest.mark.parametrize(
    ("operation", "width", "why"),
    [
        (lambda x: torch.fft.fft(x).real, 8, "fft_fft"),
        (lambda x: x.cumsum(-1), 8, "cumsum"),
        (lambda x: x.softmax(-1), 8, "softmax"),
        (lambda x: x[:, ::2], 4, "__getitem__"),
        (lambda x: x.roll(1, -1), 8, "roll"),
        (lambda x: x.sort(-1).values, 8, "sort"),
        (lambda x: x * x.mean(-1, keepdim=True), 8, "mean"),
        (lambda x: x.view(2, 2, 4).flatten(1), 8, "shape"),
        (lambda x: torch.linalg.qr(x).Q @ torch.ones(2, 8), 8, "linalg_qr"),
    ],
    ids=["fft", "cumsum", "softmax", "strided", "roll", "sort", "mean", "view", "qr"],
)
def test_what_is_not_known_to_be_right_is_fixed_by_its_name(operation, width, why):
    group = channels(Planted(operation, width), torch.randn(2, 4))["up"]
    assert group.fixed is not None
    assert why in group.fixed


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.rnn, self.out = nn.Linear(4, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.rnn(self.inner(x))[0])


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(4, 8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.inner(x)
        return self.out(x + self.attention(x, x, x, need_weights=False)[0])


def test_what_torch_does_not_show_is_named_by_its_module():
    found = channels(Recurrent(), torch.randn(2, 5, 4))
    assert "rnn (LSTM)" in found["out.weight"].fixed
    found = channels(Attending(), torch.randn(2, 5, 4))
    assert "F.scaled_dot_product_attention" in found["inner"].fixed
    model = Mlp()
    nn.utils.parametrizations.weight_norm(model.up)
    assert "up.parametrizations.weight" in channels(model, torch.randn(2, 4))["up"].fixed


def test_code_without_a_graph_is_seen():
    class Looping(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList([Mlp(), nn.Linear(3, 3)])

        def forward(self, x):
            for part in self.parts:
                if bool(self.parts[1].bias.sum() > -1e9):  # reads a value: no graph
                    x = part(x)
            return x

    host = fxgraft.trace(Looping(), (torch.randn(2, 4),))
    assert "" in host.opaque
    assert free(host.channels) == ["parts.0.up", "parts.0.down"]


def test_a_seed_fixes_the_channels_that_it_works_on():
    host = fxgraft.trace(Mlp(), (torch.randn(2, 4),))
    manager = fxgraft.SeedManager(host)
    manager.germinate("act", nn.Linear(8, 8), name="a")
    assert "the seed 'a'" in host.channels["up"].fixed
    manager.cull("a")
    assert host.channels["up"].fixed is None


class WithWholeNumbers(nn.Module):
    """Multiplies its channels by whole numbers of a parameter."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)
        self.factors = nn.Parameter(torch.ones(8, dtype=torch.int8), requires_grad=False)

    def forward(self, x):
        return self.down(self.up(x) * self.factors)


def test_channels_of_whole_numbers_are_fixed():
    host = fxgraft.trace(WithWholeNumbers(), (torch.randn(2, 4),))
    assert host.channels["up"].fixed.startswith("factors is torch.int8")
    with pytest.raises(fxgraft.errors.ChannelError, match=r"factors is torch\.int8"):
        fxgraft.SeedManager(host).widen("up", 2)


def test_a_copy_says_that_it_was_not_traced():
    twin = copy.deepcopy(fxgraft.trace(Mlp(), (torch.randn(2, 4),)))
    with pytest.raises(fxgraft.errors.ChannelError, match="retrace"):
        twin.channels


def test_looking_leaves_no_trace():
    model = nn.Sequential(Bottleneck(3, 4), nn.Dropout(0.5))
    batch = torch.randn(2, 3, 4, 4)
    host = fxgraft.trace(model, (batch,))
    before, stream = snapshot(host, batch), torch.random.get_rng_state()
    host.channels
    assert_same_bits(before, snapshot(host, batch))
    assert torch.equal(stream, torch.random.get_rng_state())


def test_a_group_that_is_like_a_fixed_one_names_that_and_no_other_module_as_its_own() -> None:
    given = vit()
    channels = fxgraft.trace(given.model, given.args, given.kwargs).channels
    first, second = (f"vit.layers.{block}.attention" for block in range(2))
    assert f"{channels[f'{first}.v_proj'].fixed}".startswith(f"{first} does not run with more of them: ")
    assert f"{channels[f'{second}.v_proj'].fixed}".startswith(
        f"as {first}.v_proj, which is like it: {first} "
    )
