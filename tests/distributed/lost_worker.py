"""A rank that ends, or hangs, in the middle of training. Started by test_ddp.py."""

from __future__ import annotations

import os
import sys
import time

from fxgraft.errors import DistributedError
from tests.distributed.ranks import RANK, Run, group


def main(how: str) -> None:
    with group(timeout=5.0):
        run = Run()
        run.manager.germinate("1.relu", "mlp", name="a")
        run.train(2)
        if RANK == 1:
            if how == "hangs":
                time.sleep(8)
            os._exit(0)
        began = time.monotonic()
        try:
            run.train(3, same=False)
        except DistributedError as error:
            assert time.monotonic() - began < 30
            print("told:", str(error).replace("\n", " "), flush=True)
        os._exit(0)  # the group cannot be taken down in order


if __name__ == "__main__":
    main(sys.argv[1])
