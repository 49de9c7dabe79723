"""Hand-written hosts: each works to the bit, or is refused with a reason."""

from __future__ import annotations

import copy

import pytest

import fxgraft
import tests.hosts.hard  # noqa: F401 - registers its hosts
from fxgraft.util.bits import same_bits
from tests.hosts.hosts import HOSTS, REFUSED, check


@pytest.mark.parametrize("name", HOSTS)
def test_the_host_is_the_model_to_the_bit(name):
    host = check(HOSTS[name]())
    where, reason = REFUSED.get(name, ("", None))
    if reason is None:
        assert not host.opaque, dict(host.opaque)
    else:
        assert reason in host.rejected[where]
        assert where not in host.regions


def test_a_function_given_to_fx_wrap_is_one_operation_and_no_condition_fails():
    given = HOSTS["a function given to fx.wrap"]()
    host = fxgraft.trace(given.model, given.args)
    assert {"masked", "tanh"} <= set(host.slots)
    manager = fxgraft.SeedManager(host)
    seeds = [manager.germinate(slot, "scale_shift") for slot in ("masked", "tanh")]
    for x in (given.args[0], -given.args[0].abs()):  # the code of the function takes another path
        assert same_bits(host(x), given.model(x))
    assert host.explain().fallbacks == 0
    assert [seed.training_runs for seed in seeds] == [2, 2]
    assert copy.copy(host.regions[""].form).facts == host.regions[""].form.facts
