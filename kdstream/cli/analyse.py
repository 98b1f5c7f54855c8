"""``kdstream analyse``: what the papers' figures show, of any networks: tables, one page of figures, JSON."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from kdstream.bars import progress_bars
from kdstream.cli.frame import CommandParser, command_parser, find_own_modules, run_command
from kdstream.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from kdstream.analysis.asked import Asked
    from kdstream.batch import Batch
    from kdstream.data.shards import ShardSet
    from kdstream.display.figures_page import FiguresPage

EXAMPLES = """examples:
  kdstream analyse curves KD=runs/kd WTTM=runs/wttm
  kdstream analyse selection runs/teacher --image 17 cat.jpg --label cat
  kdstream analyse transfer runs/kd runs/at --teacher runs/teacher --limit 1000
  kdstream analyse robustness runs/kd runs/cmkd --corrupted shards/cifar100c
  kdstream analyse logits runs/kd runs/cmkd --teacher published:resnet56@cifar100 --data shards/cifar100
  kdstream analyse embedding runs/kd runs/cmkd --limit 1000

A network is a run's folder, another export, a file of weights, published:NAME, or resnet18, timm:NAME (their library's
weights). Images are those of the first run's recipe unless --data names others. kdstream analyse WHAT --help says more.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    return run_command(_parser, lambda options: options.run(options), arguments, "nothing written")


def _parser() -> CommandParser:
    parser = command_parser("analyse", __doc__, EXAMPLES)
    kinds = parser.add_subparsers(title="analyses", metavar="WHAT", required=True, parser_class=CommandParser)
    one = _kind(kinds, "curves", "entropy, divergence, correlation, accuracy by epoch, from the logs", _curves)
    _add_runs(one, "run folders")
    one = _kind(kinds, "selection", "KL, H and P of one image at every JPEG quality, and the choice", _selection)
    _add_networks(one, "a teacher", single=True, split="train")
    one.add_argument("--image", nargs="+", default=["0"], metavar="N", help="numbers in the split, or image files")
    one.add_argument("--label", metavar="CLASS", help="of the image files: a name or number")
    one.add_argument("--delta", type=int, default=5, metavar="D", help="step between qualities (default: 5)")
    one.add_argument("--subsampling", default="4:4:4", help="of the chroma: 4:4:4 (default) or 4:2:0")
    one = _kind(kinds, "transfer", "how often images that fool one network fool another (PGD)", _transfer)
    _add_networks(one, "networks", limit=1000)
    one.add_argument("--epsilon", type=float, default=0.031, help="of pixels in [0,1] (default: 0.031)")
    one.add_argument("--step", type=float, default=0.003, help="default: 0.003")
    one.add_argument("--steps", type=int, default=20, metavar="N", help="default: 20")
    one = _kind(kinds, "robustness", "accuracy on corrupted images, by corruption and severity", _robustness)
    _add_networks(one, "networks", limit=1000)
    one.add_argument("--corrupted", metavar="SHARDS", help="of kdstream shards cifar100c; default: made of the images")
    one.add_argument("--corruptions", metavar="A,B", help="names, or all (default: the five of CMKD's table V)")
    one.add_argument("--severities", default="1,2,3,4,5", metavar="A,B", help="default: 1,2,3,4,5")
    one = _kind(kinds, "logits", "a student's logits beside its teacher's: matrices, histograms", _logits)
    _add_networks(one, "students")
    one = _kind(kinds, "embedding", "t-SNE of the features that the classifier reads", _embedding)
    _add_networks(one, "networks", limit=1000)
    return parser


def _kind(kinds: Any, name: str, about: str, run: Callable[[argparse.Namespace], None]) -> CommandParser:
    one = kinds.add_parser(name, help=about, description=about)
    one.set_defaults(run=run, kind=name)
    one.add_argument("--out", type=Path, metavar="FOLDER", help=f"for page and JSON (default: runs/analyse-{name})")
    return one


def _add_runs(parser: CommandParser, what: str) -> None:
    parser.add_argument("places", nargs="+", metavar="RUN", help=f"{what}; NAME=PLACE gives a name to be shown")


