"""A student's model card: README.md beside it, written from what its training left; the front matter is the Hub's."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import kdstream
from kdstream.addresses import is_published, is_url, public
from kdstream.analysis.spread import Spread
from kdstream.api.int8 import Int8, images_of, recipe_of
from kdstream.atomic import write_atomic, writing
from kdstream.cli.objectives import source, title
from kdstream.convert.open_source import is_source
from kdstream.errors import UserError
from kdstream.models.given import class_of, is_given
from kdstream.models.onnx_export import OnnxFile
from kdstream.models.specs import runs_code
from kdstream.notes import About
from kdstream.objectives import OBJECTIVES
from kdstream.recipe import Recipe
from kdstream.terminal import visible
from kdstream.training.chains import evaluation_chain
from kdstream.training.seeds import RESULTS
from kdstream.training.teacher_check import TEACHER_FILE

CARD = "README.md"
MARK = "<!-- written by kdstream export, which writes it anew; without this line it is left as it is -->"
"""By which a card of ours is known; another README.md is left alone."""
MOST_CLASSES = 100
"""So many class names a card lists."""


@dataclass(frozen=True)
class Facts:
    """What a card is written from.

    Attributes:
        about: the content of ``student.json``.
        recipe: of the training, where the export says.
        result: of the training, as ``result.json`` has it; empty for one that is not finished.
        seeds: what the run's trainings by several seeds reach together, as ``results.json`` has it; may be empty.
        teacher_top1: percent: of the validation split, where it was measured there, else as its export says.
        counts: images of the training and the validation split, with the latter's name, where the data is there.
        onnx, int8: the files that were written beside.
        hub: ``user/name``, where it is uploaded.
        licence: of the weights, as the Hub spells it.
    """

    about: About
    recipe: Recipe | None
    result: Mapping[str, Any]
    seeds: Mapping[str, Any]
    teacher_top1: float | None
    counts: tuple[int, int, str] | None
    onnx: OnnxFile | None = None
    int8: Int8 | None = None
    hub: str | None = None
    licence: str | None = None


def gather(folder: Path, about: About, **more: Any) -> Facts:
    """What the folder of a training tells of its student; what is not there is left out.

    Args:
        folder: with ``student.json``.
        about: its content.
        more: ``onnx``, ``int8``, ``hub``, ``licence`` of :class:`Facts`.

    Raises:
        UserError: a licence that cannot be one's name.
    """
    licence = more.get("licence")
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise UserError(f"--license {licence}: as the Hub spells it, such as apache-2.0, mit, cc-by-4.0, other")
    recipe, result = recipe_of(about), (about.get("extra") or {}).get("result") or {}
    counts = None
    # Nothing is fetched or converted for a card.
    if recipe is not None and not is_url(recipe.data.path) and not is_source(recipe.data.path):
        with contextlib.suppress(UserError):
            train, val = images_of(recipe)
            counts = (len(train), len(val), val.split)
    run = str(result.get("name", "")).rpartition(", seed ")[0]
    seeds: Mapping[str, Any] = {}
    teacher_top1 = None
    for place in (folder, folder.parent, folder.parent.parent):
        seeds = seeds or (_read(place / RESULTS).get("runs", {}).get(run, {}) if run else {})
        teacher_top1 = _read(place / TEACHER_FILE).get("top1") if teacher_top1 is None else teacher_top1
    if teacher_top1 is None:
        teacher_top1 = ((about.get("extra") or {}).get("teacher") or {}).get("top1")
    if not isinstance(teacher_top1, int | float):
        teacher_top1 = None
    return Facts(about, recipe, result, seeds, teacher_top1, counts, **more)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_card(folder: Path, facts: Facts) -> Path | None:
    """Write the card to ``folder``; None where another README.md stands there, which stays.

    Raises:
        DiskError: it cannot be written.
    """
    path = folder / CARD
    with writing(path):
        if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
            return None
        write_atomic(path, card(facts).encode())
    return path


def card(facts: Facts) -> str:
    """The card, as Markdown with YAML front matter. What the recipe and the data name is shown as text."""
    parts = [_front(facts), MARK, f"# {_heading(facts)}", *_parts(facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _parts(facts: Facts) -> Iterator[str]:
    recipe = facts.recipe
    yield (
        f"An image classifier, {_text(_network(facts))}"
        + (f" with {facts.result['params']:,} parameters" if "params" in facts.result else "")
        + f", trained with kdstream {kdstream.__version__}."
    )
    if which := (facts.about.get("extra") or {}).get("checkpoint"):
        so_far = {"last": "those of its last checkpoint", "best": "those of its best epoch so far"}.get(which, "so far")
        yield f"The training was not finished: these weights are {so_far}."
    yield "## Numbers"
    yield "\n".join(_numbers(facts))
    if recipe is not None:
        yield "## Data"
        yield _data(facts, recipe)
    yield _classes(facts)
    if recipe is not None:
        yield "## Method"
        yield "\n".join(_method(facts, recipe))
    yield "## Preprocessing"
    yield "\n".join(_preprocessing(facts))
    yield "## How to load"
    yield _loading(facts)
    yield "## Licence"
    yield _licence(facts)


# --- the parts


def _front(facts: Facts) -> str:
    """The Hub's metadata: dumped, so that no name can become another key."""
    tags = ["kdstream", "image-classification", *(["knowledge-distillation"] if _teacher(facts) else [])]
    front: dict[str, Any] = {"library_name": "kdstream", "pipeline_tag": "image-classification"}
    if facts.licence is not None:
        front["license"] = facts.licence
    front |= {"tags": [*tags, *(["onnx"] if facts.onnx else [])], "metrics": ["accuracy"]}
    top1 = facts.result.get("top1")
    if facts.recipe is not None and top1 is not None:
        data = _data_name(facts.recipe)
        split = facts.counts[2] if facts.counts else facts.recipe.data.val or "validation"
        split = facts.int8.split.rpartition("/")[2] if facts.int8 else split
        metric = {"type": "accuracy", "name": f"top-1, %, {_epoch(facts)}", "value": round(float(top1), 2)}
        found = {
            "task": {"type": "image-classification"},
            "dataset": {"name": data, "type": re.sub(r"[^\w.-]+", "-", data), "split": split},
            "metrics": [metric],
        }
        front["model-index"] = [{"name": visible(facts.recipe.name), "results": [found]}]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---"


