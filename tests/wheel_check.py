"""Build the wheel and use it in a clean environment, away from the sources.

Run as ``python tests/wheel_check.py``. The environment sees the torch of this one (a second copy
would cost minutes) but not its editable install of fxgraft.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USE = """
import fxgraft, fxgraft_passes, torch
assert "site-packages" in fxgraft.__file__ and "clean" in fxgraft.__file__, fxgraft.__file__
x = torch.randn(4, 8)
host = fxgraft.trace(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()), (x,))
manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
seed = manager.germinate("1", "mlp")
host(x).sum().backward()
manager.cull(seed)
heavy = {"matplotlib", "rich", "sklearn", "transformers", "hypothesis"} & set(__import__("sys").modules)
assert not heavy, heavy
print("the wheel works:", fxgraft.__version__, "with torch", torch.__version__)
"""


def main() -> None:
    """Build, inspect, install, use. Exits with an error where one of these fails."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", scratch, str(ROOT))
        (wheel,) = out.glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
        assert tops == {"fxgraft", "fxgraft_passes"}, tops
        for package in tops:
            assert f"{package}/py.typed" in names, f"{package} is not typed"
        clean = out / "clean"
        venv.create(clean, with_pip=False)
        run(sys.executable, "-m", "pip", "--python", str(clean), "install", "-q", "--no-deps", str(wheel))
        borrow_dependencies(clean)
        run(str(clean / "bin" / "python"), "-c", USE, cwd=scratch)


def borrow_dependencies(clean: Path) -> None:
    """Put what this environment has installed, but no fxgraft, on the other's path."""
    site = Path(sysconfig.get_paths()["purelib"])
    target = clean / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for entry in site.iterdir():
        if "fxgraft" not in entry.name and entry.suffix != ".pth" and not (target / entry.name).exists():
            (target / entry.name).symlink_to(entry)


def run(*command: str, cwd: str | None = None) -> None:
    """Run a command; raise if it fails."""
    subprocess.run(command, check=True, cwd=cwd)


if __name__ == "__main__":
    main()