def _add_networks(
    parser: CommandParser, what: str, single: bool = False, split: str | None = None, limit: int | None = None
) -> None:
    count: Any = 1 if single else "+"
    parser.add_argument("places", nargs=count, metavar="NETWORK", help=f"{what}; NAME=PLACE gives a name to be shown")
    if not single:
        parser.add_argument(
            "--teacher", metavar="NETWORK", help="their teacher (default: that of the first run's recipe)"
        )
    parser.add_argument("--data", metavar="SHARDS", help="a data set folder (default: that of the first run's recipe)")
    parser.add_argument("--split", metavar="NAME", help=f"default: {split or 'val, or else test'}")
    parser.set_defaults(usual_split=split)
    parser.add_argument(
        "--model", metavar="NAME", help="the network that files of weights are for, if they do not show it"
    )
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    if single:
        return
    said = "all" if limit is None else f"{limit:,}"
    parser.add_argument(
        "--limit",
        type=int,
        default=limit,
        metavar="N",
        help=f"images, drawn at random once and for all (default: {said})",
    )
    parser.add_argument("--size", type=int, metavar="N", help="cut the central square to N x N, for photographs")
    parser.add_argument("--batch-size", type=int, default=100, metavar="N", help="images at a time (default: 100)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="reader processes (default: 0)")


def _curves(options: argparse.Namespace) -> None:
    from kdstream.training.curves import course, page

    courses = [course(name, Path(place)) for name, place in _named(options.places)]
    _show(options, page(courses), {"runs": [one.as_dict() for one in courses]})


def _selection(options: argparse.Namespace) -> None:
    from kdstream.analysis.selection import as_dict, page, selection

    asked, data = _asked(options)
    (teacher,) = asked.networks
    found = []
    for name in options.image:
        image, label, known = _image(name, options.label, data)
        found.append(
            (known, label, selection(teacher, image.to(asked.device), label, options.delta, options.subsampling))
        )
    images = [{"image": name, "label": data.classes[label], "versions": as_dict(of)} for name, label, of in found]
    _show(options, page(teacher.name, found, data.classes), {**asked.about, "delta": options.delta, "images": images})


def _transfer(options: argparse.Namespace) -> None:
    from kdstream.analysis.transfer import page, transferability

    if not options.epsilon > 0 or not options.step > 0 or options.steps < 1:
        raise UserError("--epsilon and --step are above 0, --steps is 1 or more")
    asked, _ = _asked(options)
    attack = {"epsilon": options.epsilon, "step": options.step, "steps": options.steps}
    with asked.bar("attacks", 1) as advance:
        found = transferability(
            [one.name for one in asked.networks], asked.networks, asked.batches(), **attack, advance=advance
        )
    said = (
        f"PGD, epsilon {options.epsilon:g}, steps of {options.step:g}, {options.steps} of them, from the image itself"
    )
    _show(options, page(found, asked.what, said), {**asked.about, **attack, **found.as_dict()})


def _robustness(options: argparse.Namespace) -> None:
    from kdstream.analysis.one_pass import one_pass
    from kdstream.analysis.robustness import COMMON, PAPERS, corrupting, library, page, robustness, splits_of
    from kdstream.data.dataset_info import load_dataset_info
    from kdstream.data.shards import open_shards
    from kdstream.registry import nearest

    severities = _severities(options.severities)
    wanted = None if options.corruptions in (None, "all") else options.corruptions.split(",")
    asked, _ = _asked(options)
    if options.corrupted is not None:
        known = splits_of(load_dataset_info(Path(options.corrupted)).splits)
        names = list(known) if options.corruptions == "all" else wanted or [one for one in PAPERS if one in known]
        made = f"the files of {options.corrupted}"
    else:
        corrupt = library()
        known = {name: list(severities) for name in COMMON}
        names = list(COMMON) if options.corruptions == "all" else wanted or list(PAPERS)
        made = "made here by imagecorruptions, at the strengths meant for ImageNet"
    for name in names:
        if name not in known:
            raise UserError(f"--corruptions {name}: {nearest(name, known)}")
    if not names:
        raise UserError(f"{options.corrupted} has no corruptions: its splits are not such as fog_3")
    chosen = [(name, [n for n in known[name] if n in severities]) for name in names]

    def corrupted(name: str, severity: int) -> Any:
        if options.corrupted is None:
            return corrupting(asked.batches(), name, severity, corrupt)
        return one_pass(open_shards(str(Path(options.corrupted) / f"{name}_{severity}")), **asked.place)

    with asked.bar("corruptions", 1 + sum(len(of) for _, of in chosen)) as advance:
        found = robustness(
            [one.name for one in asked.networks], asked.networks, asked.batches, corrupted, chosen, advance
        )
    _show(options, page(found, asked.what, made), {**asked.about, "made": made, **found.as_dict()})


def _logits(options: argparse.Namespace) -> None:
    from kdstream.analysis.asked import gather
    from kdstream.analysis.logits import answers, beside, page

    asked, data = _asked(options)
    if not asked.taught:
        raise UserError("no teacher: name it by --teacher")
    with asked.bar("answers", 1) as advance:
        (*students, teacher), label = gather(asked.networks, asked.batches(advance))
    known = answers(asked.networks[-1].name, teacher, label)
    found = [
        (answers(one.name, logits, label), beside(one.name, logits, teacher, label))
        for one, logits in zip(asked.networks, students, strict=False)
    ]
    plain = [{**own.as_dict(), **both.as_dict()} for own, both in found]
    about = {**asked.about, "classes": list(data.classes), "teacher": known.as_dict(), "students": plain}
    _show(options, page(known, found, data.classes, asked.what), about)


def _embedding(options: argparse.Namespace) -> None:
    from kdstream.analysis.embedding import embed, features, page

    asked, data = _asked(options)
    with asked.bar("features", 1) as advance:
        rows, label = features(asked.networks, asked.batches(advance))
    found = [embed(one.name, *of, label) for one, of in zip(asked.networks, rows, strict=True)]
    plain = {"labels": label.tolist(), "networks": [one.as_dict() for one in found]}
    _show(options, page(found, label, data.classes, asked.what), {**asked.about, **plain})


@dataclass
class _Job:
    """Networks and the images that they are asked about; ``taught``: the last one is the teacher."""

    networks: list[Asked]
    taught: bool
    data: ShardSet
    place: dict[str, Any]
    device: Any
    console: Console

    @property
    def what(self) -> str:
        limit = self.place.get("limit")
        return f"{min(limit or len(self.data), len(self.data)):,} images of {self.data.name}/{self.data.split}"

    @property
    def about(self) -> dict[str, Any]:
        place = {name: self.place.get(name) for name in ("size", "limit")}
        return {"shards": f"{self.data.name}/{self.data.split}", "fingerprint": self.data.fingerprint, **place}

    def batches(self, advance: Callable[[int], None] | None = None) -> Iterator[Batch]:
        from kdstream.analysis.one_pass import one_pass

        for batch in one_pass(self.data, **self.place):
            yield batch
            if advance is not None:
                advance(len(batch))

    @contextlib.contextmanager
    def bar(self, name: str, passes: int) -> Iterator[Callable[[int], None]]:
        with progress_bars(self.console) as progress:
            count = min(self.place.get("limit") or len(self.data), len(self.data))
            task = progress.add_task(name, total=passes * count)
            yield lambda done: progress.advance(task, done)


def _asked(options: argparse.Namespace) -> tuple[_Job, ShardSet]:
    """Load what the options name; nothing is written."""
    from kdstream.analysis.asked import load_asked
    from kdstream.cli.measuring import find_device, say
    from kdstream.data.shards import has_split, open_shards

    console = Console()
    named = _named(options.places)
    recipe = _recipe(named[0][1])
    told = recipe.get("data") or {}
    told = told if isinstance(told, dict) else {"path": told}
    folder = options.data or told.get("path")
    if folder is None:
        raise UserError("no images: name a data set folder by --data")
    split = options.split or options.usual_split or told.get("val") or ("val" if has_split(folder, "val") else "test")
    data = open_shards(f"{folder}/{split}")
    device = find_device(options.device)
    known = recipe.get("teacher") or {}
    teacher = getattr(options, "teacher", None)
    if teacher is None and hasattr(options, "teacher") and isinstance(known, dict):
        teacher = known.get("weights")
    everybody = [*named, *(_named([f"teacher={teacher}" if "=" not in teacher else teacher]) if teacher else [])]
    networks = [load_asked(name, place, data, device, options.model) for name, place in everybody]
    say(console, *(f"note: {one.note}" for one in networks if one.note))
    names = ("size", "limit", "batch_size", "workers")
    place = {name: getattr(options, name) for name in names if hasattr(options, name)}
    return _Job(networks, bool(teacher), data, {**place, "device": device}, device, console), data


def _recipe(place: str) -> dict[str, Any]:
    """That of a run's folder, or of the folder that a file of weights lies in."""
    from kdstream.recipe_file import read_recipe

    folder = Path(place) if Path(place).is_dir() else Path(place).parent
    file = folder / "recipe.yaml"
    return read_recipe(file) if file.is_file() else {}


def _image(name: str, label: str | None, data: ShardSet) -> tuple[Tensor, int, str]:
    """An image uint8 [3,H,W] of a split, by its number, or of a file; its class; what to call it."""
    from kdstream.data.image_file import MAX_PIXELS
    from kdstream.registry import nearest
    from kdstream.stream.decode import decode, read_image

    if name.isdecimal():
        if int(name) >= len(data):
            raise UserError(f"--image {name}: {data.name}/{data.split} has images 0 to {len(data) - 1:,}")
        (sample,) = decode(iter([data.read(int(name))]))
        return sample["image"], sample["label"], str(sample["__key__"])
    try:
        content = Path(name).read_bytes()
    except OSError as error:
        raise UserError(f"--image {name}: {error.strerror or error}; it is a number in the split, or a file") from None
    if label is None:
        raise UserError(f"--image {name}: --label says its class")
    if label in data.classes:
        number = list(data.classes).index(label)
    elif label.isdecimal() and int(label) < len(data.classes):
        number = int(label)
    else:
        raise UserError(f"--label {label}: {nearest(label, data.classes)}")
    return read_image(content, name, True, MAX_PIXELS), number, Path(name).name


def _severities(text: str) -> list[int]:
    found = [int(part) for part in text.split(",") if part.strip() in {"1", "2", "3", "4", "5"}]
    if len(found) != len(text.split(",")):
        raise UserError(f"--severities {text}: they are of 1 to 5, as 1,3,5")
    return found


def _named(places: Sequence[str]) -> list[tuple[str, str]]:
    """Names and places; a name that occurs twice is numbered."""
    found: dict[str, str] = {}
    for text in places:
        name, equals, place = text.partition("=")
        if not equals or "/" in name or Path(text).exists():
            name, place = Path(text).name or text, text
            name = Path(text).parent.name if Path(text).stem == "student" else name
        number, free = 2, name
        while free in found:
            number, free = number + 1, f"{name} ({number})"
        found[free] = place
    return list(found.items())


def _show(options: argparse.Namespace, page: FiguresPage, found: dict[str, Any]) -> None:
    """Write page and JSON, print the tables."""
    from kdstream.cli.measuring import say, show, write
    from kdstream.display.figures_page import grids, to_html

    console = Console()
    folder = options.out or Path("runs") / f"analyse-{options.kind}"
    write(folder / f"{options.kind}.json", found)
    write(folder / f"{options.kind}.html", to_html(page).encode("utf-8", "replace"))
    say(console, page.title + ": " + page.about, "")
    for heading, grid in grids(page):
        show(console, heading, grid)
        say(console, "")
    say(console, *(f"note: {note}" for note in page.notes))
    for name in ("html", "json"):
        console.print(f"written: {folder / options.kind}.{name}", highlight=False, markup=False, soft_wrap=True)
