"""Loads hostile checkpoints in a process that has little more memory than it needs. Started by a test."""

from __future__ import annotations

import json
import resource
import struct
import sys
from pathlib import Path

import torch
from torch import nn

import fxgraft
from fxgraft.checkpoint import file
from fxgraft.errors import CheckpointError

ROOM = 256 * 1024**2
MODEL = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def world() -> tuple[fxgraft.Host, torch.optim.Optimizer]:
    torch.manual_seed(0)
    host = fxgraft.trace(MODEL, (torch.zeros(2, 6),))
    return host, torch.optim.AdamW(host.parameters(), 1e-2)


def with_manifest(good: Path, path: Path, change) -> Path:  # type: ignore[no-untyped-def]
    manifest, tensors = file.read(good)
    change(manifest)
    manifest.pop("checksums")
    file.write(path, manifest, tensors)
    return path


def with_header(path: Path, header: object, claims: int | None = None) -> Path:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(struct.pack("<Q", len(text) if claims is None else claims) + text + b"\0" * 64)
    return path


def huge_config(manifest: dict) -> None:  # type: ignore[type-arg]
    manifest["seeds"][0]["$dict"] = [
        [key, {"$dict": [["hidden", 10**12]]} if key == "config" else value]
        for key, value in manifest["seeds"][0]["$dict"]
    ]


def many_seeds(manifest: dict) -> None:  # type: ignore[type-arg]
    manifest["seeds"] = manifest["seeds"] * 10_000


def deep(manifest: dict) -> None:  # type: ignore[type-arg]
    inner: object = 1
    for _ in range(200):
        inner = {"$dict": [["a", inner]]}
    manifest["run"] = inner


def main(folder: Path) -> None:
    good = folder / "good"
    manager = fxgraft.SeedManager(*world())
    manager.germinate("1", "mlp", name="a", hidden=4)
    manager.save(good)
    tensor = {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}
    files = {
        "a tensor of 10^12 elements": with_header(folder / "t", {"x": tensor}),
        "a header of 10^18 bytes": with_header(folder / "h", {}, claims=10**18),
        "a header of 10^9 bytes": with_header(folder / "g", {}, claims=10**9),
        "a header that nests": with_header(folder / "n", b"[" * 10**6),
        "a seed of 10^12 hidden units": with_manifest(good, folder / "c", huge_config),
        "10,000 seeds": with_manifest(good, folder / "m", many_seeds),
        "deep nesting": with_manifest(good, folder / "d", deep),
    }
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    for what, path in files.items():
        host, optimizer = world()
        code = host.regions[""].code
        try:
            fxgraft.SeedManager.load(path, host, optimizer)
        except CheckpointError as error:
            assert host.regions[""].code == code
            print(f"refused {what}: {str(error)[:100]}")
        else:
            raise AssertionError(f"{what} was loaded")
    fxgraft.SeedManager.load(good, *world())
    print("loaded the good one")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
