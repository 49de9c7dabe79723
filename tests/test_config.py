"""A configuration: the same in every form, refused where it is wrong, and carried out."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxgraft
from fxgraft import SeedManager, Stage, commands
from fxgraft.commands import BLEND, CULL, FOSSILIZE, SEED
from fxgraft.config import ConfigError, GrowConfig, ManagerOptions, Scripted
from fxgraft.errors import BlueprintError, SlotError
from fxgraft.report import read
from tests.harness import traced_once

YAML = """
manager: {strict: true, metrics_every: 2, prefetch_timeout: 60}
script:
  - {step: 2, type: SEED, slot: "1", blueprint: mlp, name: a, config: {hidden: 4}}
  - {step: 4, type: BLEND, seed: a, steps: 2}
  - {step: 7, type: FOSSILIZE, seed: a}
"""


@traced_once
def host() -> fxgraft.Host:
    return fxgraft.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.randn(5, 4),))


def train(net: fxgraft.Host, config: GrowConfig, manager: SeedManager, steps: int) -> None:
    (optimizer,) = manager._optimizers
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.ones(5, 4)).square().mean().backward()
        optimizer.step()
        manager.step()
        config.act(manager)


names = st.text("abc", min_size=1, max_size=3)
seeds = st.builds(SEED, slot=names, blueprint=names, mode=st.sampled_from([None, "convex"]))
blends = st.builds(BLEND, seed=names, to=st.floats(0, 1), steps=st.integers(1, 99))
scripted = st.builds(Scripted, st.integers(1, 10**6), seeds | blends | st.builds(CULL, seed=names, id=names))
configs = st.builds(
    GrowConfig,
    manager=st.builds(
        ManagerOptions,
        enabled=st.none() | st.booleans(),
        strict=st.booleans(),
        metrics_every=st.integers(0, 99),
        prefetch_timeout=st.none() | st.floats(0, 1e6),
    ),
    log=st.none() | names,
    compile=st.none() | st.just({"dynamic": False, "backend": "aot_eager"}),
    script=st.lists(scripted, max_size=3).map(tuple),
    autogrow=st.none()
    | st.fixed_dictionaries(
        {"budget": st.floats(1, 9)},
        optional={
            "steps": st.integers(1, 9),
            "candidates": st.lists(seeds.map(commands.to_dict), min_size=1),
        },
    ),
)


@given(configs)
def test_every_form_is_the_same_configuration(config: GrowConfig) -> None:
    assert GrowConfig.from_dict(config.to_dict()) == config
    assert GrowConfig.from_json(config.to_json()) == config
    assert GrowConfig.from_yaml(config.to_yaml()) == config
    json.dumps(config.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", ["grow.json", "grow.yaml"])
def test_a_file_is_the_same_configuration(name: str, tmp_path: Path) -> None:
    config = GrowConfig.from_yaml(YAML)
    config.save(tmp_path / name)
    assert GrowConfig.load(tmp_path / name) == config


def test_the_options_are_those_of_the_manager_with_its_defaults() -> None:
    parameters = inspect.signature(SeedManager).parameters
    for option in dataclasses.fields(ManagerOptions):
        assert option.default == parameters[option.name].default, option.name
    objects = {"host", "optimizer", "schedulers", "sinks", "gates", "ddp"}  # which are no data
    assert {f.name for f in dataclasses.fields(ManagerOptions)} == set(parameters) - objects


def test_a_script_is_carried_out_and_logged(tmp_path: Path) -> None:
    config = dataclasses.replace(GrowConfig.from_yaml(YAML), log=str(tmp_path / "new" / "events.jsonl"))
    net = host()
    manager = config.start(net, torch.optim.SGD(net.parameters(), 0.1))
    stages = []
    for _ in range(8):
        train(net, config, manager, 1)
        stages.append(manager.seeds["a"].stage.name if manager.seeds else None)
    assert stages == [None, *["TRAINING"] * 2, *["BLENDING"] * 2, "HOLDING", *["FOSSILIZED"] * 2]
    run = read(tmp_path / "new")
    assert [row["command"]["type"] for row in run.commands] == ["SEED", "BLEND", "FOSSILIZE"]


def test_a_resumed_script_goes_on_where_it_was(tmp_path: Path) -> None:
    config = GrowConfig.from_yaml(YAML)
    net = host()
    manager = config.start(net, torch.optim.SGD(net.parameters(), 0.1))
    train(net, config, manager, 5)
    manager.save(tmp_path / "run")
    again = host()
    resumed = config.start(again, torch.optim.SGD(again.parameters(), 0.1), resume=tmp_path / "run")
    train(again, config, resumed, 3)
    assert resumed.seeds["a"].stage is Stage.FOSSILIZED


def test_a_refused_command_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    config = GrowConfig(script=(Scripted(1, FOSSILIZE(seed="nobody")),))
    net = host()
    manager = config.start(net, torch.optim.SGD(net.parameters(), 0.1))
    train(net, config, manager, 2)
    assert "step 1: the script's FOSSILIZE: StageError: no seed 'nobody' here" in caplog.text


def test_compiling_is_a_matter_of_configuration(fresh_compiler: None) -> None:
    config = GrowConfig(compile={"backend": "aot_eager"})
    net = host()
    config.start(net)
    assert net.compiled is not None


SEEDS = [{"type": "SEED", "slot": "1", "blueprint": "mlp"}]
NOWHERE, NOTHING = {**SEEDS[0], "slot": "nowhere"}, {**SEEDS[0], "blueprint": "nothing"}


@pytest.mark.parametrize("candidates", ["auto", SEEDS])
def test_a_host_grows_automatically_by_its_configuration(candidates: Any) -> None:
    terms = {
        "candidates": candidates,
        "budget": 9.0,
        "when": 0.1,
        "total_steps": 20,
        "steps": 3,
        "gain": -9.0,
    }
    config = GrowConfig.from_dict({"autogrow": {**terms, "blend": 2, "hold": 2}})
    net = host()
    manager = config.start(net, torch.optim.SGD(net.parameters(), 0.1))
    growth = config.grow(manager, lambda: net(torch.ones(5, 4)).square().mean())
    assert growth is not None
    train(net, config, manager, 20)
    assert growth.done
    assert "kept" in {entry["what"] for entry in growth.history} or "widened" in str(growth)
    assert GrowConfig().grow(manager, lambda: 0.0) is None


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"script": [{"step": 9, **NOWHERE}]}, SlotError),
        ({"script": [{"step": 9, **NOTHING}]}, BlueprintError),
        ({"autogrow": {"candidates": [NOTHING]}}, BlueprintError),
        ({"autogrow": {"candidates": [{**SEEDS[0], "config": {"isolated": False}}]}}, BlueprintError),
        ({"autogrow": {"candidates": SEEDS, "budget": 1.5}}, ValueError),
        ({"autogrow": {"candidates": {"type": "DEEPEN", "stack": "nowhere"}}}, SlotError),
    ],
)
def test_what_does_not_fit_is_told_at_the_start(data: dict[str, Any], error: type[Exception]) -> None:
    net = host()
    config = GrowConfig.from_dict(data)
    with pytest.raises(error):
        config.grow(config.start(net), lambda: net(torch.ones(5, 4)).square().mean())
    assert not net.structure.placements


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("manager: {stict: true}", "stict"),
        ("manager: {strict: maybe}", "manager.strict"),
        ("manager: [1]", "manager"),
        ("script: [{type: CULL, seed: a}]", "expected a command with a step"),
        ("script: [{step: 0, type: CULL, seed: a}]", "expected a command with a step"),
        ("script: [{step: 1, type: KILL, seed: a}]", "type: expected one of SEED"),
        ("script: [{step: 1, type: BLEND, seed: a, to: 7}]", "BLEND.to: expected 0 to 1"),
        ("autogrow: {window: 0}", "autogrow: window: expected a positive whole number; got 0"),
        ("autogrow: {budget: 0.5}", "autogrow: budget: expected a number, 1 or more; got 0.5"),
        ("autogrow: {when: 0.5}", "autogrow: when: a share of the run needs"),
        ("autogrow: {hidden: 3}", r"autogrow: expected blend, .*; got \['hidden'\]"),
        ("autogrow: 2.0", "autogrow: expected"),
        ("manager: {cooldown: -1}", "cooldown: expected a whole number, 0 or more; got -1"),
        ("[1, 2]", "expected an object"),
        ("{", "expected YAML"),
        ("log: !!python/object/apply:os.system ['true']", "expected YAML"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GrowConfig.from_yaml(text)


def test_what_cannot_be_read_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        GrowConfig.load(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="expected JSON"):
        GrowConfig.from_json("{")
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(ConfigError, match=r"torn\.json: the configuration: expected JSON"):
        GrowConfig.load(tmp_path / "torn.json")
