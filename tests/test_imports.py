"""Imports run in one direction: a package imports from itself and from the packages below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ppa_fast"

ROOMS = (  # from the lowest; a module may import from its own package and from those before it
    ("version", "errors", "files", "hub", "console", "progress", "ranks"),
    ("settings",),
    ("ops",),
    ("data.reading",),
    ("data.store",),
    ("data.loading",),
    ("model",),
    ("tasks",),
    ("training",),
    ("reporting",),
    ("workflow",),
    ("ablation",),
    ("sample",),
    ("doctor",),
    ("cli",),
    ("train", "__init__"),
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> int | None:
    return next((i for i, names in enumerate(ROOMS) for n in names if module == n or module.startswith(f"{n}.")), None)


def imports(path: Path, known: dict[str, Path], everywhere: bool) -> set[str]:
    """Returns the modules of the package that a module imports; ``everywhere``: also those imported within
    functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ppa_fast":
            base = node.module.removeprefix("ppa_fast").lstrip(".")
            for alias in node.names:
                whole = f"{base}.{alias.name}".lstrip(".")
                found.add(whole if whole in known else base or "__init__")
    return found


def test_every_module_is_in_a_declared_package():
    assert [name for name in modules() if name != "data" and room_of(name) is None] == []


def test_no_module_imports_from_a_package_above():
    known = modules()
    upward = [
        f"{name} imports {other}"
        for name, path in known.items()
        if name not in ("data", "__init__")
        for other in sorted(imports(path, known, everywhere=True))
        if (room_of(other) or 0) > (room_of(name) or 0)
    ]
    assert upward == []


def test_there_are_no_circular_imports():
    known = modules()
    graph = {name: imports(path, known, everywhere=False) - {name} for name, path in known.items()}
    state: dict[str, int] = {}

    def visit(name: str, trail: list[str]) -> None:
        if state.get(name) == 1:
            pytest.fail(f"circle: {' -> '.join([*trail[trail.index(name) :], name])}")
        if name in state:
            return
        state[name] = 1
        for other in graph.get(name, ()):
            visit(other, [*trail, name])
        state[name] = 2

    for name in graph:
        visit(name, [])
