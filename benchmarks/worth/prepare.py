"""Makes the data ready, or says what is missing: ``python -m benchmarks.worth.prepare``.

``gpt`` needs sympy's sources, which are installed with torch. ``cnn`` needs Fashion-MNIST as Debian packs it
(``dataset-fashion-mnist``, 31 MB): it is taken from where that package installs it, or the package is
downloaded by ``apt-get`` and unpacked into ``runs/worth/data``, which needs no root. Elsewhere: put the four
``*-ubyte.gz`` files there.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path("runs/worth/data/fashion-mnist")
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
FILES = tuple(
    f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
)


class DataError(Exception):
    """Data that a workload needs is not there; the message says what to do."""


def sympy_folder() -> Path:
    """The folder of sympy's sources."""
    found = find_spec("sympy")
    if found is None or found.origin is None:
        raise DataError("gpt: sympy is not installed; it comes with torch: pip install sympy")
    return Path(found.origin).parent


def fashion_folder() -> Path:
    """The folder with Fashion-MNIST's four files."""
    for folder in (INSTALLED, FOLDER):
        if all((folder / name).exists() for name in FILES):
            return folder
    raise DataError(
        f"cnn: Fashion-MNIST is in neither {INSTALLED} nor {FOLDER}: run python -m benchmarks.worth.prepare, "
        f"or install {PACKAGE}, or put {', '.join(FILES)} into {FOLDER}"
    )


def download() -> None:
    """Take Debian's package apart into `FOLDER`."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise DataError(f"cnn: no apt-get and dpkg here: put {', '.join(FILES)} into {FOLDER}")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "download", "--quiet", PACKAGE], cwd=folder, check=True)
        (package,) = Path(folder).glob("*.deb")
        subprocess.run(["dpkg", "-x", str(package), folder], check=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy(Path(folder) / INSTALLED.relative_to("/") / name, FOLDER / name)


def main() -> None:
    """Make everything ready, and say where it is."""
    try:
        print(f"gpt: sympy's sources are in {sympy_folder()}")
        try:
            fashion_folder()
        except DataError:
            download()
        print(f"cnn: Fashion-MNIST is in {fashion_folder()}")
    except (DataError, subprocess.CalledProcessError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
