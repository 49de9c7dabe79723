"""What a process holds: the numbers that would grow if something were left behind."""

from __future__ import annotations

import gc
import linecache
import resource
import sys
from pathlib import Path

import torch
import torch.fx.graph_module

_PAGES = Path("/proc/self/statm")


def footprint() -> dict[str, float]:
    """Memory in MiB, and counts of what could leak; garbage is collected first.

    ``rss_mib`` is what the operating system has given out, allocator and all; the counts are exact.
    """
    gc.collect()
    return {
        "rss_mib": round(_resident() / 2**20, 2),
        "objects": len(gc.get_objects()),
        "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()),
        "linecache_entries": len(linecache.cache),
        "fx_loader_entries": len(torch.fx.graph_module._loader.eval_cache),
    }


def growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """``after - before``, entry by entry."""
    return {name: round(after[name] - before[name], 2) for name in before}


def _resident() -> int:
    if _PAGES.exists():
        return int(_PAGES.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # where there is no better: the peak
    return peak if sys.platform == "darwin" else peak * 1024
