"""Hand-written hosts: each works to the bit, or is refused with a reason."""

from __future__ import annotations

import pytest

import tests.hosts.hard  # noqa: F401 - registers its hosts
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
