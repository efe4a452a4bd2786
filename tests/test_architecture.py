"""The house of the design: who may import whom, and that nothing happens at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import medtransfer
import pytest

PACKAGE = Path(medtransfer.__file__).parent
ROOT = PACKAGE.parent

ALLOWED = {
    "errors": set(),
    "names": set(),
    "files": set(),
    "tables": set(),
    "account": set(),
    "progress": {"errors"},
    "yaml_text": {"errors"},
    "sections": {"errors", "yaml_text", "data.windows"},
    "config": {"errors", "yaml_text", "sections"},
    "data": {"errors", "data"},
    "models": {"errors", "models"},
    "evaluation": {"errors", "evaluation"},
    "tasks": {"errors", "tasks", "models.heads", "models.pyramid", "models.backbone", "evaluation"},
    "training": {"errors", "training", "tasks", "models", "evaluation"},
    "report": {"errors", "report", "evaluation"},
    "folder": {"errors", "config"},
    "record": {"errors", "config", "folder", "data", "models", "training", "evaluation"},
    "prepare": {"errors", "config", "sections", "record", "progress", "lesions", "data", "models", "tasks"},
    "lesions": {"errors", "data"},
    "arms": {"errors", "folder", "sections", "record", "prepare", "lesions", "data", "models", "tasks", "training"},
    "runs": {"errors", "arms", "config", "folder", "tested", "sections", "record", "prepare", "lesions", "progress"}
    | {"data", "models", "tasks", "training", "evaluation"},
    "tested": {"errors", "arms", "lesions", "data", "models", "tasks", "training", "evaluation"},
    "jobs": {"errors", "arms", "config", "folder", "record", "prepare", "runs", "episodes", "progress"}
    | {"data", "models", "tasks", "training"},
    "scheduler": {"errors", "jobs", "progress", "record", "training"},
    "reused": {"errors", "arms", "config", "record", "prepare", "runs", "progress", "models", "training", "evaluation"},
    "episodes": {"errors", "config", "sections", "record", "prepare", "data", "models"},
    "external": {"errors", "arms", "config", "folder", "sections", "record", "prepare", "runs", "progress"}
    | {"data", "models", "tasks", "training", "evaluation", "report"},
    "sightings": {"errors", "record", "prepare", "lesions", "data", "evaluation", "report"},
    "deploy": {"errors", "deploy", "data", "models", "tasks", "training", "evaluation"},
    "located": {"errors", "arms", "record", "prepare", "runs", "lesions", "progress", "data", "models", "training", "evaluation", "deploy"},
    "gallery": {"errors", "record", "located", "data", "training", "evaluation", "report"},
    "machine": {"errors", "arms", "record", "prepare", "data", "training"},
    "outcome": {
        "errors",
        "config",
        "folder",
        "gallery",
        "located",
        "sightings",
        "jobs",
        "machine",
        "record",
        "reused",
        "progress",
        "evaluation",
        "report",
    },
    "study": {"errors", "config", "folder", "record", "prepare", "jobs", "machine", "scheduler", "outcome", "episodes"}
    | {"progress", "data", "models", "training", "evaluation"},
    "cli": {
        "errors",
        "config",
        "sections",
        "external",
        "folder",
        "progress",
        "record",
        "prepare",
        "data",
        "models",
        "study",
        "outcome",
        "evaluation",
        "report",
    },
    "__main__": {"cli"},
    "__init__": {"config", "data", "models", "tasks", "evaluation", "errors", "external", "record", "runs", "study"},
}
# What every part stands on: each of these imports those before it alone.
GROUND = {"errors", "names", "files", "tables", "account"}
# Names that come from one module of the package, whatever the depth of the import statement.
PREFIX = "medtransfer"


def imported_modules(tree: ast.AST, importable: set[str]) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            names += [f"{module}.{alias.name}" if f"{module}.{alias.name}" in importable else module for alias in node.names]
    return [name.removeprefix(PREFIX).lstrip(".") for name in names if name == PREFIX or name.startswith(f"{PREFIX}.")]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE).with_suffix("")
        found[".".join(relative.parts).removesuffix(".__init__")] = path
    return found


def test_imports_point_down():
    found = modules()
    importable = {f"{PREFIX}.{name}" for name in found}
    assert len(found) > 25
    faults = []
    edges = 0
    for name, path in found.items():
        allowed = ALLOWED[name.split(".")[0]] | GROUND
        for target in imported_modules(ast.parse(path.read_text()), importable):
            edges += 1
            if not any(target == room or target.startswith(f"{room}.") for room in allowed):
                faults.append(f"{name} imports {target or PREFIX}")
    assert edges > 50
    assert not faults, faults


def test_there_is_no_import_cycle():
    found = modules()
    importable = {f"{PREFIX}.{name}" for name in found}
    graph = {}
    for name, path in found.items():
        # Imports inside functions are made when the function runs; they cannot close a cycle at import.
        top = ast.Module([node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
        graph[name] = {target for target in imported_modules(top, importable) if target in found and target != name}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert done == set(found)


def test_pydicom_has_one_user():
    users = [name for name, path in modules().items() if "pydicom" in path.read_text() and name not in {"study", "record"}]
    assert users == ["data.cache", "data.dicom", "data.dicom_jpeg", "data.dicom_pixels", "data.dicom_write"]


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.strip()


@pytest.mark.process
def test_command_line_and_evaluation_load_no_torch():
    assert run_python("import sys, medtransfer, medtransfer.cli; print('torch' in sys.modules or 'pandas' in sys.modules)") == "False"
    assert run_python("import sys, medtransfer.evaluation, medtransfer.report.build; print('torch' in sys.modules)") == "False"


def test_all_names_are_importable_and_listed():
    assert sorted(medtransfer._HOMES) == sorted(medtransfer.__all__)
    for name in medtransfer.__all__:
        assert getattr(medtransfer, name) is not None
    assert set(medtransfer.__all__) <= set(dir(medtransfer))


def test_error_classes_are_few_and_built_in():
    from medtransfer import errors

    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.MedTransferError)]
    assert 2 < len(classes) <= 8
    assert all(issubclass(c, (ValueError, RuntimeError)) for c in classes if c is not errors.MedTransferError)


def test_functions_and_modules_stay_small():
    for name, path in modules().items():
        assert len(path.read_text().splitlines()) <= 400, name
