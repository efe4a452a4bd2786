"""The house: who may import whom, and that nothing happens at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import medtransfer
import pytest
from medtransfer.study.identity import DECISIVE

PACKAGE = Path(medtransfer.__file__).parent
PREFIX = "medtransfer"

ALLOWED = {
    # The ground, lowest first.
    "errors": set(),
    "files": {"errors"},
    "text": {"errors", "files"},
    "progress": {"text"},
    # Data, from files to cohorts.
    "data.images": {"files"},
    "data.phantom": {"data.images"},
    "data.grid": {"files", "data.images"},
    "data.annotations": {"files", "data.images", "data.grid"},
    "data.cohort": {"data.images", "data.grid", "data.annotations"},
    "data.audit": {"files", "data.images", "data.grid", "data.annotations", "data.cohort"},
    # Models, from chains to plans.
    "models.chain": set(),
    "models.weights": {"files", "models.chain"},
    "models.catalog": {"models.chain", "models.weights"},
    "models.heads": {"models.chain"},
    "models.plan": {"models.chain", "models.heads"},
    # Evaluation, from tables to results.
    "evaluation.tables": {"files"},
    "evaluation.intervals": {"evaluation.tables"},
    "evaluation.metrics": {"evaluation.tables", "evaluation.intervals"},
    "evaluation.settings": {"evaluation.tables", "evaluation.metrics"},
    "evaluation.sentences": set(),
    "evaluation.analyses": {
        "evaluation.tables",
        "evaluation.intervals",
        "evaluation.metrics",
        "evaluation.settings",
        "evaluation.sentences",
    },
    "evaluation": {"files", "evaluation"},
    # Learning, and what comes of it.
    "tasks": {"models", "evaluation.tables", "evaluation.metrics"},
    "training": {"files", "tasks", "models", "evaluation.metrics"},
    "config": {"files", "data", "models.plan", "training", "evaluation.settings"},
    "records": {"files", "config", "evaluation.tables"},
    "inference": {
        "files",
        "records",
        "config",
        "training",
        "tasks",
        "models",
        "data",
        "evaluation.metrics",
    },
    "report": {"files", "records", "evaluation"},
    "study": {
        "files",
        "progress",
        "config",
        "data",
        "models",
        "tasks",
        "training",
        "inference",
        "evaluation",
        "report",
        "records",
    },
    "cli": {
        "files",
        "progress",
        "config",
        "data",
        "models",
        "evaluation",
        "report",
        "records",
        "study",
    },
    "__main__": {"cli"},
}
# Each room imports itself and these alone.
GROUND = {"errors", "text"}
# Where an import may be put off to the moment it is needed.
LAZY = {"cli", "__init__"}


@cache
def modules() -> dict[str, Path]:
    named = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE).with_suffix("")
        named[".".join(relative.parts).removesuffix(".__init__")] = path
    return named


@cache
def imports(name: str) -> tuple[str, ...]:
    """All modules of the package that a module imports, at any depth of its code."""
    importable = {f"{PREFIX}.{other}" for other in modules()}
    targets = []
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.Import):
            targets += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            whole = [f"{module}.{alias.name}" for alias in node.names]
            targets += [path if path in importable else module for path in whole]
    inside = [path for path in targets if path == PREFIX or path.startswith(f"{PREFIX}.")]
    return tuple(path.removeprefix(PREFIX).lstrip(".") for path in inside)


def room_of(name: str) -> str:
    """The longest name in ALLOWED that a module belongs to."""
    parts = name.split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((prefix for prefix in prefixes if prefix in ALLOWED), "__init__")


def test_imports_point_down():
    faults = []
    for name in modules():
        room = room_of(name)
        if room == "__init__" or (modules()[name].name == "__init__.py" and not imports(name)):
            continue
        allowed = ALLOWED[room] | (GROUND if room not in GROUND else set()) | {room}
        for target in imports(name):
            if not any(target == other or target.startswith(f"{other}.") for other in allowed):
                faults.append(f"{name} imports {target or PREFIX}")
    assert not faults, faults


def test_there_is_no_circle_of_modules():
    """All imports count, those within functions too."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for target in imports(name):
                if target in modules() and target != name:
                    visit(target, (*path, name))
            done.add(name)

    for name in modules():
        if name != "__init__":
            visit(name, ())


