"""Recipe files: from a name to a checked recipe, with the files that it builds on and ``key=value`` overrides."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdstream.addresses import is_published, public
from kdstream.errors import UserError
from kdstream.recipe import FREE, Recipe, at_home, make_recipe, merge, model_of, public_quoted
from kdstream.registry import nearest
from kdstream.safe_yaml import MOST_LEVELS, line_of, parse_yaml, read_yaml

RECIPES = Path(__file__).parent / "recipes"
SETTINGS = RECIPES / "settings"
"""What recipes and tables build on: parts of recipes."""
CLAIMS = RECIPES / "claims"
"""What the papers claim, each as a small table of trainings that decide it."""


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by file or by the name of one that comes with kdstream, with overrides.

    Args:
        name: path of a YAML file, or such as ``quickstart``.
        overrides: ``key=value`` with a dotted key and a value in YAML: ``optimizer.lr=0.1``, ``loss={ce: 1, kd: 4}``.

    Raises:
        UserError: no such recipe, bad YAML, unknown or wrong settings, a table of many recipes.
    """
    path = find_recipe(name)
    settings = read_recipe(path)
    if is_table(settings):
        raise UserError(f"{public_quoted(name)} is a table of many recipes: `kdstream table {name}` runs it")
    if SETTINGS in path.parents:
        settings.pop("coded", None)
    settings = with_bases(settings, path)
    settings.setdefault("name", name_of(path))
    changed = _teacher_as_written(settings, apply_overrides(settings, overrides), path.name)

    def place(keys: Sequence[str | int]) -> str:
        """Not of what an override says."""
        dotted = ".".join(map(str, keys))
        said = {one.partition("=")[0] for one in overrides}
        line = None if any(f"{dotted}.".startswith(f"{key}.") for key in said) else line_of(path, keys)
        return "" if line is None else f"line {line}: "

    recipe = make_recipe(changed, path.name, place)
    changes = [one for one in overrides if one.partition("=")[0] not in set(FREE) - {"runs"}]
    if changes and recipe.out is None:
        # Another job than the recipe as it stands: it gets a folder of its own, named by what was changed.
        recipe.out = f"runs/{recipe.name},{_suffix(recipe.name, sorted(map(public, changes)))}"
    return recipe


def _suffix(name: str, changes: Sequence[str]) -> str:
    """What tells the folder of a recipe with changes from others: the changes; of many, as many as there is room for,
    without their groups, and six digits of the hash of all."""
    whole = re.sub(r"[^\w.=+-]+", "_", ",".join(changes))
    if len(whole) <= 80:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()
    if Path(f"runs/{name},{digest[:12]}").is_dir():  # as earlier versions called it
        return digest[:12]
    shown = ""
    for change in changes:
        key, _, value = change.partition("=")
        text = re.sub(r"[^\w.=+-]+", "_", f"{key.rpartition('.')[2]}={value}")
        if len(shown) + len(text) < 40:
            shown += f"{text},"
    return f"{shown}{digest[:6]}"


OF_THE_TEACHER = ("teacher", "data", "seed", "precision", "channels_last", "compile")
"""Settings that count for the teacher's training, too, where an override changes them."""
_ALONE = ("student", "assistants", "loss", "export", "export_network", "export_all", "ema", "early_stop", "runs", *FREE)
"""Settings that a teacher's training does not take from the recipe, or that decide nothing of it."""


