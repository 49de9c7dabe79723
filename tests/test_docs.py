"""The documentation is true: its code runs, its tables are the code's, and what it names exists."""

from __future__ import annotations

import ast
import functools
import gc
import importlib
import inspect
import re
import sys
import types
from pathlib import Path

import pytest

import fxgraft
from fxgraft import blueprints
from fxgraft.blueprints import registry
from fxgraft.telemetry import METRICS
from tests.sources import parsed
from tests.test_public_api import MODULES, public

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
IN_ITS_OWN_PROCESS = "ddp.md"
"""This page is a program that is started by itself: tests/distributed/test_guide.py does."""
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code_of(page: Path) -> str:
    """The page's code blocks as one program, each line where it stands in the page."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * text.count("\n")
    for block in BLOCK.finditer(text):
        first = text[: block.start(1)].count("\n")
        body = block[1].splitlines()
        lines[first : first + len(body)] = body
    return "\n".join(lines)


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading of a page in docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    section = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.MULTILINE)[1]
    found = re.search(r"(?:^\|.*\|$\n?)+", section, re.MULTILINE)
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in found[0].strip().splitlines()]
    return [[cell.strip() for cell in row] for row in rows[2:]]


@pytest.fixture
def table_of_blueprints(monkeypatch):
    """Registrations that end with the test."""
    monkeypatch.setattr(registry, "_blueprints", dict(registry._blueprints))


RUN_HERE = [p for p in PAGES if BLOCK.search(p.read_text()) and p.name != IN_ITS_OWN_PROCESS]


@pytest.mark.usefixtures("table_of_blueprints")
@pytest.mark.parametrize("page", RUN_HERE, ids=lambda p: p.name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, fresh_compiler):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FXGRAFT_DYNAMIC_SEEDS", "1")  # and set back, where a page that changes it fails
    module = types.ModuleType("page")  # a module to import: compilers look there for what a class needs
    monkeypatch.setitem(sys.modules, "page", module)
    scope = module.__dict__
    exec(compile(code_of(page), str(page), "exec"), scope)
    assert isinstance(scope["host"], fxgraft.Host)
    scope.clear()
    gc.collect()


def test_pages_with_code_are_found():
    assert {"README.md", "concepts.md", "runbook.md", "telemetry.md"} <= {
        page.name for page in PAGES if code_of(page).strip()
    }


# The tables


def test_every_metric_is_documented_as_it_is():
    rows = {
        row[0].strip("`"): (row[1], row[2], row[5].strip("`")) for row in table("telemetry.md", "Metrics")
    }
    assert rows == {name: (metric.unit, metric.meaning, metric.alias) for name, metric in METRICS.items()}


def test_metrics_of_a_seed_and_of_the_whole_are_told_apart():
    rows = {row[0].strip("`"): row[3] for row in table("telemetry.md", "Metrics")}
    assert rows == {name: "seed" if metric.per_seed else "run" for name, metric in METRICS.items()}


@functools.cache
def emitted() -> dict[str, set[str]]:
    """Event kind -> the fields that the library's source gives it."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "fxgraft").rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("emit", "Event"):
                fields = {keyword.arg for keyword in node.keywords if keyword.arg}
                found.setdefault(node.args[0].value, set()).update(fields)
    return found


def documented() -> dict[str, set[str]]:
    return {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in table("telemetry.md", "Events")}


def test_every_event_is_documented():
    assert documented().keys() == emitted().keys()


def test_every_field_of_an_event_is_documented():
    missing = {kind: fields - documented()[kind] for kind, fields in emitted().items()}
    assert {kind: fields for kind, fields in missing.items() if fields} == {}


def test_the_stages_of_the_concepts_page_are_the_stages():
    stages = [row[0].split()[0] for row in table("concepts.md", "Seed, and its stages")]
    assert stages == [stage.name for stage in fxgraft.Stage]


def test_the_settings_of_the_runbook_are_those_of_the_manager():
    parameters = inspect.signature(fxgraft.SeedManager).parameters
    rows = {row[0].strip("`"): row[1].strip("`") for row in table("runbook.md", "Settings")}
    assert rows
    for name, default in rows.items():
        assert name in parameters
        assert repr(parameters[name].default) == default, name


def test_the_blueprints_are_those_that_are_registered():
    rows = {row[0].strip("`"): row[1:] for row in table("blueprints.md", "Registered")}
    assert sorted(rows) == blueprints.names()
    for name, (takes, _, options, source) in rows.items():
        blueprint = blueprints.get(name)
        assert (() if takes == "see below" else tuple(takes.split(", "))) == blueprint.accepts, name
        given = ["slot", *re.findall(r"`(\w+)`", options)]
        assert given == list(inspect.signature(blueprint.factory).parameters), name
        assert source == (blueprint.source or "none"), name


