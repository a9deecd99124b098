"""The direction of imports (docs/architecture.md): read from the source, and for the command line's start from a running Python.

`score_core` modules have a layer. An import may go to a lower layer, or stay in its room (`stores`, `cli`, ...). An import inside a
function obeys the same rule, save for the pairs in `UPWARD`, but does not count as loaded when the command line starts.
"""

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A room or module of score_core -> its layer; the longest name that matches counts. The two base.py hold Protocols and values only.
LAYERS = {
    "score_core": 0,  # the version, nothing else
    "score_core.errors": 1,
    "score_core.model": 2,
    "score_core.plan": 3,
    "score_core.ids": 3,
    "score_core.hosts": 3,
    "score_core.checksum": 3,
    "score_core.progress": 3,
    "score_core.java_settings": 3,
    "score_core.stores.base": 3,
    "score_core.repository.base": 3,
    "score_core.transfer.stop": 3,  # these two know of no room: services wait and try again by them, too
    "score_core.transfer.policy": 3,
    "score_core.settings": 4,
    "score_core.service": 4,
    "score_core.stores": 5,
    "score_core.metadata": 5,
    "score_core.transfer": 5,
    "score_core.auth": 5,
    "score_core.repository": 6,
    "score_core.slicing": 6,
    "score_core.operations": 7,
    "score_core.session": 7,
    "score_core.manifest": 8,  # rows become what operations take
    "score_core.server": 8,
    "score_core.testing": 9,
    "score_core.cli": 9,
    "score_core.workflow": 10,  # a job reports, logs and stops as a command does
}

# Imports inside functions or for types only that may go up, and why.
UPWARD = {
    ("score_core.stores.local", "score_core.server.bytes"),  # a folder's signed URLs are served by our own server, started on first use
    ("score_core.errors", "score_core.model"),  # a batch's error carries the reports of its files
}

# Slow to import, or optional: none of them loads when the command line starts.
HEAVY = {"prefect", "snakemake", "fastapi", "starlette", "uvicorn", "boto3", "botocore", "pysam", "httpx"}

TASKS_MAY_IMPORT = {"tasks", "score_core", "prefect"}
TASKS_MAY_NOT_IMPORT = ("score_core.cli", "score_core.workflow", "score_core.server", "score_core.testing")

