"""Random hosts that grow: trained before and after, what they compute and what was learned stays."""

import copy

import torch
import torch.fx as fx
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import fxgraft
from fxgraft.errors import ChannelError
from fxgraft_passes import FindChannels, Widen, channels_of
from tests.harness import assert_same_bits
from tests.strategies import plans

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}
WIDTH = 6


def branch(hidden, act, biases):
    """Layers of these widths; the last has no bias: two that add up are trained as one once fused."""
    sizes, layers = [WIDTH, *hidden], []
    for before, after, bias in zip(sizes, sizes[1:], biases, strict=False):
        layers += [nn.Linear(before, after, bias=bias), ACTIVATIONS[act]()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], WIDTH, bias=False))


class Host(nn.Module):
    def __init__(self, part, norm):
        super().__init__()
        self.inner, self.part, self.head = nn.Linear(4, WIDTH), part, nn.Linear(WIDTH, 2)
        self.norm = nn.LayerNorm(WIDTH) if norm else nn.Identity()

    def forward(self, x):
        x = self.inner(x)
        return self.head(self.norm(x + self.part(x)))


def train(host, optimizer, manager, steps):
    for i in range(steps):
        torch.manual_seed(i)
        x = torch.randn(5, 4)
        optimizer.zero_grad()
        host(x).square().mean().backward()
        optimizer.step()
        manager.step()


def grown(model, seed, make):
    host = fxgraft.trace(copy.deepcopy(model), (torch.randn(5, 4),))
    optimizer = make(host.parameters())
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    manager.germinate("part", copy.deepcopy(seed), source="inner", name="a", isolated=False)
    manager.blend("a", steps=0)
    train(host, optimizer, manager, 3)
    manager.fossilize("a")
    return host, optimizer, manager


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=3),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.booleans(),
    st.sampled_from(sorted(OPTIMIZERS)),
)
def test_a_fused_run_goes_on_as_the_run_with_the_branch(sizes, act, biases, norm, optimizer):
    """Where two grown layers follow each other, weights of zero connect both: they learn from then on."""
    torch.manual_seed(0)
    ours, theirs = ([pair[i] for pair in sizes] for i in (0, 1))
    model, seed = Host(branch(ours, act, biases), norm), branch(theirs, act, biases)
    fused, plain = (grown(model, seed, OPTIMIZERS[optimizer]) for _ in range(2))
    fused[2].fuse("a")
    assert [layer.out_features for layer in fused[0].part if isinstance(layer, nn.Linear)] == [
        *(a + b for a, b in sizes), WIDTH
    ]  # fmt: skip
    for host, own, manager in (fused, plain) if len(sizes) == 1 else ():
        train(host, own, manager, 3)
    x = torch.randn(5, 4)
    torch.testing.assert_close(fused[0](x), plain[0](x), rtol=1e-4, atol=1e-5)
    learned = dict(plain[0].graft("a").module.named_parameters())
    for name, parameter in fused[0].part.named_parameters():
        both = plain[0].part.get_parameter(name), learned[name]
        torch.testing.assert_close(parameter, joined(*both), rtol=1e-4, atol=1e-5)
        for key, value in fused[1].state[parameter].items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                moments = [plain[1].state[one][key] for one in both]
                torch.testing.assert_close(value, joined(*moments), rtol=1e-4, atol=1e-5)


def joined(a, b):
    """Two layers as one: rows behind rows, columns behind columns."""
    if a.dim() == 1:
        return torch.cat([a, b])
    if a.shape[1] == b.shape[1] == WIDTH:
        return torch.cat([a, b])  # the first
    if a.shape[0] == b.shape[0] == WIDTH:
        return torch.cat([a, b], dim=1)  # the last
    return torch.block_diag(a, b)


class Stream(nn.Module):
    """A residual stream with blocks that were drawn."""

    def __init__(self, width, heads, hidden, norm, tied):
        super().__init__()
        make = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[norm]
        self.token = nn.Embedding(7, width)
        self.blocks = nn.ModuleList(Part(width, heads, size, make) for size in hidden)
        self.norm, self.head = make(width), nn.Linear(width, 7, bias=False)
        if tied:
            self.head.weight = self.token.weight

    def forward(self, tokens):
        x = self.token(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Part(nn.Module):
    def __init__(self, width, heads, hidden, norm):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, norm(width), norm(width)
        self.qkv, self.out = nn.Linear(width, 3 * heads * 2), nn.Linear(heads * 2, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, self.heads * 2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


TOKENS = torch.arange(10).reshape(2, 5) % 7


@given(
    st.integers(2, 4),
    st.integers(1, 3),
    st.lists(st.integers(2, 6), min_size=1, max_size=2),
    st.sampled_from(["layer", "rms"]),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 2), st.booleans()), min_size=1, max_size=3),
)
def test_a_stream_that_grows_computes_the_same_and_keeps_what_was_learned(
    width, heads, hidden, norm, tied, growths
):
    torch.manual_seed(0)
    host = fxgraft.trace(Stream(2 * width, heads, hidden, norm, tied), (TOKENS,))
    optimizer = torch.optim.AdamW(host.parameters(), lr=1e-2)
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)

    def steps():
        for _ in range(2):
            optimizer.zero_grad()
            host(TOKENS).square().mean().backward()
            optimizer.step()
            manager.step()

    steps()
    for place, times, copies in growths:
        free = [group for group in host.channels.values() if group.fixed is None]
        group = free[place % len(free)]
        before, ids = host(TOKENS).detach(), [id(p) for p in host.parameters()]
        moments = [learned(optimizer.state[p]) for p in host.parameters()]
        init = "split" if copies and not group.normalised else "zero"
        manager.widen(group, times * group.grain, init=init)
        torch.testing.assert_close(host(TOKENS), before, rtol=1e-4, atol=1e-5)
        assert ids == [id(p) for p in host.parameters()]
        assert_same_bits([learned(optimizer.state[p]) for p in host.parameters()], moments)
        assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in host.parameters())
        steps()
    assert all(bool(p.isfinite().all()) for p in host.parameters())


def learned(state):
    """What an optimizer keeps that is not zero, whatever its places."""
    values = state["exp_avg"]
    return values[values != 0].sort().values


@given(plans(), st.integers(0, 9), st.integers(1, 2), st.sampled_from(["zero", "split"]))
def test_any_graph_grows_or_is_left_as_it_was(plan, place, times, init):
    model, batch = plan.build().eval(), plan.batch(0)
    try:
        gm = fx.symbolic_trace(model)
    except Exception:
        assume(False)
    before, state = gm(batch), {name: tensor.clone() for name, tensor in gm.state_dict().items()}
    FindChannels((batch,))(gm)
    groups = list(channels_of(gm).values())
    assume(groups)
    group = groups[place % len(groups)]
    try:
        Widen(group.name, times * group.grain, (batch,), init=init)(gm)
    except ChannelError:
        assert group.fixed is not None or (init == "split" and group.normalised)
        assert_same_bits(state, dict(gm.state_dict()))
    else:
        assert group.fixed is None
        assert any(now.shape != state[name].shape for name, now in gm.state_dict().items())
    gm.graph.lint()
    for now, then in zip(tensors(gm(batch)), tensors(before), strict=True):
        assert (now - then).abs().max() <= 1e-4 * then.abs().max()


def tensors(value):
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf.detach().double() for leaf in leaves if isinstance(leaf, torch.Tensor)]