# The reference


def references() -> set[str]:
    pages = (ROOT / "docs" / "reference").glob("*.md")
    return {name for page in pages for name in re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.M)}


@pytest.mark.parametrize("module", MODULES)
def test_the_reference_has_every_public_name(module):
    names = {f"{module}.{name}" for name in public(importlib.import_module(module))}
    modules = {f"fxgraft.{name}" for name in ("averaging", "blueprints", "commands", "errors")}
    lacking = names - modules - references()
    assert not lacking, f"docs/reference lacks {sorted(lacking)}: add '::: name' to the page of {module}"


def test_the_reference_names_only_what_is_public():
    known = {f"{module}.{name}" for module in MODULES for name in public(importlib.import_module(module))}
    assert references() - known == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_page_begins_with_what_its_reader_can_do_after_it(page):
    """Of all but the front pages."""
    if page.name in ("README.md", "index.md"):
        return
    text = page.read_text(encoding="utf-8")
    if included := re.match(r'--8<-- "(.+)"', text):  # the page is the text of that file
        text = (ROOT / included[1]).read_text(encoding="utf-8")
    assert re.match(r"# .+\n\nAfter this page you (can|know|have) ", text)


# What docs/architecture.md and docs/wp101.md name

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def defined(path: Path) -> set[str]:
    """The functions and classes of a file, and ``Class.method``."""
    found = set()
    for node in parsed(path).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)
            }
    return found


def test_the_architecture_page_names_only_what_exists():
    named = re.findall(r"`((?:fxgraft|passes)/[\w./]+\.py)(?:::(\w+))?`(?: \(`(\w+)`)?", ARCHITECTURE)
    assert len(named) > 20
    for path, name, member in named:
        known = defined(ROOT / path)
        if name:
            assert (f"{name}.{member}" if member else name) in known, f"{path}::{name} {member}"


PACKAGES = [
    init.parent
    for folder in ("fxgraft", "passes")
    for init in sorted((ROOT / folder).rglob("__init__.py"))
    if init.parent != ROOT / "fxgraft"
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.relative_to(ROOT).as_posix())
def test_a_package_lists_its_files(package):
    """A reader who opens a package sees what each file is for."""
    told = ast.get_docstring(parsed(package / "__init__.py"))
    files = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    inner = {path.parent.name for path in package.glob("*/__init__.py")}
    assert {name for name in files | inner if f"`{name}`" not in told} == set()
    rows = re.findall(r"^`(\w+)`  ", told, re.MULTILINE)
    assert set(rows) <= files | inner, "a file that is gone"
    assert len(rows) == len(set(rows)), "a file that is listed twice"


DEFINED_TWICE = {
    "GrowCallback": "one for each trainer: their users import it from fxgraft.integrations.<trainer>",
}
"""The only names of classes that two files may have, and why."""