def _heading(facts: Facts) -> str:
    what = _text(_network(facts))
    if facts.recipe is None:
        return what
    teacher = _teacher(facts)
    return (
        f"{what}, {f'distilled from {_text(teacher)}' if teacher else 'trained'} on {_text(_data_name(facts.recipe))}"
    )


def _numbers(facts: Facts) -> Iterator[str]:
    result, seeds, int8 = facts.result, facts.seeds, facts.int8
    rows: list[tuple[str, str]] = []
    if "top1" in result:
        rows.append((f"these weights, {_epoch(facts)}", f"{result['top1']:.2f}"))
        if _exports_last(facts) and result["best_epoch"] != result["epochs"]:
            best = f"best epoch ({result['best_epoch']}), which these images chose; not these weights"
            rows.append((best, f"{result['best_top1']:.2f}"))
    if seeds:
        count = len(seeds["seeds"])
        by = f"mean{'' if count == 1 else ' ± standard deviation'} over {count} seed{'' if count == 1 else 's'}"
        for name, what in (("top1", _which(facts)), ("best_top1", "best epoch of each")):
            rows.append((f"{by}, {what}", str(Spread(count, seeds[name]["mean"], seeds[name]["std"]))))
    if facts.teacher_top1 is not None:
        rows.append(("its teacher", f"{facts.teacher_top1:.2f}"))
    if int8 is not None:
        rows.append((f"`{facts.onnx.path.name}`, float32" if facts.onnx else "float32", f"{int8.float_top1:.2f}"))
        rows.append((f"`{int8.path.name}`, int8", f"{int8.top1:.2f}"))
    if not rows:
        yield "The training is not finished, or the export does not say what it reached: no number is known."
        return
    where = "the validation split"
    if facts.counts is not None:
        where = f"{facts.counts[1]:,} images, split {_text(facts.counts[2])}"
    elif int8 is not None:
        where = f"{int8.samples:,} images, {_text(int8.split)}"
    yield f"| on {where} | top-1, % |"
    yield "|---|---:|"
    yield from (f"| {what} | {value} |" for what, value in rows)
    if facts.recipe is not None:
        yield ""
        yield f"Seed of these weights: {facts.recipe.seed}."
    if int8 is not None:
        yield ""
        yield (
            f"int8 gives the class of float32 for {int8.same:.1f} % of the images; its file has "
            f"{int8.size / int8.float_size:.2f} of the size, one image takes {int8.time_ratio:.2f} of the time "
            f"(onnxruntime on the CPU that wrote this). Calibrated on {int8.images:,} training images, without "
            "augmentation."
        )