PLUGIN = "snakemake_storage_plugin_score"
PLUGIN_SOURCE = ROOT / "workflows" / "snakemake" / "src"
PLUGIN_MAY_IMPORT = {PLUGIN, "score_core", "snakemake_interface_common", "snakemake_interface_storage_plugins"}


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    line: int
    lazy: bool = False  # inside a function
    for_types: bool = False  # under `if TYPE_CHECKING:`

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def module_name(path: Path) -> str:
    parts = path.relative_to(PLUGIN_SOURCE if path.is_relative_to(PLUGIN_SOURCE) else ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FOLDERS = (ROOT / "score_core", ROOT / "tasks", ROOT / "flows", PLUGIN_SOURCE)
MODULES = {module_name(path): path for folder in FOLDERS for path in sorted(folder.rglob("*.py"))}


def imported_names(node: ast.Import | ast.ImportFrom, importer: str) -> Iterator[str]:
    """`from a import b` is an import of `a`, and of `a.b` when that is a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        package = importer.split(".") if MODULES[importer].name == "__init__.py" else importer.split(".")[:-1]
        base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
    yield base
    yield from (full for alias in node.names if (full := f"{base}.{alias.name}") in MODULES)


def walk(nodes: Iterable[ast.AST], importer: str, *, lazy: bool = False, for_types: bool = False) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported_names(node, importer):
                yield Import(importer, name, node.lineno, lazy, for_types)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from walk(node.body, importer, lazy=lazy, for_types=True)
            yield from walk(node.orelse, importer, lazy=lazy, for_types=for_types)
        else:
            inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(ast.iter_child_nodes(node), importer, lazy=inside, for_types=for_types)


def imports_of(name: str) -> list[Import]:
    return list(walk([ast.parse(MODULES[name].read_text(encoding="utf-8"))], name))


ALL = [found for name in MODULES for found in imports_of(name)]


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def top(name: str) -> str:
    return name.partition(".")[0]


def room(name: str) -> str:
    return ".".join(name.split(".")[:2])


def layer(name: str) -> int:
    best = max((known for known in LAYERS if within(name, known)), key=len)
    assert best != "score_core" or name == "score_core", f"{name} has no layer yet: add it to LAYERS, and to docs/architecture.md"
    return LAYERS[best]


def breaks_direction(found: Import) -> bool:
    if (found.lazy or found.for_types) and (found.importer, found.imported) in UPWARD:
        return False
    return layer(found.importer) <= layer(found.imported) and room(found.importer) != room(found.imported)


def start_up_imports(start: str) -> list[Import]:
    """Every import that runs when `start` is imported: module level only, packages above a module included."""
    seen: set[str] = set()
    waiting, reached = [start], []
    while waiting:
        parts = waiting.pop().split(".")
        for name in (".".join(parts[: end + 1]) for end in range(len(parts))):
            if name in MODULES and name not in seen:
                seen.add(name)
                runs = [found for found in imports_of(name) if not found.lazy and not found.for_types]
                reached += runs
                waiting += [found.imported for found in runs]
    return reached


def test_walk_tells_lazy_and_typing_imports() -> None:
    source = (
        "import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    import c\nclass D:\n    import d\ntry:\n    import e\nfinally:\n    f()"
    )
    found = {item.imported: (item.lazy, item.for_types) for item in walk([ast.parse(source)], "score_core.model")}
    plain = (False, False)
    assert found == {"a": plain, "b": (False, True), "c": (True, False), "d": plain, "e": plain}


def test_score_core_imports_point_down() -> None:
    ours = [found for found in ALL if within(found.importer, "score_core") and within(found.imported, "score_core")]
    assert [str(found) for found in ours if breaks_direction(found)] == []


def test_upward_exceptions_are_still_used() -> None:
    used = {(found.importer, found.imported) for found in ALL if found.lazy or found.for_types}
    assert [pair for pair in UPWARD if pair[0] in MODULES and pair not in used] == []


def test_score_core_does_not_know_its_front_ends() -> None:
    outside = ("tasks", "flows", "tests", "bench", "prefect", "snakemake", *(PLUGIN_MAY_IMPORT - {"score_core"}))
    assert [str(found) for found in ALL if within(found.importer, "score_core") and top(found.imported) in outside] == []


def test_tasks_import_score_core_and_prefect_only() -> None:
    def allowed(name: str) -> bool:
        known = TASKS_MAY_IMPORT | sys.stdlib_module_names
        return top(name) in known and not any(within(name, closed) for closed in TASKS_MAY_NOT_IMPORT)

    assert [str(found) for found in ALL if within(found.importer, "tasks") and not allowed(found.imported)] == []


def test_storage_plugin_imports_score_core_and_snakemakes_interfaces_only() -> None:
    def allowed(name: str) -> bool:
        known = PLUGIN_MAY_IMPORT | sys.stdlib_module_names
        return top(name) in known and not any(within(name, closed) for closed in TASKS_MAY_NOT_IMPORT)

    ours = [found for found in ALL if within(found.importer, PLUGIN)]
    assert ours
    assert [str(found) for found in ours if not allowed(found.imported)] == []


def test_storage_plugin_can_be_imported_under_snakemake_8() -> None:
    # Else no command of that works where our wheel is installed; measured with 8.30, whose interface 3.3 has no such module
    early = [found for found in ALL if within(found.importer, PLUGIN) and not found.lazy and not found.for_types]
    assert [str(found) for found in early if found.imported == "snakemake_interface_storage_plugins.exceptions"] == []


def test_storage_plugin_loads_nothing_heavy_before_it_is_used() -> None:
    # Snakemake imports every installed plugin for every command
    program = f"""
import json, sys, snakemake_interface_storage_plugins.storage_object
before = set(sys.modules)
import {PLUGIN}
print(json.dumps(sorted({{name.split(".")[0] for name in set(sys.modules) - before}})))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(PLUGIN_SOURCE)))}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert PLUGIN in loaded
    assert loaded & (HEAVY | {"pydantic", "pydantic_settings", "urllib3", "rich", "cyclopts"}) == set()


def test_nothing_imports_flows() -> None:
    assert [str(found) for found in ALL if within(found.imported, "flows") and not within(found.importer, "flows")] == []


def test_flow_files_hide_no_other_module() -> None:
    # Prefect puts flows/ first on the import path, so flows/secrets.py would be everybody's `secrets`.
    taken = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions()) | {"score_core", "tasks", "flows"}
    assert [path.name for path in (ROOT / "flows").glob("*.py") if path.stem in taken] == []


def test_command_line_imports_nothing_heavy() -> None:
    loaded = start_up_imports("score_core.cli.app")
    assert [str(found) for found in loaded if top(found.imported) in HEAVY] == []


def test_command_line_starts_without_heavy_modules() -> None:
    if "score_core.cli.app" not in MODULES:
        pytest.skip("there is no command line yet")
    program = "import json, sys, score_core.cli.app; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert HEAVY & set(json.loads(done.stdout)) == set()
