"""Conditions in code that runs in another process."""

from __future__ import annotations

from types import ModuleType

import pytest

from fxgraft.capture._facts import Fact


@pytest.mark.parametrize(
    ("items", "holds"), [({"a": None}, True), ({"a": 1}, False), ({}, True), ({"b": 1}, True)]
)
def test_a_registry_may_lack_what_was_not_registered_there(items: dict[str, object], holds: bool) -> None:
    module = ModuleType("library")
    module.__dict__["REGISTRY"] = items
    fact = Fact(module, (("attr", "REGISTRY"), ("item", "a")), "$ is None").elsewhere()
    assert eval(fact.written(lambda _: "library"), {"library": module}) is holds