def test_a_class_name_is_defined_once():
    """A reader who meets the name of a class finds one class of that name."""
    places: dict[str, list[str]] = {}
    for path in (file for folder in ("fxgraft", "passes") for file in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    twice = {name: paths for name, paths in places.items() if len(paths) > 1}
    assert {name: paths for name, paths in twice.items() if name not in DEFINED_TWICE} == {}
    assert twice.keys() == DEFINED_TWICE.keys(), "an exception that is not needed any more"


def test_a_network_of_the_tests_has_a_name_that_says_what_it_is():
    """What several tests train is defined once, in tests/networks.py; others say what is special."""
    unnamed = [
        f"{path.relative_to(ROOT).as_posix()}:{number}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.match(r"\s*class (Net|Block)\b", line)
    ]
    assert unnamed == []


def imported(path: Path) -> set[str]:
    """The dotted names that a file imports, and those of what it imports from them."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def defines_public_names() -> set[str]:
    """The files in which public names are defined, and those that are public themselves."""
    found = set(MODULES)
    for name in MODULES:
        module = importlib.import_module(name)
        found |= {getattr(getattr(module, member), "__module__", name) for member in public(module)}
    return found


OF_TWO = {
    "fxgraft_passes._torch": "one half of fxgraft._torch, which shows it and which passes may not import"
}
"""The only private file that another package imports, and why."""


def test_a_file_is_private_if_and_only_if_it_serves_its_own_package_alone():
    """``_name.py`` is imported from inside its package only; any other file is needed outside, or public."""
    sources = {
        ".".join(path.relative_to(ROOT / base).with_suffix("").parts).removesuffix(".__init__"): path
        for folder, base in (("fxgraft", "."), ("passes/fxgraft_passes", "passes"))
        for path in (ROOT / folder).rglob("*.py")
    }
    imports = {name: imported(path) for name, path in sources.items()}
    for folder in ("benchmarks", "examples"):
        imports |= {path.as_posix(): imported(path) for path in (ROOT / folder).rglob("*.py")}
    public = defines_public_names()
    wrong = set()
    for name, path in sources.items():
        package, _, last = name.rpartition(".")
        if path.stem in ("__init__", "__main__") or name in OF_TWO:
            continue
        outside = any(
            name in of for other, of in imports.items() if not f"{other}.".startswith(f"{package}.")
        )
        if last.startswith("_") == (outside or name in public):
            wrong.add(path.relative_to(ROOT).as_posix())
    assert wrong == set()


EVERYWHERE = {"telemetry", "commands", "gates"}
"""Of the group "interface": what the packages that grow a host may import as well."""


def test_packages_import_what_the_architecture_page_says():
    rows = re.findall(r"^\| [\w ]+ \| (`.*?) \| .*? \|$", ARCHITECTURE, re.MULTILINE)
    groups = [re.findall(r"`(\w+)`", row) for row in rows]
    rank = {name: number for number, names in enumerate(groups) for name in names}
    parts = {path.stem for path in (ROOT / "fxgraft").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(rank) == parts - {"__init__", "__main__", "__pycache__", "py"}
    wrong = set()
    for path in (ROOT / "fxgraft").rglob("*.py"):
        own = path.relative_to(ROOT / "fxgraft").parts[0].removesuffix(".py")
        for node in parsed(path).body:  # not below: TYPE_CHECKING, functions
            if isinstance(node, ast.ImportFrom) and own in rank:
                other = (node.module or "").removeprefix("fxgraft.").split(".")[0]
                if rank.get(other, 0) > rank[own] and other not in EVERYWHERE:
                    wrong.add((own, other))
    assert wrong == set()


def test_a_package_says_its_group_and_what_it_may_import():
    """A reader of any file learns it one folder listing away, not from this page."""
    rows = re.findall(r"^\| ([\w ]+) \| (`.*?) \| (.*?) \|$", ARCHITECTURE, re.MULTILINE)
    told = set()
    for group, names, may in rows:
        line = f"Group: {group}. May import: {may.split(';')[0].replace('`', '')}."
        for package in PACKAGES:
            if f"`{package.name}`" in names and package.parent == ROOT / "fxgraft":
                docstring = ast.get_docstring(parsed(package / "__init__.py"))
                assert line in docstring.splitlines(), package.name
                told.add(package)
    assert told == {package for package in PACKAGES if package.parent == ROOT / "fxgraft"}


WP101 = (ROOT / "docs" / "wp101.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`([\w./-]+\.(?:py|md|json|toml))(?:::\w+)*`", WP101)))


def test_wp101_names_only_files_that_exist():
    assert PATHS
    assert [path for path in PATHS if not (ROOT / path).is_file()] == []


def test_wp101_names_only_tests_and_classes_that_exist():
    named = re.findall(r"`([\w./-]+\.py)((?:::\w+)+)`", WP101)
    assert named
    missing = []
    for path, parts in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        for name in parts.strip(":").split("::"):
            if not re.search(rf"^\s*(?:def|class) {name}\b|^{name}\b", source, re.MULTILINE):
                missing.append(f"{path}::{name}")
    assert missing == []


def test_wp101_maps_every_criterion_and_every_task():
    tasks = ["0.1.1", "0.1.2", "0.1.3", "0.2.1", "0.2.2", "0.2.3"]
    tasks += ["1.1.1", "1.1.2", "1.1.3", "1.2.1", "1.2.2", "1.2.3"]
    tasks += ["2.1.1", "2.1.2", "2.2.1", "2.2.2", "3.1", "3.2"]
    numbered = {row[0] for heading in _HEADINGS for row in table("wp101.md", heading)}
    assert {*tasks, *(f"A{i}" for i in range(1, 6))} <= numbered
    assert {f"4.{i}" for i in range(1, 6)} | {"5.1", "5.2"} <= numbered


_HEADINGS = ["Acceptance criteria", *(f"Phase {i}" for i in range(6))]


def test_the_glossary_has_each_word_once():
    words = [row[0] for row in table("glossary.md", "Glossary")]
    assert len(words) == len(set(words)) > 15
