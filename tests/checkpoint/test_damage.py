"""Whatever is wrong with a file: `CheckpointError`, and host and optimizers stay as they were."""

from __future__ import annotations

import copy
import json
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import fxgraft
from fxgraft import SeedManager
from fxgraft.checkpoint import file
from fxgraft.errors import CheckpointError
from tests.checkpoint.scenarios import SCENARIOS, Noisy
from tests.harness import assert_same_bits, snapshot

SCENARIO = SCENARIOS["two optimizers and schedulers"]
BATCH = torch.ones(3, 4)
BLUEPRINTS = {"Noisy": lambda slot: Noisy()}


class Target:
    """A fresh host with optimizers, and what can be seen of them."""

    def __init__(self) -> None:
        self.host, self.optimizers, self.schedulers = SCENARIO.parts()
        self.before = self.look()

    def look(self) -> dict[str, Any]:
        plain = {name: copy.deepcopy(s.state_dict()) for name, s in enumerate(self.schedulers)}
        seen = snapshot(self.host, BATCH, self.optimizers)
        return seen | {"plain": str(plain), "on_call": self.host._links.on_call is None}

    def load(self, path: Path, **options: Any) -> SeedManager:
        given = {"blueprints": BLUEPRINTS, "schedulers": self.schedulers} | options
        return SeedManager.load(path, self.host, given.pop("optimizer", self.optimizers), **given)

    def refuses(self, path: Path, **options: Any) -> str:
        before = self.look()
        with pytest.raises(CheckpointError) as caught:
            self.load(path, **options)
        assert_same_bits(self.look(), before, "what the failed load left")
        return str(caught.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / "run.ckpt"
    SCENARIO.saved(path)
    return path


@pytest.fixture(scope="module")
def target() -> Target:
    """One for all failing loads: none of them may leave a trace."""
    return Target()


def resigned(path: Path, change: Any, tensors: Any = lambda tensors: tensors) -> Path:
    """A copy with another manifest under a right checksum; ``change`` edits it in place."""
    with safe_open(path, framework="pt") as opened:
        header = dict(opened.metadata())
        loaded = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    loaded = tensors(loaded)
    manifest = json.loads(header["manifest"])
    manifest = change(manifest) or manifest
    if isinstance(manifest, dict) and isinstance(manifest.get("checksums"), dict):
        manifest["checksums"] = {name: file._checksum(t) for name, t in loaded.items()}
    header["manifest"] = json.dumps(manifest)
    header["sha256"] = file._digest(header["manifest"].encode())
    new = path.with_name("changed.ckpt")
    save_file(loaded, new, metadata=header)
    return new


def seed_record(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """The fields of a seed's record, to read and to set."""

    class Fields(dict):
        def __setitem__(self, key: str, value: Any) -> None:
            next(entry for entry in entries if entry[0] == key)[1] = value

    entries = next(s["$dict"] for s in manifest["seeds"] if ["name", name] in s["$dict"])
    return Fields(entries)


def test_the_file_itself_loads(saved: Path) -> None:
    fresh = Target()
    manager = fresh.load(resigned(saved, lambda manifest: None))
    assert list(manager.seeds) == ["c", "a", "b", "d", "Noisy"]


def test_truncated_anywhere(saved: Path, target: Target) -> None:
    content = saved.read_bytes()
    (header,) = struct.unpack("<Q", content[:8])
    data = 8 + header
    places = {0, 1, 7, 8, 9, 100, data - 1, data, data + 1, data + 999, len(content) - 1}
    cut = saved.with_name("cut.ckpt")
    for place in sorted(places):
        cut.write_bytes(content[:place])
        target.refuses(cut)
    cut.write_bytes(content + b"\0")
    target.refuses(cut)


@settings(max_examples=60)
@given(data=st.data())
def test_flipped_bytes(data: st.DataObject, saved: Path, target: Target) -> None:
    content = bytearray(saved.read_bytes())
    (header,) = struct.unpack("<Q", content[:8])
    near = st.integers(0, 8 + header - 1) | st.integers(0, len(content) - 1)
    place, flip = data.draw(near), data.draw(st.integers(1, 255))
    was = bytes(content[place : place + 1])
    content[place] ^= flip
    bad = saved.with_name("flipped.ckpt")
    bad.write_bytes(content)
    if was.isspace() and bytes(content[place : place + 1]).isspace():
        return  # another white space between the same values is no damage
    target.refuses(bad)


def test_another_dtype_or_shape_of_the_same_bytes(saved: Path, target: Target) -> None:
    content = saved.read_bytes()
    for old, new in ((b'"dtype":"F32"', b'"dtype":"I32"'), (b'"shape":[6,4]', b'"shape":[4,6]')):
        assert old in content
        bad = saved.with_name("form.ckpt")
        bad.write_bytes(content.replace(old, new, 1))
        assert "checksum" in target.refuses(bad)


def test_things_that_are_no_checkpoint(tmp_path: Path, target: Target) -> None:
    target.refuses(tmp_path / "missing")
    target.refuses(tmp_path)
    other = tmp_path / "other"
    torch.save({"a": torch.ones(2)}, other)
    target.refuses(other)
    save_file({"a": torch.ones(2)}, other)
    assert "manifest" in target.refuses(other)


@pytest.mark.parametrize(("key", "value"), [("format", "other"), ("version", "4"), ("sha256", "0")])
def test_another_format_or_version(key: str, value: str, saved: Path, target: Target) -> None:
    with safe_open(saved, framework="pt") as opened:
        header = dict(opened.metadata()) | {key: value}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    other = saved.with_name("other.ckpt")
    save_file(tensors, other, metadata=header)
    target.refuses(other)


def test_another_host(saved: Path) -> None:
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 6)), (BATCH,))
    with pytest.raises(CheckpointError, match="another host"):
        SeedManager.load(saved, host)
    assert not host.structure.placements


