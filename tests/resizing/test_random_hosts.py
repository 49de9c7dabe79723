"""Random models: what is free grows and keeps the function, and a planted operation fixes what it touches."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fxgraft.testing.checks import assert_same_bits
from fxgraft_passes.channels.comparing import outputs
from fxgraft_passes.channels.groups import find
from fxgraft_passes.channels.growth import grow
from fxgraft_passes.channels.recording import tensors_in
from fxgraft_passes.channels.settings import applied
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.channels.trying import tried
from tests.strategies import OPERATIONS, RandomOperation, plans


@given(plans(), st.sampled_from(["zero", "split"]), st.integers(1, 3))
def test_every_free_group_grows_and_keeps_the_function(plan, init, times):
    model, batch = plan.build().eval(), plan.batch(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    subject = Subject.of(model, (batch,))
    for group in tried(subject, find(subject)).values():
        if group.fixed is not None or (init == "split" and group.normalised):
            continue
        with subject.session(), torch.no_grad():
            growth = grow(subject, group, times * group.grain, init, seed=0, before=outputs(subject))
        with subject.session(), torch.no_grad():
            expected = tensors_in(model(batch))
        wider = subject.with_tensors(growth.tensors), applied(growth.settings, subject)
        with subject.session(), torch.no_grad(), wider[0], wider[1]:  # a model that counts begins as before
            for now, then in zip(tensors_in(model(batch)), expected, strict=True):
                assert (now - then).abs().max() <= 1e-4 * then.abs().max()
    assert_same_bits(before, dict(model.state_dict()))


@given(plans(without=["integers"]), st.integers(0, 10))
def test_a_planted_operation_is_named(plan, place):
    steps = list(plan.steps)
    steps.insert(place % (len(steps) + 1), "planted")
    OPERATIONS["planted"] = RandomOperation(lambda _, part, x: torch.fft.fft(x).real)
    try:
        model = type(plan)(tuple(steps), plan.tokens).build().eval()
        subject = Subject.of(model, (plan.batch(0),))
        groups = find(subject)
    finally:
        del OPERATIONS["planted"]
    assert any("fft_fft" in (group.fixed or "") for group in groups.values())
