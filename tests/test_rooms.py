"""The rooms of the package: every import points downward, and no module reaches itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kdstream

ROOT = Path(kdstream.__file__).parent
FLOORS = (
    {"train", "__main__", "cli"},
    {"benches"},
    {"training"},
    {"analysis"},
    {"display", "models", "objectives", "stream"},
    {"convert"},
    {"data", "jpeg", "recipe", "recipe_file"},
    {
        *("addresses", "atomic", "bars", "batch", "errors", "hashing", "lock", "registry", "rng", "safe_yaml"),
        "terminal",
    },
)
"""From the top floor to the ground. A room knows those below it and, on the floors of ``SHARED``, its neighbours."""
SHARED = (FLOORS[0], FLOORS[6], FLOORS[7])
"""Rooms of one floor that may know each other, as long as no circle comes of it."""


def modules() -> dict[str, Path]:
    """Dotted name -> file, of the whole package."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = ("kdstream", *file.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imports(file: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it, except for the eyes of a type checker alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return {name for name in found if name in MODULES}


IMPORTS = {name: imports(file) for name, file in MODULES.items()}


def room(module: str) -> str:
    """``stream`` of ``kdstream.stream.plan``; empty for the package itself. What ``python -m`` runs is an entry."""
    return "__main__" if module.endswith(".__main__") else module.partition(".")[2].partition(".")[0]


def floor(module: str) -> int:
    """0 = the top one; the package's own file lies below all, since it imports nothing that it names."""
    if module == "kdstream":
        return len(FLOORS)
    return next(i for i, rooms in enumerate(FLOORS) if room(module) in rooms)


def test_every_room_has_its_floor():
    known = set().union(*FLOORS)
    assert {room(name) for name in MODULES if name != "kdstream"} == known


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_downward(module):
    if module == "kdstream":
        assert not IMPORTS[module]
        return
    for other in IMPORTS[module]:
        below = floor(other) > floor(module)
        beside = floor(other) == floor(module) and any(room(module) in rooms for rooms in SHARED)
        assert below or beside or room(other) == room(module), f"{module} imports {other}, which is not below it"


def test_no_import_comes_back_to_where_it_began():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(IMPORTS[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_the_ground_floor_imports_no_heavy_library_to_say_what_is_wrong():
    heavy = {"torch", "torchvision", "accelerate", "kornia"}
    for name in ("kdstream", "kdstream.errors", "kdstream.registry", "kdstream.atomic", "kdstream.bars"):
        tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
        named = {alias.name.partition(".")[0] for n in tree.body if isinstance(n, ast.Import) for alias in n.names}
        named |= {str(n.module).partition(".")[0] for n in tree.body if isinstance(n, ast.ImportFrom)}
        assert not named & heavy, name