def test_a_host_that_has_seeds_already(saved: Path, tmp_path: Path) -> None:
    fresh = Target()
    SeedManager(fresh.host).germinate("relu", "mlp")
    with pytest.raises(CheckpointError, match="freshly traced"):
        fresh.load(saved)


def test_other_optimizers_and_schedulers(saved: Path, target: Target) -> None:
    host = target.host
    assert "optimizers" in target.refuses(saved, optimizer=None)
    assert "optimizers" in target.refuses(saved, optimizer=torch.optim.SGD(host.parameters(), 0.1))
    assert "schedulers" in target.refuses(saved, schedulers=())
    swapped = [torch.optim.SGD([p for p in host.parameters() if p.dim() != 2], 0.1, momentum=0.9)]
    swapped += [torch.optim.AdamW([p for p in host.parameters() if p.dim() == 2], 0.1)]
    assert "other parameters" in target.refuses(saved, optimizer=swapped)


def test_a_missing_blueprint_is_named(saved: Path, target: Target) -> None:
    assert "blueprints={'Noisy'" in target.refuses(saved, blueprints={})


def set_field(seed: str, field: str, value: Any) -> Any:
    return lambda manifest: seed_record(manifest, seed).__setitem__(field, value)


RECORDS = {
    "unknown blueprint": ("a", "blueprint", "os.system"),
    "blueprint of another type": ("a", "blueprint", ["low_rank"]),
    "unknown slot": ("a", "slot", "nowhere"),
    "name with a dot": ("a", "name", "a.b"),
    "name of an attribute": ("a", "name", "forward"),
    "name that is taken": ("a", "name", "b"),
    "unknown stage": ("a", "stage", "BORN"),
    "stage that is not saved": ("a", "stage", "GERMINATED"),
    "alpha above 1": ("a", "alpha", 1.5),
    "no alphas": ("a", "alphas", []),
    "too many alphas": ("a", "alphas", [0.0, 0.0]),
    "alphas of text": ("a", "alphas", ["x"]),
    "no ramp in mid-blend": ("c", "ramp", None),
    "attributes that are none": ("a", "plain", {"$dict": [["enter", 1]]}),
    "a spec of nothing": ("a", "spec", {"$dict": []}),
    "a config it has not": ("a", "config", {"$dict": [["ranks", 4]]}),
    "a giant module": ("a", "config", {"$dict": [["rank", 10**12]]}),
    "a module that only just fits memory": ("a", "config", {"$dict": [["rank", 10**8]]}),
    "a module beyond all numbers": ("a", "config", {"$dict": [["rank", 10**30]]}),
    "a module a little too large": ("a", "config", {"$dict": [["rank", 5]]}),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_seed_record_that_cannot_be(
    case: str, saved: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed, field, value = RECORDS[case]
    bad = resigned(saved, set_field(seed, field, value))
    with torch.device("meta"):  # torch notes at the first use which functions a default device is for
        real = torch.empty
        real(1)

    def small(*size: Any, **options: Any) -> Any:
        made = real(*size, **options)
        assert made.device.type == "meta" or made.numel() < 10**6, "the reader allocates what a file asks for"
        return made

    monkeypatch.setattr(torch, "empty", small)
    message = target.refuses(bad)
    assert "AssertionError" not in message


@pytest.mark.parametrize("part", ["cpu", "python", "numpy"])
def test_a_damaged_random_stream_leaves_all_streams(part: str, saved: Path, target: Target) -> None:
    def change(manifest: dict[str, Any]) -> None:
        next(e for e in manifest["random"]["$dict"] if e[0] == part)[1] = [1, 2, 3]

    target.refuses(resigned(saved, change))


def test_weights_of_another_dtype(saved: Path, target: Target) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: t.double() if n == "host.head.bias" else t for n, t in tensors.items()}

    assert "head.bias" in target.refuses(resigned(saved, lambda manifest: None, change))


JUNK = st.sampled_from(
    [None, True, -1, 10**30, 0.5, "", "x", [], {}, [[]], {"$tensor": "host.head.bias"}, {"$dict": []}, "NaN"]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON tree, but for the thousands of words of the random streams."""
    yield path
    if len(path) > 3 and path[0] == "random":
        return
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in entries:
        yield from places(inner, (*path, key))


@settings(max_examples=60)
@given(data=st.data())
def test_a_manifest_with_anything_anywhere(data: st.DataObject, saved: Path) -> None:
    """Either it is refused and nothing has changed, or it was possible, and host and seeds go on.

    (A hyperparameter of the right type is its optimizer's to judge, which it does at the next step.)
    """
    chosen: list[Any] = []

    def change(manifest: dict[str, Any]) -> Any:
        by_part = {key: list(places(part, (key,))) for key, part in manifest.items()}
        part = data.draw(st.sampled_from(sorted(by_part)))
        path = data.draw(st.sampled_from(by_part[part]))
        value = data.draw(JUNK)
        chosen.extend([path, value])
        inner = manifest
        for key in path[:-1]:
            inner = inner[key]
        if data.draw(st.integers(0, 4)) == 0:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value

    bad = resigned(saved, change)
    fresh = Target()
    try:
        manager = fresh.load(bad)
    except CheckpointError:
        assert_same_bits(fresh.look(), fresh.before, f"what the failed load left, {chosen}")
    else:
        fresh.host(BATCH).sum().backward()
        manager.step()


def test_no_pickle_is_written_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("pickle was used")

    fresh = Target()
    run = SCENARIO.begin()
    run.train(4, SCENARIO.act)
    for owner, names in ((pickle, ("dump", "dumps", "load", "loads", "Pickler", "Unpickler")),):
        for name in names:
            monkeypatch.setattr(owner, name, never)
    for name in ("save", "load"):
        monkeypatch.setattr(torch, name, never)
    run.manager.save(tmp_path / "x")
    fresh.load(tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    (header,) = struct.unpack("<Q", content[:8])
    json.loads(content[8 : 8 + header])
    assert b"\x80\x02" not in content[: 8 + header]


def test_a_compiler_that_fails_changes_nothing(tmp_path: Path) -> None:
    x, fails = torch.randn(4, 6), [False]

    def backend(graph: Any, example: Any, **options: Any) -> Any:
        if fails[0]:
            raise RuntimeError("out of memory in the compiler")
        return graph.forward

    def made() -> tuple[fxgraft.Host, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
        host = fxgraft.trace(model, (x,))
        return host, torch.optim.AdamW(host.parameters(), 1e-2)

    host, optimizer = made()
    manager = fxgraft.SeedManager(host, optimizer)
    manager.germinate("1", "mlp", hidden=4, name="a")
    host(x).sum().backward()
    optimizer.step()
    manager.step()
    manager.save(tmp_path / "run")
    expected = host(x)

    host, optimizer = made()
    host.compile(backend=backend)
    host(x).sum().backward()
    host.zero_grad()
    weights = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    stream = torch.get_rng_state()
    fails[0] = True
    with pytest.raises(CheckpointError, match="out of memory in the compiler"):
        fxgraft.SeedManager.load(tmp_path / "run", host, optimizer, helper="off")
    fails[0] = False
    assert host.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in host.state_dict().items())
    assert [len(group["params"]) for group in optimizer.param_groups] == [4]
    assert not optimizer.state
    assert torch.equal(stream, torch.get_rng_state())
    fxgraft.SeedManager.load(tmp_path / "run", host, optimizer, helper="off")
    torch.testing.assert_close(host(x), expected)
