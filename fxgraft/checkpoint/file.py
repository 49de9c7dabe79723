"""One file: safetensors for the tensors, with a JSON manifest in its header. Atomic and checked.

A reader sees the old file or the new one, never a part: it is written beside its place, flushed to
the disk and renamed. The manifest holds a SHA-256 of every tensor, and its own.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import platform
import secrets
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fxgraft.checkpoint._sparse import put_together, take_apart
from fxgraft.errors import CheckpointError
from fxgraft.util.bits import bits

FORMAT = "fxgraft"
VERSION = 3
READABLE = ("1", "2", "3")
"""The versions that can be read. In version 1 seeds at one slot stood in the order of their names; up to
version 2 the words of Python's and numpy's random streams were lists."""

DAMAGED = "Load another checkpoint: this file is not as fxgraft wrote it"
"""What to do about a file that contradicts itself."""

_ours: set[str] = set()
"""The folders beside files that this process is writing. In a container another one had the same number."""


def write(path: str | os.PathLike[str], manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint to ``path``, replacing what is there only when the new one is complete.

    Raises:
        CheckpointError: if it cannot be written; what was at ``path`` is still there.
    """
    try:
        target = Path(os.path.realpath(os.fsdecode(path)))  # a link stays a link
        str(target).encode()  # safetensors reads no other
        is_other = target.exists() and not target.is_file()
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path!r}: expected the path of a file; {error}") from error
    if is_other:  # a device or a pipe would be replaced
        raise CheckpointError(
            f"{target}: expected the path of a file; there is something else, no plain file"
        )
    folder = _scratch(target)
    scratch = folder / "file"
    try:
        _sweep(target)
        folder.mkdir()
        dense, sparse = take_apart(tensors)
        plain = _own_memory(dense)
        sums = {name: _checksum(tensor) for name, tensor in plain.items()}
        text = json.dumps({**manifest, "checksums": sums, "sparse": sparse}, allow_nan=False)
        header = {
            "format": FORMAT,
            "version": str(VERSION),
            "manifest": text,
            "sha256": _digest(text.encode()),
        }
        save_file(plain, scratch, metadata=header)
        # safetensors makes a file that only its owner can read: give it the mode of a new folder here.
        scratch.chmod(folder.stat().st_mode & 0o666)
        _flush(scratch)
        scratch.replace(target)
    except Exception as error:  # the disk's, the format's (a dtype it has not), JSON's
        raise CheckpointError(
            f"{target}: could not be written: {type(error).__name__}: {error}. A file that was there is as "
            f"before; see the cause (space, permission, dtype), and save again"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _ours.discard(folder.name)
    with contextlib.suppress(OSError):  # the new file is there; some file systems flush no folders
        _flush(target.parent)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest and the tensors of a checkpoint, every checksum verified.

    Raises:
        CheckpointError: if it is missing, damaged, or of another format or version.
    """
    try:
        path = os.fsdecode(path)
        if Path(path).exists() and not Path(path).is_file():  # to open a pipe would wait for its writer
            raise CheckpointError(f"{path}: expected a checkpoint of fxgraft; it is no plain file")
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            manifest = _manifest(path, header)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: expected a checkpoint of fxgraft; there is no such file") from error
    except Exception as error:  # a damaged header fails in many ways
        is_of_torch = zipfile.is_zipfile(path)
        what = (
            "this is a file of torch.save" if is_of_torch else f"it is cut off, damaged or no such: {error}"
        )
        raise CheckpointError(f"{path}: expected a checkpoint of fxgraft; {what}") from error
    sums = manifest.get("checksums")
    if not isinstance(sums, dict) or sums.keys() != tensors.keys():
        raise CheckpointError(f"{path}: is damaged: its tensors are not those of its manifest. {DAMAGED}")
    for name, tensor in tensors.items():
        if _checksum(tensor) != sums[name]:
            raise CheckpointError(f"{path}: is damaged: the checksum of {name} does not match. {DAMAGED}")
    try:
        return manifest, put_together(tensors, manifest.get("sparse", {}))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: is damaged: a sparse tensor has other parts: {error}. {DAMAGED}"
        ) from error


def _manifest(path: str | os.PathLike[str], header: dict[str, str]) -> dict[str, Any]:
    if header.get("format") != FORMAT or "manifest" not in header:
        raise CheckpointError(f"{path}: expected a checkpoint of fxgraft; it has no manifest")
    if header.get("version") not in READABLE:
        raise CheckpointError(
            f"{path}: expected version {VERSION} of the format or an earlier one; got {header.get('version')}"
        )
    text = header["manifest"]
    if _digest(text.encode()) != header.get("sha256"):
        raise CheckpointError(f"{path}: is damaged: the checksum of its manifest does not match. {DAMAGED}")
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its manifest is no JSON: {error}. {DAMAGED}") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(
            f"{path}: its manifest is a {type(manifest).__name__}, not an object. {DAMAGED}"
        )
    return manifest


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor contiguous and in memory of its own, as the format asks for it: tied ones are copied."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        if memory in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(memory)
        plain[name] = tensor
    return plain


def _checksum(tensor: Tensor) -> str:
    """Of form and bytes: the same bytes are other numbers in another dtype or shape."""
    form = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return _digest(form, bits(tensor).view(torch.uint8).numpy().data if tensor.numel() else b"")


def _digest(*parts: bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _scratch(target: Path) -> Path:
    """A folder beside ``target`` that no other writer uses: not another process, nor another thread.

    A folder, because safetensors writes to a file with a name of its own beside the one it was given.
    """
    folder = target.parent / f"{_prefix(target)}{os.getpid()}.{secrets.token_hex(8)}.part"
    _ours.add(folder.name)
    return folder


def _prefix(target: Path) -> str:
    # Not the name itself: it may be as long as a name can be.
    return f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}.{platform.node()}."


def _sweep(target: Path) -> None:
    """Remove what writers of ``target`` on this machine left that were killed."""
    for stray in target.parent.glob(f"{glob.escape(_prefix(target))}*.part"):
        writer = stray.name.split(".")[-3]
        if writer.isdecimal() and not _writes(int(writer), stray.name):
            shutil.rmtree(stray, ignore_errors=True)


def _writes(process: int, name: str) -> bool:
    """Whether the process that made the folder of that name may be at work on it."""
    if process == os.getpid():
        return name in _ours
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
