"""The setting of a comparison: data, networks, stream and schedule that all methods share, and the recipe of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdstream.errors import UserError
from kdstream.models import from_hf
from kdstream.models.pretrained import brings_weights
from kdstream.objectives.loss import OBJECTIVES
from kdstream.recipe import Recipe, make_recipe, merge, model_of
from kdstream.recipe_file import (
    RECIPES,
    apply_overrides,
    find_recipe,
    is_file,
    is_table,
    known_recipes,
    name_of,
    parse_override,
    read_recipe,
    with_bases,
)
from kdstream.registry import nearest
from kdstream.stream.language import parse_calls
from kdstream.terminal import quoted
from kdstream.training.comparing.methods import Method
from kdstream.training.tables.cells import TEACHING, with_coded_stage

SMALL = 64
"""Images of one size up to this are drawn as CIFAR's are; all others are photographs."""
_LEFT_OUT = ("loss", "runs", "seeds", "out", "name", "assistants")


@dataclass(frozen=True)
class Setting:
    """What all methods share.

    Attributes:
        name: of the comparison, for its folder.
        settings: of a recipe, without a loss.
        own_losses: ``loss.TERM.KEY=value`` of the command line, for the methods that have the term.
        coded: the coded stage, as text.
        notes: what was filled in or left out, for people.
        photographs: whether the images are.
    """

    name: str
    settings: dict[str, Any]
    own_losses: tuple[str, ...]
    coded: str
    notes: tuple[str, ...] = ()
    photographs: bool = False

    @property
    def teacher(self) -> str:
        """The teacher's name, or place."""
        return _called(self.settings.get("teacher"))

    @property
    def student(self) -> str:
        """The student's."""
        return _called(self.settings.get("student"))

    def recipe(self, method: Method, own: Sequence[str] = ()) -> Recipe:
        """How a method trains the student.

        Args:
            method: the method.
            own: ``key=value`` for it alone; the teacher is the shared one all the same.

        Raises:
            UserError: settings that no recipe has.
        """
        what = f"method {method.name}"
        settings = {**self.settings, "teacher": self._teacher() if method.uses_teacher else None, "loss": method.loss}
        if method.coded:
            settings["stream"] = with_coded_stage(settings["stream"], self.coded)
        terms = [one for one in self.own_losses if parse_override(one)[0][1] in method.loss]
        return make_recipe(apply_overrides(settings, [*terms, *own]), what)

    def _teacher(self) -> dict[str, Any]:
        """The teacher with all that it is trained by."""
        teacher = dict(self.settings["teacher"])
        if teacher.get("train") is None:
            return teacher
        shared = make_recipe({**self.settings, "teacher": None}, "compare").model_dump(
            mode="json", include=set(TEACHING)
        )
        return {**teacher, "train": merge({**shared, "loss": {"ce": 1.0}}, teacher["train"])}

    def held_out(self, share: float) -> Setting:
        """The same with a part of the training split in the validation split's place."""
        data = {**self.settings["data"], "hold_out": share}
        return Setting(
            self.name, {**self.settings, "data": data}, self.own_losses, self.coded, self.notes, self.photographs
        )


def _called(network: Any) -> str:
    group = model_of(network) if isinstance(network, str) else dict(network or {})
    return str(group.get("model") or group.get("weights"))


