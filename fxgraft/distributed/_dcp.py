"""A sharded run as a folder, written by ``torch.distributed.checkpoint`` in safetensors.

    path/
      current                     the name of the folder that counts
      <random>/
        run.fxgraft               structure, lifecycle, and what is whole on every rank: as `SeedManager.save`
        run.fxgraft.rank1, ...    the random streams of the other ranks
        shards/shard-….safetensors   each rank's part of what is sharded

DCP's usual format describes the shards in ``.metadata``, which is a pickle: reading it runs what is in it.
Here the shards are written by its `HuggingFaceStorageWriter`: their places are JSON in the headers of the
safetensors files, so nothing is unpickled.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, zeros

from fxgraft.checkpoint import file
from fxgraft.distributed._exchange import Exchange
from fxgraft.errors import CheckpointError
from fxgraft.util.tensors import local_tensor

CURRENT, RUN, SHARDS = "current", "run.fxgraft", "shards"


class Folder:
    """Writes and reads the folders of runs on the ranks of ``mesh``. Every rank makes every call.

    Args:
        mesh: of the host.
        group: the ranks of it.
        talk: for small messages between them.
    """

    def __init__(self, mesh: DeviceMesh, group: dist.ProcessGroup, talk: Exchange):
        self._mesh, self._group, self._talk = mesh, group, talk

    def save(self, path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
        """Make the checkpoint at ``path`` by ``write``, which is given a run file and uses `write`.

        Raises:
            CheckpointError: a rank could not write; the checkpoint before is still there.
        """
        run = Path(path) / str(self._talk.share(secrets.token_hex(4))) / RUN
        self._agree(path, run, lambda: run.parent.mkdir(parents=True, exist_ok=True))
        self._agree(path, run, lambda: write(run))
        if failed := self._talk.share(_point(Path(path), run.parent) if self._group.rank() == 0 else ""):
            raise CheckpointError(f"{path}: could not be written: {failed}. See the cause, and save again")

    def write(
        self, run: str | os.PathLike[str], manifest: dict[str, Any], tensors: dict[str, Tensor]
    ) -> None:
        """Write a checkpoint to the folder of ``run``; it does not count before the end of `save`."""
        where = Path(run).parent
        shards = {n: t for n, t in tensors.items() if _is_sharded(t)}
        whole = {n: local_tensor(t) for n, t in tensors.items() if n not in shards}
        described = {
            **manifest,
            "sharded": {n: [list(t.shape), str(t.dtype)] for n, t in shards.items()},
            "replicated": [n for n in whole if isinstance(tensors[n], DTensor)],
        }
        if shards:
            writer = HuggingFaceStorageWriter(str(where / SHARDS), save_distributed=True)
            save(dict(shards), storage_writer=writer, process_group=self._group)
        if self._group.rank() == 0:
            file.write(run, described, whole)

    def _agree(self, path: str | os.PathLike[str], run: Path, do: Callable[[], None]) -> None:
        """Raise on all ranks, and drop the new folder, where ``do`` fails on one."""
        failed = b""
        try:
            do()
        except Exception as error:
            failed = f"{type(error).__name__}: {error}".encode()
        said = self._talk.gather(failed)
        if any(said):
            if self._group.rank() == 0:
                shutil.rmtree(run.parent, ignore_errors=True)
            self._talk.share(None)  # it is gone when this raises, on every rank
            reasons = "; ".join(f"rank {rank}: {text.decode()}" for rank, text in enumerate(said) if text)
            raise CheckpointError(f"{path}: could not be written: {reasons}. See the cause, and save again")

    def find(self, path: str | os.PathLike[str]) -> Path:
        """The run file of the folder that counts. Raises `CheckpointError` if there is none."""
        try:
            name = (Path(path) / CURRENT).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: expected the folder of a sharded run; {error}. (A file of SeedManager.save on one "
                f"process is for a host that is not sharded)"
            ) from error
        if not re.fullmatch("[0-9a-f]{8}", name):
            raise CheckpointError(f"{path}: is damaged: {CURRENT} names no folder of it. {file.DAMAGED}")
        return Path(path) / name / RUN

    def read(self, where: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Manifest and tensors; what is sharded comes as DTensors on the mesh, of any number of ranks."""
        run = Path(where)
        manifest, tensors = file.read(run)
        for name in manifest.get("replicated", ()):
            tensors[name] = DTensor.from_local(tensors[name], self._mesh, [Replicate()], run_check=False)
        shards = self._described(manifest)
        if shards:
            reader = HuggingFaceStorageReader(str(run.parent / SHARDS))
            self._check(reader, manifest["sharded"])
            made: dict[str, Any] = {
                name: zeros(*shape, dtype=dtype, device_mesh=self._mesh, placements=[Shard(0)])
                for name, (shape, dtype) in shards.items()
            }
            load(made, storage_reader=reader, process_group=self._group)
            tensors.update(made)
        return manifest, tensors

    def _described(self, manifest: Mapping[str, Any]) -> dict[str, tuple[list[int], torch.dtype]]:
        found = {}
        for name, (shape, dtype) in manifest.get("sharded", {}).items():
            kind = getattr(torch, str(dtype).removeprefix("torch."), None)
            if not isinstance(kind, torch.dtype) or not all(type(n) is int and n >= 0 for n in shape):
                raise CheckpointError(f"{name}: {dtype} {shape} is no tensor. {file.DAMAGED}")
            found[name] = (shape, kind)
        return found

    def _check(self, reader: HuggingFaceStorageReader, described: Mapping[str, Any]) -> None:
        """The files hold what the manifest says, before memory is made for it."""
        found = reader.read_metadata().state_dict_metadata
        for name, (shape, dtype) in described.items():
            there = found.get(name)
            if not isinstance(there, TensorStorageMetadata):
                raise CheckpointError(f"the shards hold no {name}: a file of them is missing. {file.DAMAGED}")
            covered = sum(torch.Size(chunk.sizes).numel() for chunk in there.chunks)
            wanted = torch.Size(shape).numel()
            if list(there.size) != shape or str(there.properties.dtype) != dtype or covered != wanted:
                raise CheckpointError(
                    f"{name}: expected {dtype} {shape}; the shards hold {there.properties.dtype} "
                    f"{list(there.size)}, {covered} of {wanted} elements: a file is missing or another's"
                )


def _point(path: Path, folder: Path) -> str:
    """Point ``path`` to ``folder``, atomically; return what went wrong."""
    try:
        scratch = path / f".{folder.name}"
        scratch.write_text(folder.name, encoding="utf-8")
        scratch.replace(path / CURRENT)
    except OSError as error:
        return str(error)
    for other in path.iterdir():
        if other != folder and _is_ours(other):
            shutil.rmtree(other, ignore_errors=True)
    return ""


def _is_ours(folder: Path) -> bool:
    """Whether a folder is of an earlier save: by its name, as a date may be, and by all that is in it."""
    if not re.fullmatch("[0-9a-f]{8}", folder.name) or not folder.is_dir():
        return False
    names = [file.name for file in folder.iterdir()]
    return bool(names) and all(n == SHARDS or n.startswith(RUN) or n.endswith(".part") for n in names)


def _is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor) and any(p.is_shard() for p in tensor.placements)