def _data(facts: Facts, recipe: Recipe) -> str:
    data = recipe.data
    what = [f"Trained on {_text(_data_name(recipe))}"]
    if facts.counts is not None:
        what.append(f"{facts.counts[0]:,} images, validated on {facts.counts[1]:,} others ({_text(facts.counts[2])})")
    if data.hold_out is not None:
        what.append(f"{data.hold_out:g} of the training split held out for validation")
    if data.per_class is not None:
        what.append(f"{data.per_class} images of each class")
    if data.label_noise is not None:
        what.append(f"{data.label_noise:g} of the labels replaced at random")
    if data.imbalance is not None:
        what.append("made imbalanced by a power law")
    return "; ".join(what) + "."


def _classes(facts: Facts) -> str:
    classes = facts.about.get("classes")
    if classes is None:
        return f"{facts.about['spec']['num_classes']} classes, without names."
    more = f", ... ({len(classes) - MOST_CLASSES} more in `student.json`)" if len(classes) > MOST_CLASSES else ""
    names = ", ".join(_text(name) for name in classes[:MOST_CLASSES])
    return f"{len(classes)} classes, in the order of the logits: {names}{more}."


def _method(facts: Facts, recipe: Recipe) -> Iterator[str]:
    teacher = _teacher(facts)
    if teacher:
        wanted = recipe.teacher
        given = wanted.weights if wanted is not None else None
        own_images = wanted is not None and "data" in (wanted.train or {})
        how = f"trained for it on {'other images of this set' if own_images else 'the same images'}"
        if given is not None:
            how = f"weights {_code(public(given) if is_published(given) or is_url(given) else Path(given).name)}"
        yield f"Teacher: {_text(teacher)}, {how}."
        if recipe.assistants:
            names = ", ".join(_text(str(one.model or one.weights)) for one in recipe.assistants)
            yield f"Between them, one learning from the other: {names}."
        yield ""
    yield "| term of the loss | weight | what | paper |"
    yield "|---|---:|---|---|"
    for name, value in recipe.loss.items():
        settings = dict(value) if isinstance(value, Mapping) else {"weight": value}
        weight = settings.pop("weight", None)
        what, paper = "code of its author's own", ""
        if name in OBJECTIVES:
            term = OBJECTIVES.find(name)
            what, paper = title(term)[0].partition(":")[0], source(term)
        with_settings = f" {_code(json.dumps(settings))}" if settings else ""
        yield f"| `{name}`{with_settings} | {'-' if weight is None else weight} | {_text(what)} | {_text(paper)} |"
    optimizer, schedule = recipe.optimizer, recipe.schedule
    yield ""
    yield f"Training stream: {_code(recipe.stream)}"
    yield ""
    yield (
        f"{recipe.epochs} epochs, batches of {recipe.batch_size}, {_text(optimizer.name)} with learning rate "
        f"{optimizer.lr:g}, schedule {schedule.name}. `student.json` has the whole recipe."
    )


def _preprocessing(facts: Facts) -> Iterator[str]:
    about, size = facts.about, facts.about.get("image_size")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        yield f"- RGB images of {width} x {height} pixels, in [0,1]"
    if facts.recipe is not None:
        with contextlib.suppress(UserError):  # a stage of somebody's own that is not here
            yield f"- evaluated by {_code(str(evaluation_chain(facts.recipe)).replace('()', ''))}"
    mean, std = about.get("mean"), about.get("std")
    if mean is not None and std is not None:
        shown = (", ".join(f"{one:.4f}" for one in values) for values in (mean, std))
        yield "- standardised by channel: mean {}; std {}".format(*shown)
    if facts.onnx is not None:
        yield f"- `{facts.onnx.path.name}` takes {_text(facts.onnx.takes)}"


