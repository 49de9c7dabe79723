"""The machine and the versions that a result came from; every benchmark stores them with its numbers."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "scikit-learn", "networkx", "transformers", "peft", "triton")


def describe() -> dict[str, Any]:
    """What has to be known to compare a number with another; JSON types only, no names or paths."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "memory_gib": _memory_gib(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": _versions(),
    }


def as_markdown(environment: dict[str, Any]) -> str:
    """One line of `describe`'s record, for the head of a table."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    memory = f", {environment['memory_gib']} GiB" if environment["memory_gib"] else ""
    load = f", load {environment['load']:g}" if environment.get("load") is not None else ""
    return (
        f"{environment['date']}, commit {environment['commit']}; {environment['cores']} cores of "
        f"{environment['cpu']}{memory}{load}; {environment['gpu'] or 'no GPU'}; "
        f"{environment['torch_threads']} thread(s); Python {environment['python']}, {versions}"
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # not needed by this benchmark
    return found


def _commit() -> str:
    """The commit, marked where the library differs from it; "unknown" outside of a checkout."""
    root = Path(__file__).parent.parent

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "fxgraft", "passes")
        return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