def _teacher_as_written(written: Mapping[str, Any], changed: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """The settings after the overrides, with a teacher that is trained by the recipe as its file has it.

    What overrides change for the student (``optimizer.lr=0.01``, ``epochs=30``, ``batch_size=32``, ``stream=...``)
    would otherwise train another teacher, unasked: these settings are put into ``teacher.train`` as the file has them.
    Those of :data:`OF_THE_TEACHER` count for both.
    """
    keys = students_own(written, changed)
    if not keys or not _are_trained(changed.get("teacher")):
        return changed
    before = {key: value for key, value in changed.items() if key not in keys}
    before |= {key: written[key] for key in keys if key in written}
    kept = make_recipe(before, what).model_dump(mode="json", include=set(keys))
    return {**changed, "teacher": _trained_by(kept, changed["teacher"])}


def _are_trained(teacher: Any) -> bool:
    """Whether a teacher, or one of several, is trained by the recipe."""
    if isinstance(teacher, list):
        return any(map(_are_trained, teacher))
    if not isinstance(teacher, Mapping):
        return False
    return isinstance(teacher.get("train"), Mapping) or _are_trained(teacher.get("others"))


def _trained_by(kept: Mapping[str, Any], teacher: Any) -> Any:
    """A teacher, or a list of them, with these settings under those of each ``train``."""
    if isinstance(teacher, list):
        return [_trained_by(kept, one) for one in teacher]
    if not isinstance(teacher, Mapping):
        return teacher
    found = dict(teacher)
    if isinstance(found.get("train"), Mapping):
        found["train"] = merge(kept, found["train"])
    if isinstance(found.get("others"), list):
        found["others"] = _trained_by(kept, found["others"])
    return found


def students_own(written: Mapping[str, Any], changed: Mapping[str, Any]) -> list[str]:
    """The settings that overrides have changed for the student and not for a teacher that is trained."""
    keys = sorted({*written, *changed} & Recipe.model_fields.keys() - {*OF_THE_TEACHER, *_ALONE})
    return [key for key in keys if written.get(key) != changed.get(key)]


# --- files


def find_recipe(name: str) -> Path:
    """The file of a recipe (or table): one at that path, or one of kdstream's by its name.

    Raises:
        UserError: neither; the nearest name.
    """
    path = Path(name)
    if is_file(path):
        return path
    path = RECIPES / f"{name}.yaml"
    if is_file(path):
        return path
    there = f"; {public_quoted(name)} is no regular file" if _exists(Path(name)) else ""
    near = nearest(name, known_recipes())
    near = near if near.startswith("did you mean") else "quickstart, and what kdstream tables lists"
    hint = f"({near}){there}"
    raise UserError(f"no recipe {public_quoted(name)}: neither a file nor one of kdstream's {hint}")


def known_recipes() -> list[str]:
    """The names of all files that come with kdstream: recipes, settings, tables."""
    return sorted(name_of(path) for path in RECIPES.rglob("*.yaml"))


def name_of(path: Path) -> str:
    """The name by which a file of kdstream's is found; of other files, that without folder and ending."""
    own = RECIPES in path.parents
    return path.relative_to(RECIPES).with_suffix("").as_posix() if own else path.stem


def is_table(settings: Mapping[str, Any]) -> bool:
    """Whether a file holds a paper's table, and no single recipe."""
    return "paper" in settings


def read_recipe(path: Path) -> dict[str, Any]:
    """What a file holds, as it stands there.

    Raises:
        UserError: a file that cannot be read, or is no mapping.
    """
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: a recipe is a YAML mapping such as 'student: resnet8'")
    return settings


def with_bases(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A file's settings laid over those that its ``base`` names, which is a key of files and not of recipes.

    ``coded`` of a base, the text of a coded stage, is for tables: a recipe writes the stage into its stream.

    Args:
        settings: what the file holds.
        path: of the file: bases are looked for beside it first.

    Raises:
        UserError: see :func:`read_bases`.
    """
    own = {key: value for key, value in settings.items() if key != "base"}
    found = read_bases(settings.get("base"), path, path.name)
    found.pop("coded", None)
    return lay(found, own)


def read_bases(names: Any, path: Path, what: str, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The files of a ``base``, each laid over the one before it.

    Args:
        names: a name or a list of names: a path relative to the file, or one of kdstream's files by name; None = none.
        path: the file in which they stand.
        what: names that place in messages.
        within: the files that led here.

    Raises:
        UserError: no such file, a circle, a file that is no mapping, a table.
    """
    names = [names] if isinstance(names, str) else [] if names is None else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{what}: base: it is a list of recipes, as [settings/cifar100]")
    within = (*within, path.resolve())
    merged: dict[str, Any] = {}
    for name in names:
        one = _find_base(name, path, what)
        if one.resolve() in within:
            way = " -> ".join(map(name_of, (*within[within.index(one.resolve()) :], one)))
            raise UserError(f"{what}: base goes round in a circle: {way}")
        settings = read_recipe(one)
        if is_table(settings):
            raise UserError(f"{what}: base: {public_quoted(name)} is a table, no recipe to build on")
        deeper = read_bases(settings.pop("base", None), one, str(one), within)
        merged = lay(merged, lay(deeper, settings))
    merged.pop("name", None)
    return merged


def _find_base(name: str, path: Path, what: str) -> Path:
    places = (path.parent / name, path.parent / f"{name}.yaml", RECIPES / f"{name}.yaml")
    if found := next(filter(is_file, places), None):
        return found
    hint = nearest(name, known_recipes())
    raise UserError(f"{what}: base: no file {public_quoted(name)} beside it, nor one of kdstream's ({hint})")


def lay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid over it as :func:`kdstream.recipe.merge` does; a student or teacher in one word
    replaces the network and keeps the rest of its group."""
    base, over = dict(base), dict(over)
    if isinstance(base.get("data"), str) and isinstance(over.get("data"), Mapping):
        base["data"] = {"path": base["data"]}
    for role in ("student", "teacher"):
        if isinstance(base.get(role), str) and isinstance(over.get(role), Mapping):
            base[role] = model_of(base[role])
        if isinstance(base.get(role), Mapping) and isinstance(over.get(role), str):
            over[role] = _another(base[role], over[role])
    return merge(base, over)


def _another(group: Mapping[str, Any], network: str) -> dict[str, Any]:
    """Another network, the rest of the group as it was; how to train it goes where weights come, save published ones,
    for which it stands in. The name of these says which network they are for."""
    given = model_of(network)
    if "weights" in given and _says_its_network(given["weights"]) and ":" not in str(group.get("model")):
        group = {key: value for key, value in group.items() if key not in ("model", "options")}
    rest = {**group, **given}
    if is_published(rest.get("weights")):
        without: tuple[str, ...] = ("model", "options") if "weights" in given else ("weights",)
    else:
        without = () if rest.get("weights") is None else ("train",)
    return {key: value for key, value in rest.items() if key not in without}


def _says_its_network(weights: str) -> bool:
    """Whether it is an export of kdstream's, which names the network."""
    place = Path(at_home(weights))
    return is_file(place / "student.json") or (
        place.suffix in (".json", ".safetensors") and is_file(place.with_suffix(".json"))
    )


def is_file(path: Path) -> bool:
    """Whether there is such a file; a text that can be no path is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


# --- overrides


def apply_overrides(settings: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``settings`` with each ``key=value`` put in its place, the last one counting.

    Raises:
        UserError: what is no override, or leads through a setting that is no group.
    """
    settings = dict(settings)
    for override in overrides:
        keys, value = parse_override(override)
        settings = _put(settings, keys, value, override)
    return settings


def parse_override(override: str) -> tuple[list[str], Any]:
    """The names and the value of a ``key=value``.

    Raises:
        UserError: it is none.
    """
    key, equals, text = override.partition("=")
    shown = public_quoted(override)
    if not equals or not key:
        raise UserError(f"{shown} is no override: write key=value, as in optimizer.lr=0.1")
    if not text.strip():
        raise UserError(f"{shown} has no value: write {public_quoted(key)[1:-1]}=null to clear it")
    keys = key.split(".")
    if not all(keys) or len(keys) > MOST_LEVELS:
        raise UserError(f"{shown} is no override: a dot stands between two names, as in optimizer.lr=0.1")
    return keys, parse_yaml(text, f"{shown}: the value is")


def _put(
    settings: dict[str, Any], keys: Sequence[str], value: Any, override: str, within: str | None = None
) -> dict[str, Any]:
    """``settings`` with the value at a dotted key. A shorthand on the way (``student: resnet8``) becomes a group."""
    inner = settings.get(keys[0])
    if len(keys) == 1:
        if keys[0] in ("student", "teacher") and isinstance(inner, dict) and isinstance(value, str):
            value = _another(inner, value)
        return {**settings, keys[0]: value}
    if isinstance(inner, str) and keys[0] in ("student", "teacher"):
        inner = model_of(inner)
    elif isinstance(inner, str) and keys[0] == "loss":
        inner = {inner: 1.0}
    elif isinstance(inner, str) and keys[0] == "data" and within is None:
        inner = {"path": inner}
    elif within == "loss" and isinstance(inner, int | float):
        inner = {"weight": inner}
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise UserError(f"{public_quoted(override)}: {keys[0]} is not a group of settings")
    return {**settings, keys[0]: _put(inner, keys[1:], value, override, keys[0])}
