"""The rooms of the package: every import points downward, no module reaches itself, and tests mirror the modules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdstream

ROOT = Path(kdstream.__file__).parent
FLOORS = (
    {"train", "__main__", "cli", "api"},
    {"benches"},
    {"training"},
    {"analysis"},
    {"display", "models", "objectives", "stream"},
    {"convert"},
    {"data", "jpeg", "recipe", "recipe_file"},
    {
        *("addresses", "atomic", "bars", "batch", "errors", "exact", "hashing", "lock", "notes", "registry", "rng"),
        *("safe_yaml", "tap_names", "terminal", "web"),
    },
)
"""From the top floor to the ground. A room knows those below it and, on the floors of ``SHARED``, its neighbours."""
SHARED = (FLOORS[0], FLOORS[6], FLOORS[7])
"""Rooms of one floor that may know each other, as long as no circle comes of it."""

TESTED_ELSEWHERE = {
    "train": "a script: cli/test_train.py starts it as a user does",
    "cli/report": "cli/test_table_command.py: a report is of what the command table has done",
    "cli/tables": "cli/test_table_command.py: the list says what the command table has done",
    "api/evaluate": "api/test_distill.py evaluates what it has trained",
    "api/export_onnx": "api/test_distill.py: of an interrupted training",
    "api/int8": "cli/test_export_command.py: quantizes what a recipe's data is there for",
    "api/result": "api/test_distill.py: what a distillation gives",
    "benches/gpu": "cli/test_bench.py runs parts of it on the processor",
    "benches/coded": "cli/test_bench.py runs it and reads what it says",
    "benches/jpeg": "cli/test_bench.py runs it and reads what it says",
    "benches/loaders": "cli/test_bench.py: what bench stream measures, by what it gives",
    "benches/measure": "cli/test_bench.py runs it by a clock of its own",
    "benches/plan": "cli/test_bench.py runs it and reads what it says",
    "benches/others": "cli/test_bench.py: each of its losses computes the number that kdstream's does",
    "benches/step": "cli/test_bench.py runs it and reads what it says",
    "benches/stream": "cli/test_bench.py runs it and reads what it says",
    "benches/taps": "cli/test_bench.py runs it and reads what it says",
    "jpeg/cpu_blocks": "jpeg/test_jpeg_cpu.py: only through cpu.py can its blocks be compared with the reference",
    "jpeg/cpu_kernel": "jpeg/test_jpeg_cpu.py: only through cpu.py can its code be compared with the reference",
    "jpeg/part_kernel": "jpeg/test_part.py: only through part.py can its samples be compared with libjpeg's",
    "stream/resize_kernel": "stream/test_boxes.py: only through boxes.py can its views be compared with torchvision's",
    "stream/sample_kernels": "stream/test_kernels.py: through kernels.py they are compared with their plain forms",
    "jpeg/cuda_kernels": "jpeg/test_jpeg_cuda.py: they need a GPU, or the interpreter that is set up there",
}
"""Modules without a test file of their name -> why."""
APART = {
    "test_on_a_gpu": "what only a GPU shows, of all of the path",
    "api/test_notebook": "runs tools/quickstart.ipynb",
    "cli/test_verbs": "of cli itself",
    "jpeg/test_jpeg_front": "of jpeg itself",
    "models/test_models_build": "of models itself",
    "convert/test_convert_faults": "a disk that fails, of all of convert",
    "models/test_zoo": "what all networks promise",
    "objectives/test_correlation_terms": "compares pearson, spearman, cmkd",
    "objectives/test_first_phases": "compares ab, ft, fsp",
    "objectives/test_joint_classifier": "compares srrl, simkd, ijckd",
    "objectives/test_paper_forms": "compares fsp and ft with values measured for the papers' forms",
    "objectives/test_relational": "compares sp, cc, vid, rkd, pkt, nst, kdsvd",
    "objectives/test_small_batches": "every objective with few classes and samples",
    "objectives/test_terms_of_logits": "compares the terms that read nothing but logits",
    "stream/test_any_trainer": "a stream in Accelerate's and Lightning's hands",
    "test_every_objective": "every objective in a training",
    "test_golden": "every objective with values measured on its authors' code",
    "test_mutations": "damaged tars, indices and JPEGs, of data and stream",
    "test_portable": "systems without fcntl",
    "test_rooms": "the order of the modules",
    "test_two_hosts": "batches on two hosts, in network namespaces",
    "training/tables/test_every_cell": "the papers' trainings, set up",
    "training/test_assistants": "a chain of trainings",
    "training/test_full_disk": "a disk that fails, of a whole job",
    "training/test_made_before": "what an earlier version left",
    "training/test_published_teacher": "a job whose teacher is published, or gone",
    "training/test_resume": "continued trainings end with the same bits",
}
"""Test files that are no module's -> of what they are."""


def modules() -> dict[str, Path]:
    """Dotted name -> file, of the whole package."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = ("kdstream", *file.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def statements(node: ast.AST) -> Iterator[ast.stmt]:
    """All below a node, without expressions, of which there are many; nor what is for a type checker's eyes alone."""
    checked = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    for field in ("orelse",) if checked else ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, field, ()):
            if isinstance(child, ast.stmt):
                yield child
            yield from statements(child)


def imports(file: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it, except for the eyes of a type checker alone."""
    found: set[str] = set()
    for node in statements(ast.parse(file.read_text(encoding="utf-8"))):
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


def test_every_type_ignore_says_which_error_and_why():
    reason = re.compile(r"# type: ignore\[[a-z-]+(, [a-z-]+)*\]  # \w+ \w+")
    bare = [
        f"{file}:{number}"
        for file in MODULES.values()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if "type: ignore" in line and not reason.search(line)
    ]
    assert not bare


def test_the_ground_floor_imports_no_heavy_library_to_say_what_is_wrong():
    heavy = {"torch", "torchvision", "accelerate", "kornia"}
    for name in ("kdstream", "kdstream.errors", "kdstream.registry", "kdstream.atomic", "kdstream.bars"):
        tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
        named = {alias.name.partition(".")[0] for n in tree.body if isinstance(n, ast.Import) for alias in n.names}
        named |= {str(n.module).partition(".")[0] for n in tree.body if isinstance(n, ast.ImportFrom)}
        assert not named & heavy, name


def names_of_tests(module: Path) -> set[Path]:
    """The test files that bear a module's name: that of its room before it where two modules share one, as pytest
    wants every file to have a name of its own; and of a verb, the command."""
    room, names = module.parent, [f"test_{module.name}", f"test_{module.parent.name}_{module.name}"]
    return {room / name for name in [*names, *([f"test_{module.name}_command"] if room.name == "cli" else [])]}


def test_every_module_has_a_test_file_of_its_name_and_every_test_file_a_module():
    here = Path(__file__).parent
    files = {file.relative_to(here).with_suffix("") for file in here.rglob("test_*.py")}
    known = {
        file.relative_to(ROOT).with_suffix("") for file in MODULES.values() if file.stem not in ("__init__", "__main__")
    }
    assert len({file.name for file in files}) == len(files), "two test files of one name"
    without = {module.as_posix() for module in known if not names_of_tests(module) & files}
    assert without == set(TESTED_ELSEWHERE)
    apart = {file.as_posix() for file in files - set().union(*map(names_of_tests, known))}
    assert apart == set(APART)
