"""What torch's fast path for encoders goes around is no slot; without it, seeds run in evaluation too."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.errors import SlotError
from tests.harness import assert_same_bits

pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")

X = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
PAD = torch.arange(6).expand(4, 6) >= torch.tensor([[6], [5], [4], [6]])


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=pad).mean(1))


@pytest.fixture
def slow() -> Iterator[None]:
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier()


def test_what_an_evaluation_goes_around_is_no_slot() -> None:
    host = fxgraft.trace(model(), (X,))
    assert {"encoder", "encoder.layers.0", "head"} <= host.slots.keys()
    assert "encoder.layers.0.linear1" not in host.slots
    with pytest.raises(SlotError, match=r"not called so in eval mode .*set_fastpath_enabled\(False\) before"):
        fxgraft.SeedManager(host).germinate("encoder.layers.0.linear1", "mlp")


def test_nor_where_the_encoder_is_in_eval_mode_while_the_rest_trains() -> None:
    frozen = model()
    frozen.encoder.eval()
    host = fxgraft.trace(frozen, (X,))
    assert "encoder.layers.0.linear1" not in host.slots
    assert [frozen.training, frozen.encoder.training] == [True, False]
    assert [host.training, host.encoder.training] == [True, False]


def test_of_an_encoder_with_a_mask_the_layers_are_none() -> None:
    """In an evaluation they are given nested tensors."""
    host = fxgraft.trace(model(), (X, PAD))
    assert "encoder" in host.slots
    assert "encoder.layers.0" not in host.slots
    assert "fast path" in host.rejected["encoder.layers.0"]


def test_a_nested_tensor_is_a_call_of_another_form(caplog: pytest.LogCaptureFixture) -> None:
    plain = model()
    host = fxgraft.trace(plain, (X,))
    manager = fxgraft.SeedManager(host)
    manager.blend(manager.germinate("encoder.layers.0", nn.Linear(16, 16)), steps=1)
    manager.step()
    with torch.no_grad():
        assert_same_bits(host.eval()(X, PAD), plain.eval()(X, PAD), "without its seeds")
    assert "its seeds do not run in such calls" in caplog.text


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("mask", [(), (PAD,)])
def test_without_the_fast_path_what_was_trained_is_what_is_evaluated(mask: tuple[Tensor, ...]) -> None:
    host = fxgraft.trace(model(), (X, *mask))
    manager = fxgraft.SeedManager(host)
    for slot in ("encoder.layers.0.linear1", "encoder.layers.1"):
        width = host.slots[slot].shape[-1]
        seed = manager.germinate(slot, nn.Linear(width, width))
        manager.blend(seed, steps=1)
        manager.step()
        manager.fossilize(seed)
    trained = host(X, *mask).detach()
    torch.backends.mha.set_fastpath_enabled(True)  # as it is in other processes
    plain = io.BytesIO()
    torch.save(fxgraft.unwrap(host), plain)
    plain.seek(0)
    for net in (host, torch.load(plain, weights_only=False)):
        with torch.no_grad():
            torch.testing.assert_close(net.eval()(X, *mask), trained)
