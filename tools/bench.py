"""Command line: measure parts of kdstream against what people use instead, in one run, and print the ratios.

A bench is one function below, under the decorator ``bench``; its name is the subcommand. It measures, prints its table
and returns what ``--json`` writes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a clone, without installation

import numpy as np
import torch
from PIL import Image
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from kdstream import jpeg as kdstream_jpeg
from kdstream.atomic import write_atomic
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.objectives import parse_loss
from kdstream.registry import nearest
from kdstream.stream.coded import coded as coded_stage
from kdstream.stream.coded import planned
from kdstream.stream.coding_plan import ORIGINAL
from kdstream.stream.normalize import standardise
from kdstream.stream.teacher import answer
from kdstream.training.distiller import Distiller
from kdstream.types import Batch

LEAST_ROUNDS, MOST_ROUNDS = 3, 50

# --- What every bench shares -----------------------------------------------------------------------------------------


class Ratio(NamedTuple):
    """A ratio of two times, over the rounds in which both were measured."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        digits = 1 if self.median >= 10 else 2
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def alternate(works: Mapping[str, Callable[[], object]], seconds: float) -> list[dict[str, float]]:
    """Times of several pieces of work, one after the other in every round, so that all meet the same machine.

    Args:
        works: name -> what is measured. Every second round runs them in reverse.
        seconds: no round starts later than this, but there are at least 3 rounds; and at most 50.

    Returns:
        For each round the seconds of each piece of work.
    """
    rounds: list[dict[str, float]] = []
    start = time.perf_counter()
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() - start < seconds):
        order = list(works) if len(rounds) % 2 == 0 else list(reversed(works))
        times = {}
        for name in order:
            begin = time.perf_counter()
            works[name]()
            times[name] = time.perf_counter() - begin
        rounds.append(times)
    return rounds


def ratio(rounds: Sequence[Mapping[str, float]], above: Sequence[str], below: Sequence[str]) -> Ratio:
    """The time of ``above`` over the time of ``below`` (sums of pieces of work): each round's, then their median."""
    found = [sum(times[name] for name in above) / sum(times[name] for name in below) for times in rounds]
    return Ratio(statistics.median(found), min(found), max(found), len(found))


def milliseconds(rounds: Sequence[Mapping[str, float]], *names: str) -> float:
    """Median over the rounds of the time of ``names`` together."""
    return 1e3 * statistics.median(sum(times[name] for name in names) for times in rounds)


def cpu_name() -> str:
    """The processor as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def new_table(title: str, *columns: str) -> Table:
    """An empty table with these columns, numbers to the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for name in columns:
        text = name in ("work", "peer", "compared")
        table.add_column(name, justify="left" if text else "right", no_wrap=not text)
    return table


