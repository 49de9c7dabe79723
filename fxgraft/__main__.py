"""``python -m fxgraft``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from fxgraft.cli import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit("fxgraft: the command line needs typer: pip install 'fxgraft[cli]'")
    app(prog_name="fxgraft")


if __name__ == "__main__":
    main()