def test_there_is_no_circle_of_rooms():
    arrows = arrows_between_rooms()
    floors: dict[str, int] = {}

    def floor(room: str, path: tuple[str, ...] = ()) -> int:
        assert room not in path, " -> ".join((*path, room))
        if room not in floors:
            below = [floor(low, (*path, room)) for high, low in sorted(arrows) if high == room]
            floors[room] = 1 + max(below, default=0)
        return floors[room]

    highest = max(floor(room) for room in ALLOWED)
    print(f"{len(ALLOWED)} rooms on {highest} floors, {len(arrows)} arrows")  # noqa: T201
    assert highest <= 14


def arrows_between_rooms() -> set[tuple[str, str]]:
    pairs = {(room_of(name), room_of(target)) for name in modules() for target in imports(name)}
    return {(high, low) for high, low in pairs if high != low and "__init__" not in {high, low}}


def is_of_types(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def test_only_the_command_line_imports_late():
    late = []
    for name, path in modules().items():
        if name.split(".")[0] in LAZY:
            continue
        tree = ast.parse(path.read_text())
        # What is imported for the types alone is not imported late, but never.
        types = [node for node in tree.body if isinstance(node, ast.If) and is_of_types(node.test)]
        top = {id(node) for block in (tree, *types) for node in block.body}
        late += [
            f"{name}, line {node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith(PREFIX)
            and id(node) not in top
        ]
    assert not late, late


def test_the_root_holds_what_everything_stands_on():
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert files == {"__init__", "__main__", "errors", "files", "progress"}


def reach(*names: str) -> set[str]:
    """The modules, and all that they import."""
    seen, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name in modules() and name not in seen:
            seen.add(name)
            waiting += imports(name)
    return seen


def test_the_key_of_a_run_covers_all_that_decides_it():
    """What only words a message, or writes a file, decides no number."""
    wording = {"errors", "files", "progress"}
    rooms = tuple(place.removesuffix(".py").replace("/", ".") for place in DECISIVE)
    for name in reach("study.run", "study.worker", "study.search", "study.prediction"):
        assert name in wording or name.startswith(rooms), name


def test_the_key_of_the_image_cache_covers_all_that_decodes():
    wording = {"errors", "files"}
    for name in reach("data.images.reading", "data.grid.fixed", "data.grid.cache"):
        covered = name.startswith(("data.images", "data.grid"))
        assert covered or name in wording or name.startswith(("text", "data")), name


def test_pydicom_has_one_user():
    for name, path in modules().items():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(other.split(".")[0] == "pydicom" for other in names):
                assert name.startswith("data.images.dicom"), name


def test_functions_take_few_parameters():
    wide = []
    for name, path in modules().items():
        if name.startswith("cli"):
            continue  # an option of a verb is a parameter
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                names = [
                    a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                ]
                if len([n for n in names if n not in {"self", "cls"}]) > 8:
                    wide.append(f"{name}.{node.name}: {len(names)}")
    assert not wide, wide


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


@pytest.mark.process
def test_command_line_and_evaluation_load_no_torch():
    assert (
        run_python(
            "import sys, medtransfer, medtransfer.cli.app; print('torch' in sys.modules or "
            "'pandas' in sys.modules)"
        )
        == "False"
    )
    assert (
        run_python(
            "import sys, medtransfer.evaluation.evaluate, medtransfer.report.build; "
            "print('torch' in sys.modules)"
        )
        == "False"
    )


def test_all_names_are_importable_and_listed():
    assert sorted(medtransfer._HOMES) == sorted(medtransfer.__all__)
    for name in medtransfer.__all__:
        assert getattr(medtransfer, name) is not None
    assert set(medtransfer.__all__) <= set(dir(medtransfer))


def test_error_classes_are_few_and_built_in():
    from medtransfer import errors

    classes = [
        c
        for c in vars(errors).values()
        if isinstance(c, type) and issubclass(c, errors.MedTransferError)
    ]
    assert 2 < len(classes) <= 11
    assert all(
        issubclass(c, (ValueError, RuntimeError))
        for c in classes
        if c is not errors.MedTransferError
    )