def read_setting(place: str, teacher: str | None, student: str | None, overrides: Sequence[str], delta: int) -> Setting:
    """What the command line says, before anything is known of the images.

    Args:
        place: a data set's folder, or a recipe by file or name: its data, networks, stream and schedule.
        teacher, student: names, or weights; None = the recipe's.
        overrides: ``key=value``.
        delta: between the qualities of the coded stage, where the stream has none of its own.

    Raises:
        UserError: neither folder nor recipe; a network is missing; settings that are not for all methods alike.
    """
    shared: list[str] = []
    losses: list[str] = []
    for override in overrides:
        keys, _ = parse_override(override)
        if keys[0] == "loss" and len(keys) == 1:
            raise UserError(
                f"{quoted(override)}: the methods are the losses; loss.TERM.SETTING=... changes one of theirs"
            )
        if keys[0] in _LEFT_OUT[1:]:
            instead = {"seeds": "--seeds", "out": "--out", "runs": "--methods"}.get(keys[0], "leave it out")
            raise UserError(f"{quoted(override)} is not for a comparison: {instead}")
        (losses if keys[0] == "loss" else shared).append(override)
    notes = []
    settings: dict[str, Any]
    if _is_recipe(place):
        path = find_recipe(place)
        settings = read_recipe(path)
        if is_table(settings):
            raise UserError(f"{quoted(place)} is a paper's table: kdstream table {place} runs it")
        settings = with_bases(settings, path)
        if settings.get("assistants"):
            raise UserError(f"{quoted(place)}: a comparison has no assistants: leave them out")
        if dropped := [key for key in ("loss", "runs") if settings.get(key)]:
            notes.append(f"{' and '.join(dropped)} of {name_of(path)} left out: the methods take their place")
        name = name_of(path).replace("/", "-")
    else:
        settings, name = {"data": {"path": place}}, Path(place).name
    settings = {key: value for key, value in settings.items() if key not in _LEFT_OUT}
    for role, given in (("teacher", teacher), ("student", student)):
        if given is not None:
            settings[role] = model_of(given)
    settings = apply_overrides(settings, shared)
    if isinstance(settings.get("data"), str):
        settings["data"] = {"path": settings["data"]}
    for role in ("teacher", "student"):
        if isinstance(settings.get(role), str):
            settings[role] = model_of(settings[role])
        if not isinstance(settings.get(role), Mapping) or not (
            settings[role].get("model") or settings[role].get("weights")
        ):
            raise UserError(
                f"which {role}? name a network, as --{role} {'resnet34' if role == 'teacher' else 'resnet18'}"
            )
    wanted = settings["teacher"]
    if "train" not in wanted and not wanted.get("weights") and not str(wanted["model"]).startswith(from_hf.PREFIX):
        settings["teacher"] = {**wanted, "train": {}}
        if brings_weights(str(wanted["model"]), wanted.get("options") or {}):
            notes.append("teacher.train={}: its last layer is new; teacher.train=null takes it as it is")
    coded = f"coded(hkl, delta={delta}, plan=auto)"
    if isinstance(settings.get("stream"), str):
        calls = parse_calls(settings["stream"])
        if own := [str(call) for call in calls if call.name == "coded"]:
            coded = own[0]
            settings["stream"] = " | ".join(str(call) for call in calls if call.name != "coded")
            notes.append(f"coded stage of the stream: {coded}")
    return Setting(name, settings, tuple(losses), coded, tuple(notes))


def _is_recipe(place: str) -> bool:
    path = Path(place)
    if is_file(path):
        return True
    if path.is_dir() or (path.suffix not in (".yaml", ".yml") and not is_file(RECIPES / f"{place}.yaml")):
        return False
    find_recipe(place)  # says what is wrong where it is none
    return True


def need_place(setting: Setting, place: str) -> None:
    """That there is something to read, or to make it of.

    Raises:
        UserError: neither.
    """
    data = setting.settings.get("data") or {}
    path = data.get("path") if isinstance(data, Mapping) else None
    if path is None:
        raise UserError(f"{quoted(place)} says nothing of its data: add data.path=FOLDER")
    if not Path(str(path)).is_dir() and not dict(data).get("source"):
        near = nearest(place, known_recipes())
        hint = f"; {near}" if near.startswith("did you mean") else ""
        raise UserError(f"{quoted(str(path))} is no folder of shards, and no recipe: kdstream shards makes one{hint}")


def completed(setting: Setting, image_size: tuple[int, int] | None) -> Setting:
    """The setting with what the images suggest, where it is open, and notes of that.

    Args:
        setting: as it was read.
        image_size: (height, width) of all training images; None where they differ.
    """
    settings, notes = dict(setting.settings), list(setting.notes)
    small = image_size is not None and max(image_size) <= SMALL
    if image_size is None or not small:
        side = 224 if image_size is None else min(224, *image_size)
        stream, epochs, decay, kind = f"decode | augment(inception, {side})", 60, 1e-4, "photographs"
    else:
        pad = max(1, min(image_size) // 8)
        stream, epochs, decay = f"decode | augment(cifar, pad={pad})", 120, 5e-4
        kind = f"images of {image_size[1]} x {image_size[0]}"
    if "stream" not in settings:
        settings["stream"] = stream
        notes.append(f"stream={stream} for {kind}" + ("; flip=false where left and right matter" if small else ""))
    if "epochs" not in settings:
        settings["epochs"] = epochs
        notes.append(f"epochs={epochs}: fewer are faster and say less")
    if "optimizer" not in settings:
        settings["optimizer"] = {"lr": 0.05, "weight_decay": decay}
        notes.append(f"optimizer={{lr: 0.05, weight_decay: {decay}}}")
    if "schedule" not in settings:
        warmup = min(2.0, settings["epochs"] / 20) if isinstance(settings["epochs"], int) else 0.0
        settings["schedule"] = {"name": "cosine", "warmup": round(warmup, 2)}
        notes.append(f"schedule={{name: cosine, warmup: {round(warmup, 2):g}}}")
    return Setting(setting.name, settings, setting.own_losses, setting.coded, tuple(notes), not small)


def need_terms(setting: Setting, methods: Sequence[Method]) -> None:
    """That every ``loss.TERM...`` of the command line is of some method.

    Raises:
        UserError: the first one that is of none.
    """
    terms = sorted({term for method in methods for term in method.loss})
    for override in setting.own_losses:
        term = parse_override(override)[0][1]
        if term not in terms:
            known = f"no method with {term}" if term in OBJECTIVES else nearest(term, terms)
            raise UserError(f"{quoted(override)}: {known}; the methods' terms: {', '.join(terms)}")