def machine(threads: int) -> dict[str, Any]:
    """What the times depend on, for the record."""
    return {
        "cpu": cpu_name(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


Bench = Callable[[argparse.Namespace, Console], dict[str, Any]]
BENCHES: dict[str, tuple[Bench, dict[str, dict[str, Any]]]] = {}
"""Name -> (function, its options: flag -> argparse's keywords)."""


def bench(options: dict[str, dict[str, Any]]) -> Callable[[Bench], Bench]:
    """Decorator: the function becomes the subcommand of its name, its docstring's first line the help."""

    def register(function: Bench) -> Bench:
        BENCHES[function.__name__] = (function, options)
        return function

    return register


def whole(text: str) -> int:
    """A whole number of at least 1, from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def step(text: str) -> int:
    """A step between qualities, from the command line."""
    if whole(text) > 100:
        raise argparse.ArgumentTypeError(f"{text!r}: the step between qualities is 1 to 100")
    return int(text)


def budget(text: str) -> float:
    """Seconds, from the command line."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


SUBSAMPLING = {"choices": ("4:4:4", "4:2:0"), "default": "4:4:4", "help": "of the chroma (default: 4:4:4)"}

# --- jpeg ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """So many square colour images of a size, each at so many qualities; ``targets``: peer -> how many times faster."""

    batch: int
    size: int
    qualities: tuple[int, ...]
    subsampling: str = "4:4:4"
    targets: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.batch} images {self.size}x{self.size}, {len(self.qualities)} qualities, {self.subsampling}"


SMALL, LARGE = tuple(range(0, 101, 5)), tuple(range(0, 101, 10))
CASES = (
    Case(256, 32, SMALL, "4:4:4", {"Pillow": 40, "simplejpeg": 4}),
    Case(8, 224, LARGE, "4:4:4", {"Pillow": 2.5, "simplejpeg": 1.8}),
    Case(256, 32, SMALL, "4:2:0"),
    Case(8, 224, LARGE, "4:2:0"),
)


@dataclass(frozen=True)
class Peer:
    """Another way to make JPEG versions.

    Attributes:
        name: as the table shows it.
        package: what must be installed.
        run: (images uint8 [N,3,H,W], case) -> its own kind of result; this is what is timed.
        pixels: that result -> uint8 [N,Q,3,H,W].
        subsamplings: those that it can make.
    """

    name: str
    package: str
    run: Callable[[Tensor, Case], list]
    pixels: Callable[[list, Case], Tensor]
    subsamplings: tuple[str, ...] = ("4:4:4", "4:2:0")

    def takes(self, case: Case) -> bool:
        return case.subsampling in self.subsamplings and (self.name != "kornia" or case.size % 16 == 0)


def pillow(images: Tensor, case: Case) -> list[np.ndarray]:
    """A loop of Image.save and Image.open."""
    level = {"4:4:4": 0, "4:2:0": 2}[case.subsampling]
    found = []
    for pixels in images.permute(0, 2, 3, 1).contiguous().numpy():
        image = Image.fromarray(pixels)
        for quality in case.qualities:
            file = io.BytesIO()
            image.save(file, format="JPEG", quality=quality, subsampling=level)
            file.seek(0)
            found.append(np.asarray(Image.open(file)))
    return found


def simplejpeg(images: Tensor, case: Case) -> list[np.ndarray]:
    """A loop of libjpeg-turbo's own interface, which encodes below quality 96 by a faster, less exact transform.

    (Qualities 0 and 1 are the same to libjpeg.)
    """
    import simplejpeg

    chroma = case.subsampling.replace(":", "")
    found = []
    for pixels in images.permute(0, 2, 3, 1).contiguous().numpy():
        for quality in case.qualities:
            data = simplejpeg.encode_jpeg(pixels, quality=max(1, quality), colorsubsampling=chroma, fastdct=False)
            found.append(simplejpeg.decode_jpeg(data, fastdct=False, fastupsample=False))
    return found


def torchvision_io(images: Tensor, case: Case) -> list[Tensor]:
    """A loop of torchvision.io, which knows 4:2:0 only."""
    from torchvision.io import decode_jpeg, encode_jpeg

    return [decode_jpeg(encode_jpeg(image, quality=max(1, quality))) for image in images for quality in case.qualities]


def kornia(images: Tensor, case: Case) -> list[Tensor]:
    """kornia's differentiable codec, all images of a quality at once; 4:2:0 only, sizes that are multiples of 16."""
    from kornia.enhance import jpeg_codec_differentiable

    floats = images.float() / 255
    with torch.inference_mode():
        return [
            jpeg_codec_differentiable(floats, torch.full((len(images),), float(max(1, quality))))
            for quality in case.qualities
        ]


def _from_arrays(found: list, case: Case) -> Tensor:
    return _from_tensors([torch.from_numpy(np.array(pixels)).permute(2, 0, 1) for pixels in found], case)


def _from_tensors(found: list, case: Case) -> Tensor:
    return torch.stack(found).unflatten(0, (-1, len(case.qualities)))


def _from_floats(found: list, case: Case) -> Tensor:
    return (torch.stack(found, dim=1) * 255).round().clamp(0, 255).to(torch.uint8)


PEERS = {
    "Pillow": Peer("Pillow", "PIL", pillow, _from_arrays),
    "simplejpeg": Peer("simplejpeg", "simplejpeg", simplejpeg, _from_arrays),
    "torchvision.io": Peer("torchvision.io", "torchvision", torchvision_io, _from_tensors, ("4:2:0",)),
    "kornia": Peer("kornia", "kornia", kornia, _from_floats, ("4:2:0",)),
}


def photos(count: int, size: int) -> Tensor:
    """Crops of scikit-learn's two photographs, uint8 [count,3,size,size]; small images are made from larger crops."""
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(0)
    whole_images = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    found = []
    for i in range(count):
        image = whole_images[i % 2]
        side = 224 if size < 224 else 320
        x, y = int(rng.integers(0, image.width - side + 1)), int(rng.integers(0, image.height - side + 1))
        crop = image.crop((x, y, x + side, y + side)).resize((size, size), Image.Resampling.BICUBIC)
        found.append(np.array(crop))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


def noise(count: int, size: int) -> Tensor:
    """Random pixels, uint8 [count,3,size,size]."""
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def differing(found: Tensor, expected: Tensor) -> dict[str, int]:
    """How many pixels of [N,Q,3,H,W] differ (in any channel), of how many, and by how much at most."""
    distance = (found.short() - expected.short()).abs().amax(dim=2)
    return {
        "pixels": distance.numel(),
        "differing_pixels": int((distance > 0).sum()),
        "largest_difference": int(distance.max()),
    }


def _share(difference: Mapping[str, int]) -> str:
    """The share of pixels that differ, and by how much; never rounded to 0."""
    if difference["differing_pixels"] == 0:
        return "0"
    share = 100 * difference["differing_pixels"] / difference["pixels"]
    return f"{max(share, 0.01):.2f} % by <= {difference['largest_difference']}"


def _peers(names: str | None) -> tuple[list[Peer], list[str]]:
    """The peers to measure and those of them that are not installed."""
    asked = list(PEERS) if names is None else names.split(",")
    for name in asked:
        if name not in PEERS:
            raise UserError(f"--peers: unknown peer {name!r}: {nearest(name, PEERS)}")
    present = [PEERS[name] for name in asked if importlib.util.find_spec(PEERS[name].package) is not None]
    return present, [name for name in asked if PEERS[name] not in present]


def _cases(options: argparse.Namespace) -> tuple[Case, ...]:
    """The standing cases, or the one that the options describe."""
    if options.size is None:
        if (options.batch, options.delta, options.subsampling) != (None, None, None):
            raise UserError("--batch, --delta and --subsampling describe a case of your own: give its --size as well")
        return CASES
    qualities = tuple(range(0, 101, options.delta or 10))
    return (Case(options.batch or 8, options.size, qualities, options.subsampling or "4:4:4"),)


@bench(
    {
        "--peers": {"metavar": "A,B", "help": f"of {', '.join(PEERS)} (default: all that are installed)"},
        "--images": {"choices": ("photo", "noise"), "default": "photo", "help": "what is compressed (default: photo)"},
        "--size": {"type": whole, "metavar": "PIXELS", "help": "measure one case of your own, of this side length"},
        "--batch": {"type": whole, "metavar": "N", "help": "its number of images (default: 8)"},
        "--delta": {"type": step, "metavar": "STEP", "help": "between its qualities 0..100 (default: 10)"},
        "--subsampling": {**SUBSAMPLING, "default": None},
    }
)
def jpeg(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """JPEG versions: kdstream.jpeg.roundtrip against the libraries that people make them with."""
    cases = _cases(options)
    peers, absent = _peers(options.peers)
    found = []
    for case in cases:
        images = (photos if options.images == "photo" else noise)(case.batch, case.size)
        expected = _from_arrays(pillow(images, case), case)
        ours = differing(kdstream_jpeg.roundtrip(images, case.qualities, case.subsampling), expected)
        able = [peer for peer in peers if peer.takes(case)]
        rows = [_against(peer, images, case, options.seconds / max(1, len(able)), expected) for peer in able]
        for row in rows:
            row["target"] = case.targets.get(row["peer"]) if options.threads == 1 else None
        console.print(_case_table(case, ours, rows))
        about = {"work": str(case), "batch": case.batch, "size": case.size, "qualities": case.qualities}
        unable = [peer.name for peer in peers if peer not in able]
        found.append({**about, "subsampling": case.subsampling, "kdstream": ours, "peers": rows, "unable": unable})
    console.print("ratio: the peer's time over kdstream's, median of alternating pairs (range)")
    if any(row["peer"] == "simplejpeg" and row["differing_pixels"] for case in found for row in case["peers"]):
        console.print("simplejpeg encodes by a faster, less exact transform below quality 96, even with fastdct=False")
    if absent:
        console.print(f"not installed, hence not measured: {', '.join(absent)}")
    if any(case["unable"] for case in found):
        console.print("torchvision.io and kornia make 4:2:0 only (kornia: of sizes that are multiples of 16)")
    return {"images": options.images, "cases": found, "not_installed": absent}


def _case_table(case: Case, ours: Mapping[str, int], rows: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table(str(case), "peer", "peer ms", "kdstream ms", "ratio", "target", "pixels unlike Pillow's")
    for row in rows:
        table.add_row(
            row["peer"],
            f"{row['peer_ms']:.2f}",
            f"{row['kdstream_ms']:.2f}",
            str(Ratio(row["ratio"], row["low"], row["high"], row["rounds"])),
            "" if row["target"] is None else f">= {row['target']:g}",
            _share(row),
        )
    table.add_row("kdstream", "", "", "", "", _share(ours))
    return table


def _against(peer: Peer, images: Tensor, case: Case, seconds: float, expected: Tensor) -> dict[str, Any]:
    """One row: kdstream and a peer on the same images, in turn."""
    difference = differing(peer.pixels(peer.run(images, case), case), expected)
    rounds = alternate(
        {
            "kdstream": lambda: kdstream_jpeg.roundtrip(images, case.qualities, case.subsampling),
            "peer": lambda: peer.run(images, case),
        },
        seconds,
    )
    times_faster = ratio(rounds, ["peer"], ["kdstream"])
    return {
        "peer": peer.name,
        "version": importlib.metadata.version("pillow" if peer.package == "PIL" else peer.package),
        "kdstream_ms": milliseconds(rounds, "kdstream"),
        "peer_ms": milliseconds(rounds, "peer"),
        "ratio": times_faster.median,
        "low": times_faster.low,
        "high": times_faster.high,
        "rounds": times_faster.rounds,
        **difference,
    }


# --- coded -----------------------------------------------------------------------------------------------------------

MEAN, STD = (0.5, 0.5, 0.5), (0.29, 0.29, 0.29)
"""Of uniformly random pixels."""
ONLINE_TARGET, PLAN_TARGET = 1.10, 1.05


class Steps:
    """Training steps on one batch of random images, with and without coding.

    Args:
        teacher, student: names of networks.
        batch: N.
        size: side length of the images.
        classes: C.
        delta, subsampling: of the coded stage.
    """

    def __init__(self, teacher: str, student: str, batch: int, size: int, classes: int, delta: int, subsampling: str):
        torch.manual_seed(0)
        images = noise(batch, size)
        network = build(teacher, classes)
        _settle(network, standardise(images, MEAN, STD))
        self.teacher = Tapped(network).requires_grad_(False).eval()
        self.distiller = Distiller(
            Tapped(build(student, classes)), parse_loss({"ce": 0.1, "kd": {"weight": 0.9, "temperature": 4}})
        ).train()
        self.optimizer = torch.optim.SGD(self.distiller.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
        self.batch = Batch(images, torch.randint(0, classes, (batch,)), torch.arange(batch))
        self.subsampling = subsampling
        self.qualities = tuple(range(0, 101, delta))
        self.coded = coded_stage("hkl", delta=delta, subsampling=subsampling)
        self.plan = torch.tensor([*self.qualities, ORIGINAL]).byte()[torch.randint(len(self.qualities) + 1, (batch,))]
        self.versions = self.compress()
        self.limit: dict[str, int] = {}

    def compress(self) -> Tensor:
        """The JPEG work of an online step: uint8 [N,V,3,H,W]."""
        return kdstream_jpeg.roundtrip(self.batch.image, self.qualities, self.subsampling)

    @torch.no_grad()
    def teacher_passes(self) -> None:
        """The teacher alone, one pass for each of the V versions, which are there already."""
        for version in self.versions.unbind(1):
            self.teacher(standardise(version, MEAN, STD))

    def kd(self) -> None:
        """A plain step: the teacher on the images, then the student forward, backward and SGD."""
        self._train(self.batch)

    def online(self) -> None:
        """A coded step, plan=off: V versions, the teacher on them and on the images, the selection, the student."""
        self._train(next(self.coded(iter([self.batch]))))

    def planned(self) -> None:
        """A coded step with a plan: each image's one version, the teacher on it, the student."""
        versions, qualities = planned(self.batch.image, self.batch.index, self.plan, self.subsampling)
        self._train(replace(self.batch, variants=versions, qualities=qualities))

    def _train(self, batch: Batch) -> None:
        batch = answer(batch, self.teacher, MEAN, STD, self.limit)
        batch = replace(batch, image=standardise(batch.image, MEAN, STD))
        self.optimizer.zero_grad()
        loss, _, _ = self.distiller(batch)
        loss.backward()
        self.optimizer.step()


@torch.no_grad()
def _settle(network: nn.Module, images: Tensor) -> None:
    """Set the BatchNorm statistics of a fresh network to those of ``images``, as training would: no huge numbers."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    network.train()(images)


@bench(
    {
        "--teacher": {"default": "resnet56", "metavar": "MODEL", "help": "default: resnet56"},
        "--student": {"default": "resnet20", "metavar": "MODEL", "help": "default: resnet20"},
        "--batch": {"type": whole, "default": 64, "metavar": "N", "help": "images of a step (default: 64)"},
        "--size": {"type": whole, "default": 32, "metavar": "PIXELS", "help": "of the images (default: 32)"},
        "--classes": {"type": whole, "default": 100, "metavar": "N", "help": "default: 100"},
        "--delta": {"type": step, "default": 5, "metavar": "STEP", "help": "between qualities 0..100 (default: 5)"},
        "--subsampling": SUBSAMPLING,
    }
)
def coded(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """A training step with the coded teacher, online and with a plan, against what it cannot do without.

    The online step is compared with V teacher passes (one by one, a batch each, over versions that are there already)
    and a KD step: the same V + 1 passes and the same training, hence what exceeds 1 is JPEG, selection and how the
    teacher stage cuts its batches. The step with a plan is compared with the KD step, which has one pass as well.
    """
    given = {name: getattr(options, name) for name in ("teacher", "student", "batch", "size", "classes", "delta")}
    steps = Steps(**given, subsampling=options.subsampling)
    steps.kd()
    steps.planned()
    planned = alternate({"KD": steps.kd, "planned": steps.planned}, options.seconds / 3)
    works = {"passes": steps.teacher_passes, "KD": steps.kd, "JPEG": steps.compress, "online": steps.online}
    online = alternate(works, options.seconds * 2 / 3)
    count = len(steps.qualities)
    comparisons = [
        (
            "coded step online / (V teacher passes + KD step)",
            ratio(online, ["online"], ["passes", "KD"]),
            ONLINE_TARGET,
        ),
        ("coded step with a plan / KD step", ratio(planned, ["planned"], ["KD"]), PLAN_TARGET),
        ("coded step online / KD step", ratio(online, ["online"], ["KD"]), None),
        ("JPEG versions alone / coded step online", ratio(online, ["JPEG"], ["online"]), None),
    ]
    times = {
        f"V = {count} teacher passes, versions ready": milliseconds(online, "passes"),
        "KD step: teacher, student forward, backward, SGD": milliseconds(online, "KD"),
        "V teacher passes + KD step": milliseconds(online, "passes", "KD"),
        f"V = {count} JPEG versions alone": milliseconds(online, "JPEG"),
        "coded step online: JPEG, teacher on V + 1, selection, student": milliseconds(online, "online"),
        "KD step, in turn with the next": milliseconds(planned, "KD"),
        "coded step with a plan: one JPEG version, teacher, student": milliseconds(planned, "planned"),
    }
    title = f"{options.teacher} -> {options.student}, {options.batch} images {options.size}x{options.size}"
    table = new_table(f"{title}, delta {options.delta}, {options.subsampling}", "work", "ms")
    for name, value in times.items():
        table.add_row(name, f"{value:.1f}")
    console.print(table)
    table = new_table("Ratios: median of the rounds (range)", "compared", "ratio", "target", "rounds")
    rows = []
    for name, found, target in comparisons:
        wanted = target if options.threads == 1 else None
        shown = f"{_digits(found.median)} ({_digits(found.low)}-{_digits(found.high)})"
        table.add_row(name, shown, "" if wanted is None else f"<= {wanted:.2f}", str(found.rounds))
        about = {"compared": name, "ratio": found.median, "low": found.low, "high": found.high}
        rows.append({**about, "rounds": found.rounds, "target": wanted})
    console.print(table)
    settings = {**given, "subsampling": options.subsampling, "versions": count}
    return {"settings": settings, "milliseconds": times, "comparisons": rows}


def _digits(value: float) -> str:
    return f"{value:.3f}" if value >= 0.1 else f"{value:.2g}"


# --- The command -----------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--seconds", type=budget, default=20, metavar="S", help="budget of a case (default: 20; 3 rounds always run)"
    )
    common.add_argument("--threads", type=whole, default=1, metavar="N", help="of kdstream and torch (default: 1)")
    common.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    parser = _Parser(description=(__doc__ or "").splitlines()[0])
    subparsers = parser.add_subparsers(dest="bench", metavar="BENCH", required=True, parser_class=_Parser)
    for name, (function, options) in BENCHES.items():
        about = (function.__doc__ or "").splitlines()[0]
        sub = subparsers.add_parser(name, help=about, description=about, parents=[common])
        for flag, settings in options.items():
            sub.add_argument(flag, **settings)
    return parser


def _check_writable(path: Path) -> None:
    """Before minutes of measuring, not after."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--json {path}: it cannot be written; name a file in a folder that exists and is yours")


def _run(arguments: Sequence[str] | None, console: Console) -> None:
    options = _parser().parse_args(arguments)
    if options.json is not None:
        _check_writable(options.json)
    function, _ = BENCHES[options.bench]
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        where = machine(options.threads)
        console.print(f"{where['cpu']}, {options.threads} thread(s), torch {where['torch']}")
        found = function(options, console)
    finally:
        torch.set_num_threads(threads)
    if options.json is not None:
        data = {"bench": options.bench, "machine": where, "seconds": options.seconds, **found}
        write_atomic(options.json, (json.dumps(data, indent=1) + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    console, errors = Console(highlight=False), Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)  # a table in a file or pipe must not be cut at 80 columns
    try:
        _run(arguments, console)
    except UserError as error:
        errors.print(f"bench: {error}")
        return 2
    except KeyboardInterrupt:
        errors.print("bench: interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
