"""Commands: everything that comes in is untrusted, and no message gets more than a reply out of a manager."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import fxgraft
from fxgraft import SeedManager, Stage, commands
from fxgraft.commands import BLEND, CULL, FOSSILIZE, FUSE, PAUSE, RESUME, SEED, WIDEN, Command
from fxgraft.commands.messages import TYPES
from fxgraft.errors import CommandError
from tests.harness import assert_same_bits, snapshot, traced_once

VALIDATOR = jsonschema.Draft202012Validator(commands.schema())

numbers = st.integers(-(10**20), 10**20) | st.floats() | st.booleans()
json_values = st.recursive(
    st.none() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
texts = st.text(max_size=12)
ids = st.none() | texts
configs = st.dictionaries(
    texts,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2),
        max_leaves=5,
    ),
    max_size=3,
)
valid = st.one_of(
    st.builds(
        SEED,
        slot=texts,
        blueprint=texts,
        source=st.none() | texts,
        name=st.none() | texts,
        mode=st.sampled_from([None, "residual", "convex", "gated", "channelwise"]),
        isolated=st.booleans(),
        config=configs,
        id=ids,
    ),
    st.builds(
        BLEND,
        seed=texts,
        to=st.floats(0, 1) | st.sampled_from([0, 1]),
        steps=st.integers(1, 10**9),
        schedule=st.sampled_from(["linear", "cosine", "sigmoid"]),
        id=ids,
    ),
    *(st.builds(kind, seed=texts, id=ids) for kind in (CULL, FOSSILIZE, PAUSE, RESUME, FUSE)),
    st.builds(WIDEN, group=texts, by=st.integers(1, 10**6), init=st.sampled_from(["zero", "split"]), id=ids),
)


@st.composite
def near_misses(draw: st.DrawFn) -> dict[str, Any]:
    """A valid command with one thing about it changed; which may leave it valid."""
    message = commands.to_dict(draw(valid))
    key = draw(st.sampled_from(sorted(message)))
    match draw(st.sampled_from(["drop", "replace", "add", "retype"])):
        case "drop":
            del message[key]
        case "replace":
            message[key] = draw(json_values)
        case "add":
            message[draw(texts | st.sampled_from(["steps", "to", "seed", "slot", "wait"]))] = draw(
                json_values
            )
        case "retype":
            message["type"] = draw(st.sampled_from(sorted(TYPES)))
    return message


@dataclasses.dataclass
class Lab:
    """A host with one seed in TRAINING and one in HOLDING."""

    host: fxgraft.Host
    manager: SeedManager
    optimizer: torch.optim.Optimizer
    batch: torch.Tensor

    def look(self) -> dict[str, Any]:
        seeds = {
            s.name: (s.stage.name, s.alpha, s.ramp_step, s.paused, s.trained_steps)
            for s in self.manager.seeds.values()
        }
        return {**snapshot(self.host, self.batch, [self.optimizer]), "seeds": seeds}


@traced_once
def traced() -> fxgraft.Host:
    return fxgraft.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(3, 4),))


def make_lab() -> Lab:
    torch.manual_seed(0)
    batch = torch.randn(3, 4)
    host = traced()
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    manager = SeedManager(host, optimizer, check_every=0)
    manager.germinate("0", "low_rank", name="held")
    manager.blend("held", steps=1)
    manager.step()
    manager.germinate("1", "low_rank", name="young")
    return Lab(host, manager, optimizer, batch)


@pytest.fixture(scope="module")
def shared_lab() -> Lab:
    """For messages that change nothing."""
    return make_lab()


@pytest.fixture
def lab() -> Lab:
    return make_lab()


def refusal(lab: Lab, message: Any) -> str:
    """The reason of a refusal; nothing has changed."""
    before = lab.look()
    reply = lab.manager.handle(message)
    assert reply.refused
    assert not reply
    assert_same_bits(lab.look(), before)
    json.dumps(reply.to_dict(), allow_nan=False)
    return reply.reason


# Round trip and schema


@given(valid)
def test_every_command_survives_json(command: Command):
    text = json.dumps(commands.to_dict(command), allow_nan=False)
    assert commands.parse(text) == command
    assert commands.parse(text.encode()) == command
    assert commands.parse(json.loads(text)) == command
    assert commands.parse(command) == command


def test_the_schema_is_one_and_is_json():
    jsonschema.Draft202012Validator.check_schema(commands.schema())
    assert json.loads(json.dumps(commands.schema())) == commands.schema()


@given(valid)
def test_every_command_satisfies_the_schema(command: Command):
    VALIDATOR.validate(commands.to_dict(command))


def parses(message: Any) -> bool:
    try:
        commands.parse(message)
    except CommandError:
        return False
    return True


@given(near_misses())
@example({"type": "BLEND", "seed": "a", "steps": True})
@example({"type": "BLEND", "seed": "a", "to": True})
@example({"type": "BLEND", "seed": "a", "to": -0.0})
@example({"type": "SEED", "slot": "a", "blueprint": "b", "mode": None})
def test_schema_and_parser_agree(message: dict[str, Any]):
    try:
        text = json.dumps(message, allow_nan=False)
    except ValueError:
        return  # NaN and inf are not JSON, and below
    plain = json.loads(text)
    assert VALIDATOR.is_valid(plain) == parses(plain) == parses(text)


def test_schema_and_parser_agree_on_whole_numbers_written_as_fractions():
    message = {"type": "BLEND", "seed": "a", "steps": 2.0}  # an integer, for a JSON schema
    assert VALIDATOR.is_valid(message) == parses(message)


# Garbage


@given(json_values | near_misses())
def test_garbage_gets_a_refusal_and_changes_nothing(shared_lab: Lab, value: Any):
    manager = shared_lab.manager
    before = {name: (s.stage, s.alpha) for name, s in manager.seeds.items()}
    # No near miss names a seed or slot that is there, so none of them can be carried out.
    for message in (value, json.dumps(value), json.dumps(value).encode()):
        reply = manager.handle(message)
        assert reply.refused
        assert reply.reason
    assert {name: (s.stage, s.alpha) for name, s in manager.seeds.items()} == before


@given(st.text() | st.binary())
def test_text_that_is_no_json_is_refused(shared_lab: Lab, text: str | bytes):
    assert shared_lab.manager.handle(text).refused


def test_a_storm_of_garbage_leaves_every_bit(shared_lab: Lab):
    messages: list[Any] = [
        *(
            "",
            "{",
            "null",
            "[]",
            '"SEED"',
            "{}",
            '{"type": null}',
            '{"type": ["SEED"]}',
            b"\xff\xfe",
            "\ufeff{}",
        ),
        *(None, 3, [], {}, object(), {"type": {}}, {1: 2}, {"type": "CULL", 1: 2}),
        *(
            {"type": "seed", "slot": "0", "blueprint": "mlp"},
            {"type": "CULL"},
            {"type": "CULL", "seed": None},
        ),
        *({"type": "CULL", "seed": "held", "wait": False}, {"type": "GROW", "seed": "held"}),
        *(
            {"type": "SEED", "slot": "nowhere", "blueprint": "mlp"},
            {"type": "SEED", "slot": "0", "blueprint": "?"},
        ),
        *({"type": "SEED", "slot": "0", "blueprint": "mlp", "name": "held"},),
        *({"type": "SEED", "slot": "0", "blueprint": "mlp", "name": "no.name"},),
        *({"type": "SEED", "slot": "0", "blueprint": "mlp", "config": {"hidden": "wide"}},),
        *({"type": "SEED", "slot": "0", "blueprint": "mlp", "config": {"hidden": -1}},),
        *({"type": "SEED", "slot": "0", "blueprint": "mlp", "config": {1: 2}},),
        *({"type": "SEED", "slot": "0", "blueprint": "mlp", "config": {"self": 2, "slot": 1}},),
        *({"type": "FOSSILIZE", "seed": "young"}, {"type": "CULL", "seed": "\ud800"}),
    ]
    before = shared_lab.look()
    for message in messages:
        assert shared_lab.manager.handle(message).refused, message
    assert_same_bits(shared_lab.look(), before)


# One kind of trouble each


@pytest.mark.parametrize("kind", ["", "seed", "Seed", "GERMINATE", 3, None, ["SEED"], {"SEED": 1}])
def test_an_unknown_type_names_the_known_ones(shared_lab: Lab, kind: Any):
    reason = refusal(shared_lab, {"type": kind, "seed": "held"})
    assert all(name in reason for name in TYPES)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1e-9, 1.1, 10**30])
def test_a_target_that_is_no_share_is_refused(shared_lab: Lab, number: float):
    message = {"type": "BLEND", "seed": "held", "to": number}
    assert ("BLEND.to" if math.isfinite(number) else "JSON") in refusal(shared_lab, message)
    refusal(shared_lab, json.dumps(message))


def test_what_only_python_takes_for_json_is_refused(shared_lab: Lab):
    message = {"type": "SEED", "slot": "0", "blueprint": "low_rank", "config": {"rank": math.nan}}
    assert "JSON" in refusal(shared_lab, message)
    assert "JSON" in refusal(shared_lab, {**message, "config": {"rank": nn.ReLU()}})
    config = {"type": "SEED", "slot": "0", "blueprint": "low_rank", "config": {"rank": 2, "x": 0}}
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        text = json.dumps(config).replace('"x": 0', f'"x": {number}')
        with pytest.raises(CommandError, match="JSON"):
            commands.parse(text)
        refusal(shared_lab, text)


@pytest.mark.parametrize("steps", [-1, 10**9 + 1, 10**18, 10**4000, True, "1", None, 1.5, math.nan])
def test_steps_that_are_no_reasonable_number_are_refused(shared_lab: Lab, steps: Any):
    message = {"type": "BLEND", "seed": "held", "steps": steps}
    assert ("JSON" if steps is not None and steps != steps else "BLEND.steps") in refusal(shared_lab, message)
    refusal(shared_lab, json.dumps(message))


def test_an_integer_too_long_to_print_is_refused(shared_lab: Lab):
    refusal(shared_lab, '{"type": "BLEND", "seed": "held", "steps": 1' + "0" * 5000 + "}")
    refusal(shared_lab, {"type": "BLEND", "seed": "held", "steps": 10**5000})
    refusal(shared_lab, {"type": 10**5000})


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [10, 500, 900, 960, 990, 2_000, 30_000])
def test_deep_nesting_is_refused(shared_lab: Lab, depth: int):
    brackets = "[" * depth + "]" * depth
    for text in (
        brackets,
        f'{{"type": {brackets}}}',
        f'{{"type": "CULL", "seed": {brackets}}}',
        f'{{"type": "SEED", "slot": "?", "blueprint": "mlp", "config": {{"x": {brackets}}}}}',
    ):
        refusal(shared_lab, text)


@pytest.mark.parametrize("depth", [900, 30_000])
def test_deep_nesting_in_a_dictionary_is_refused(shared_lab: Lab, depth: int):
    for message in ({"type": nested(depth)}, {"type": "CULL", "seed": nested(depth)}):
        refusal(shared_lab, message)


def test_an_oversized_message_is_refused_unread(shared_lab: Lab):
    padding = " " * commands.MAX_BYTES
    text = json.dumps({"type": "CULL", "seed": "held"}) + padding
    for message in (text, text.encode()):
        assert str(commands.MAX_BYTES) in refusal(shared_lab, message)
    message = {"type": "CULL", "seed": "é" * (commands.MAX_BYTES - 100)}
    for form in (message, json.dumps(message, ensure_ascii=False)):
        assert str(commands.MAX_BYTES) in refusal(shared_lab, form)


def test_the_largest_message_is_read(shared_lab: Lab):
    head = '{"type": "CULL", "seed": "nobody"}'
    text = head + " " * (commands.MAX_BYTES - len(head))
    assert "nobody" in refusal(shared_lab, text)


def test_duplicate_keys_are_refused(lab: Lab):
    assert "seed" in refusal(lab, '{"type": "CULL", "seed": "held", "seed": "young"}')
    refusal(lab, '{"type": "CULL", "type": "PAUSE", "seed": "held"}')
    refusal(
        lab,
        '{"type": "SEED", "slot": "0", "blueprint": "low_rank", "config": {"rank": 1, "rank": 2}}',
    )


@pytest.mark.parametrize(
    "key", ["slot_name", "blueprint", "source", "name", "mode", "objective", "isolated", "wait"]
)
def test_a_configuration_cannot_reach_the_arguments_of_germinate(shared_lab: Lab, key: str):
    message = {"type": "SEED", "slot": "0", "blueprint": "low_rank", "config": {key: False}}
    assert key in refusal(shared_lab, message)


def test_a_source_of_code_is_never_run(shared_lab: Lab):
    for blueprint in ("os.system", "__import__('os')", "builtins.eval", "torch.nn.Linear"):
        assert blueprint in refusal(shared_lab, {"type": "SEED", "slot": "0", "blueprint": blueprint})


# Repeated ids


def test_an_id_is_carried_out_once(lab: Lab):
    message = {"type": "SEED", "slot": "0", "blueprint": "low_rank", "id": "7"}
    first = lab.manager.handle(message)
    assert first.accepted
    assert (first.id, first.command) == ("7", "SEED")
    seeds = list(lab.manager.seeds)
    assert lab.manager.handle(json.dumps(message)) == first
    assert list(lab.manager.seeds) == seeds
    assert lab.manager.handle({**message, "id": "8"}).seed != first.seed


def test_a_refusal_is_repeated_as_well(lab: Lab):
    first = lab.manager.handle(FOSSILIZE(seed="young", id="a"))
    assert first.refused
    lab.manager.blend("young", steps=1)
    lab.manager.step()
    assert lab.manager.handle(FOSSILIZE(seed="young", id="a")) == first
    assert lab.manager.seeds["young"].stage is Stage.HOLDING
    assert lab.manager.handle(FOSSILIZE(seed="young", id="b")).accepted


def test_commands_without_an_id_are_carried_out_each_time(lab: Lab):
    assert lab.manager.handle(PAUSE(seed="young")).accepted
    assert lab.manager.handle(PAUSE(seed="young")).accepted
    assert lab.manager.handle(CULL(seed="young")).accepted
    assert lab.manager.handle(CULL(seed="young")).refused


# What each command does


def test_a_whole_life_by_json_lines(lab: Lab):
    lines = """
        {"type": "SEED", "slot": "1", "blueprint": "low_rank", "name": "s", "config": {"rank": 1}}
        {"type": "PAUSE", "seed": "s"}
        {"type": "RESUME", "seed": "s"}

        {"type": "BLEND", "seed": "s", "to": 0.5, "steps": 1, "schedule": "linear"}
    """.splitlines()
    assert all(lab.manager.handle(line) for line in commands.read(lines))
    lab.manager.step()
    seed = lab.manager.seeds["s"]
    assert (seed.stage, seed.alpha) == (Stage.HOLDING, 0.5)
    assert lab.manager.handle('{"type": "FOSSILIZE", "seed": "s"}').accepted
    assert seed.stage is Stage.FOSSILIZED
    refused = lab.manager.handle('{"type": "CULL", "seed": "s"}')
    assert refused.seed == "s"
    assert "FOSSILIZED" in refused.reason


def test_a_paused_seed_stands_still(lab: Lab):
    lab.manager.handle(BLEND(seed="young", steps=4, schedule="linear"))
    lab.manager.step()
    lab.manager.handle(PAUSE(seed="young"))
    weights = [p.detach().clone() for p in lab.manager.registry.parameters("young")]
    for _ in range(2):
        lab.optimizer.zero_grad()
        lab.host(lab.batch).sum().backward()
        lab.optimizer.step()
        lab.manager.step()
    assert lab.manager.seeds["young"].alpha == 0.25
    assert_same_bits(list(lab.manager.registry.parameters("young")), [nn.Parameter(w) for w in weights])
    lab.manager.handle(RESUME(seed="young"))
    lab.manager.step()
    assert lab.manager.seeds["young"].alpha == 0.5


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(CommandError, match="got no JSON"):
        commands.parse('{"type": "CULL", "seed": "a\\ud800b"}')
    assert commands.parse('{"type": "CULL", "seed": "a\\ud83d\\ude00b"}').seed == "a\U0001f600b"
