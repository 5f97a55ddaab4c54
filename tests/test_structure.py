"""The shape of the code: which module may import which, and how long one may be.

Imports inside functions count as much as those at the top.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "edgeprofile"
CYTHON = sorted([*(ROOT / "ext").glob("*.p[yx]?"), *PACKAGE.glob("*.pxd")])
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
COMPILED = {f"_{path.stem}" for path in CYTHON if path.suffix == ".pyx"}
OURS = {*MODULES, *COMPILED}
LINES_MAX = 450

# What these may import of ours; every other module is free but for the rules below.
ALLOWED = {
    "errors": set[str](),
    "tables": {"errors"},
    "kinds": set[str](),
    "vendors": {"kinds", "tables"},
    "settings": {"errors", "kinds", "tables", "vendors"},
    "priority": set[str](),
    "snapshot": {"errors", "priority"},
    "record": {"errors"},
    "history": {"errors", "record"},
    "keyfile": {"errors"},
    "keys": {"errors", "keyfile"},
    "signing": {"errors", "keyfile"},
    "tls": {"errors", "settings"},
    "notify": set[str](),
    "life": {"_exchange"},
    "reload": {"errors", "settings"},
    "supervisor": {"life", "notify", "settings", "tls"},
    "limiter": set[str](),
    "logs": {"_limiter", "_log_lines", "metrics", "settings"},
    "dbt": {"errors", "kinds", "settings", "tables"},
    "starter": {"errors", "dbt"},
    "objectstore": {"errors"},
    "replicas": {"errors", "locks", "settings", "snapshot", "reader", "objectstore", "loader.following"},
    "metrics": {"settings"},
    "openapi.schemas": set[str](),
    "openapi.samples": {"errors", "limiter", "settings"},
    "openapi.document": {"api.dialect", "errors", "openapi.samples", "openapi.schemas"},
}
# A package of someone else's, and the only modules of ours that may import it.
OWNERS = {
    "adbc_driver_manager": {"loader.adbc"},
    "duckdb": {"loader.source"},
    "cryptography": {"signing", "tls"},
    "granian": {"server"},
    "joserfc": {"signing"},
    "lmdb": {"reader", "loader.live", "loader.overlay", "loader.writer"},
    "obstore": {"objectstore"},
    "starlette": {"app"} | {name for name in MODULES if name.startswith("api.")},
    "prometheus_client": {"exposition", "api.admin"},
    "rich": {"status"},
}
# The servers' side, of which the loader knows nothing.
SERVING = {"app", "api", "openapi", "watch", "server", "keeper", "exposition", "_front", "_lookup", "_metrics"}
SERVING |= {"life", "reload", "supervisor", "tls"}
SURFACES = sorted(name for name in MODULES if name.startswith("api."))
# All but what the dialects share.
DIALECTS = set(SURFACES) - {"api.__init__", "api.dialect", "api.pages", "api.problems", "api.query"}
LOADERS = sorted(name for name in MODULES if name.startswith("loader."))


def imported(source: str) -> Iterator[str]:
    """The full names of the modules that Python source imports, wherever in it that is."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            # `from edgeprofile import keys` imports a module, `from edgeprofile.keys import Key` a name of one.
            modules = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from {module for module in modules if module.removeprefix("edgeprofile.") in OURS} or {node.module}


def imports_of(name: str) -> set[str]:
    """What a module imports: ours by their names inside the package, others by that of their package."""
    found = set(imported(MODULES[name].read_text(encoding="utf-8")))
    return {
        module.removeprefix("edgeprofile.") if module.startswith("edgeprofile.") else module.split(".")[0]
        for module in found
    }


def within(names: set[str], parts: set[str]) -> set[str]:
    """Those names that are one of these modules or packages, or inside one."""
    return {name for name in names if any(name == part or name.startswith(f"{part}.") for part in parts)}


def test_the_imports_of_a_module_are_found_wherever_they_stand() -> None:
    source = "import a.b\nfrom edgeprofile import keys\ndef f():\n    from edgeprofile.loader.source import Source\n"
    assert set(imported(source)) == {"a.b", "edgeprofile.keys", "edgeprofile.loader.source"}


@pytest.mark.parametrize("name", ALLOWED)
def test_a_module_at_the_bottom_imports_only_what_is_below_it(name: str) -> None:
    assert imports_of(name) & OURS <= ALLOWED[name]


@pytest.mark.parametrize("package", OWNERS)
def test_a_package_is_imported_only_by_the_modules_that_own_it(package: str) -> None:
    importers = {name for name in MODULES if package in imports_of(name)}
    assert importers, f"{package} is a dependency that nothing imports"
    assert importers <= OWNERS[package]


@pytest.mark.parametrize("name", LOADERS)
def test_the_loader_knows_nothing_of_the_servers(name: str) -> None:
    assert within(imports_of(name), SERVING) == set()


@pytest.mark.parametrize("name", SURFACES)
def test_a_dialect_imports_no_other_dialect_and_nothing_that_loads(name: str) -> None:
    assert within(imports_of(name), DIALECTS - {name} | {"loader"}) == set()


@pytest.mark.parametrize("path", CYTHON, ids=lambda path: path.name)
def test_compiled_code_imports_only_errors_and_its_own_kind(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^\s*from +edgeprofile([.\w]*) +(c?import)\b", text, re.MULTILINE)
    found += [(name, how) for how, name in re.findall(r"^\s*(c?import) +edgeprofile([.\w]*)", text, re.MULTILINE)]
    assert {name for name, how in found if how == "import"} <= {".errors"}
    assert {name.removeprefix(".") for name, how in found if how == "cimport"} <= COMPILED


@pytest.mark.parametrize("path", [*MODULES.values(), *CYTHON], ids=lambda path: path.name)
def test_a_module_can_be_read_in_one_sitting(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LINES_MAX


@pytest.mark.parametrize(
    "path",
    [*MODULES.values(), *sorted((ROOT / "tests").glob("*.py")), *sorted((ROOT / "loadtest").glob("*.py"))],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_a_module_opens_with_its_idea(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", CYTHON, ids=lambda path: path.name)
def test_a_compiled_module_opens_with_its_idea(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith(('"""', "# "))


def test_every_compiled_module_has_a_stub_and_every_stub_a_module() -> None:
    stubs = {path.stem for path in PACKAGE.rglob("*.pyi")}
    assert stubs == COMPILED


def test_generated_c_is_nowhere_but_in_build() -> None:
    folders = [ROOT / name for name in ("ext", "src", "tests", "loadtest", "examples", "deploy", "docs")]
    c_files = [path for folder in folders for path in folder.rglob("*.c*") if path.suffix in {".c", ".cpp", ".cc"}]
    generated = [path for path in c_files if "Generated by Cython" in path.read_text(encoding="utf-8")[:200]]
    assert generated == []
    assert "/build/" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


@pytest.mark.parametrize("module", ["edgeprofile.app", "edgeprofile.server", "edgeprofile.cli"])
def test_a_process_that_does_not_load_has_no_warehouse_in_it(module: str) -> None:
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    names = set(done.stdout.split())
    assert module in names
    assert {name for name in names if re.match(r"(adbc_|duckdb|_duckdb|pyarrow|edgeprofile\.loader\.)", name)} == set()