def _loading(facts: Facts) -> str:
    lines = ["```python", "import kdstream"]
    if facts.hub is not None:
        lines += ["from huggingface_hub import snapshot_download", "", f'folder = snapshot_download("{facts.hub}")']
    else:
        lines += ["", 'folder = "."  # where this file lies']
    spec = facts.about["spec"]
    if is_given(spec["name"]):
        lines.append(
            f"student = kdstream.load_student(folder, module=...)  # a {_bare(class_of(spec))}, whose code you have"
        )
    elif runs_code(spec):
        lines.append(f"# this imports, and so runs, {_bare(spec['name'])}, which must be there")
        lines.append("student = kdstream.load_student(folder, trust_code=True)")
    else:
        lines.append("student = kdstream.load_student(folder)")
    lines += ['print(student.predict("picture.jpg"))', "```"]
    if facts.onnx is not None:
        name = facts.onnx.path.name
        lines += [
            "",
            "Without kdstream, by onnxruntime (images as under Preprocessing):",
            "",
            "```python",
            "import onnxruntime",
            "",
            f'session = onnxruntime.InferenceSession(folder + "/{name}")',
            'logits = session.run(["logits"], {"images": images})[0]  # float32 [n,3,H,W] -> [n,classes]',
            "```",
        ]
    return "\n".join(lines)


def _licence(facts: Facts) -> str:
    own = f"`{facts.licence}`" if facts.licence else "not stated"
    lines = [f"- of these weights: {own}", "- of the training data: see its source; it may bind these weights too"]
    if _teacher(facts) and facts.recipe is not None and facts.recipe.teacher and facts.recipe.teacher.weights:
        lines.append("- of the teacher's weights: see their source; likewise")
    return "\n".join(lines)


# --- words


def _network(facts: Facts) -> str:
    spec = facts.about["spec"]
    return _named(str(facts.result.get("model") or (facts.recipe and facts.recipe.student.model) or spec["name"]))


def _teacher(facts: Facts) -> str | None:
    """The teacher's network, where the loss looks at one."""
    recipe = facts.recipe
    if recipe is None or recipe.teacher is None:
        return None
    if not any(OBJECTIVES.find(name).uses_teacher if name in OBJECTIVES else True for name in recipe.loss):
        return None
    return _named(recipe.teacher.model or Path(public(str(recipe.teacher.weights))).name)


def _named(model: str) -> str:
    """A network's name; of one that was given as an object, its class's."""
    return class_of({"name": model}) if is_given(model) else model


def _data_name(recipe: Recipe) -> str:
    """Without where it lies on somebody's disk."""
    data = recipe.data
    if data.source is not None and ":" not in data.source:
        return visible(data.source)
    return visible(Path(public(data.path).rpartition(":")[2]).name or "its data")


def _exports_last(facts: Facts) -> bool:
    return facts.recipe is None or facts.recipe.export == "last"


def _which(facts: Facts) -> str:
    return "last epoch" if _exports_last(facts) else "best epoch, which these images chose"


def _epoch(facts: Facts) -> str:
    number = facts.result.get("epochs" if _exports_last(facts) else "best_epoch")
    return _which(facts).replace("epoch", f"epoch ({number})", 1)


def _text(value: object) -> str:
    """As text that is no markup: in one line, on no page a link or an HTML tag."""
    return re.sub(r"([\\`*_{}\[\]<>|#!~$&])", r"\\\1", visible(value))


def _bare(value: object) -> str:
    """Within a block of code, which it cannot end."""
    return visible(value).replace("`", "'")


def _code(value: object) -> str:
    """As code in one line; a fence longer than what is in it. Bars would end a table's cell."""
    shown = visible(value)
    fence = "`" * (1 + max([len(run) for run in re.findall("`+", shown)], default=0))
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}"
