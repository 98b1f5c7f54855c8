"""Bench ``gpu``: what an accelerator makes of the data path, the JPEG kernel and a training step, in a few minutes."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from kdstream import jpeg as kdstream_jpeg
from kdstream.benches.coded import MEAN, STD
from kdstream.benches.jpeg import noise
from kdstream.benches.measure import bench, new_table, whole
from kdstream.convert.from_dataset import from_datasets
from kdstream.convert.make_shards import make_shards
from kdstream.data.shards import open_shards
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.recipe import Recipe
from kdstream.stream.augment import cut_boxes, draw_boxes
from kdstream.stream.cache import Where
from kdstream.stream.decode import decode
from kdstream.stream.stream import Stream
from kdstream.training.tables.timing import seconds_per_epoch

PAIRS = (("resnet56", "resnet20"), ("resnet32x4", "resnet8x4"))
TRIED = (("resnet8", "resnet8"),)
"""With --small."""
KD = {"ce": 0.1, "kd": {"weight": 0.9, "temperature": 4}}
METHODS: dict[str, tuple[str, Any]] = {
    "labels only": ("decode | augment(cifar)", "ce"),
    "kd": ("decode | augment(cifar)", KD),
    # One version of a quality of its own for every image: what a plan leaves to do.
    "ckd, plan": ("decode | coded(random(0, 100)) | augment(cifar)", KD),
    "ckd, online": ("decode | coded(hkl, delta=5) | augment(cifar)", KD),
    "crd": ("decode | augment(cifar)", {"ce": 1, "crd": 0.8}),
}
"""Name -> (the chain's beginning, the loss)."""
CIFAR, EPOCHS, BATCH, CLASSES = 50_000, 240, 64, 100
"""Images, epochs and batch size of a cell of the papers' CIFAR-100 tables."""
READERS_MOST = 16

Row = dict[str, Any]


class Meter:
    """Rates on a device.

    Args:
        device: whose queue is waited for before a clock is read.
        seconds: of a measurement, about.
    """

    def __init__(self, device: torch.device, seconds: float):
        self.device, self.seconds = device, seconds

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def rate(self, work: Callable[[], int]) -> float:
        """How many a second, where ``work()`` does so many: the median of at least 3 rounds after a first one."""
        work()
        found: list[float] = []
        start = time.perf_counter()
        while len(found) < 3 or (len(found) < 50 and time.perf_counter() - start < self.seconds):
            self.wait()
            begin = time.perf_counter()
            done = work()
            self.wait()
            found.append(done / (time.perf_counter() - begin))
        return statistics.median(found)


def copying(meter: Meter, size: int) -> float:
    """Bytes a second that a copy of a large tensor reads and writes."""
    source = torch.empty(size, dtype=torch.uint8, device=meter.device).random_(256)
    target = torch.empty_like(source)

    def copy() -> int:
        for _ in range(10):
            target.copy_(source)
        return 20 * size

    return meter.rate(copy)


def versions(meter: Meter, count: int, size: int, delta: int, subsampling: Any, bandwidth: float) -> Row:
    """JPEG versions of a batch, beside a copy of as many bytes; how many pixels differ from the CPU's."""
    images = noise(count, size).to(meter.device)
    qualities = tuple(range(0, 101, delta))
    few = images[:2]
    made = kdstream_jpeg.roundtrip(few, qualities, subsampling).cpu()
    differing = int((made != kdstream_jpeg.roundtrip(few.cpu(), qualities, subsampling)).sum())
    found = meter.rate(lambda: kdstream_jpeg.roundtrip(images, qualities, subsampling).shape[0] * len(qualities))
    moved = found / len(qualities) * images[0].numel() * (1 + len(qualities))
    return {
        "work": f"{count} images {size}x{size}, {len(qualities)} qualities, {subsampling}",
        "versions/s": found,
        "bytes/s": moved,
        "share of copying": moved / bandwidth,
        "differing": differing,
    }


def passing(stream: Stream, least: int = 0) -> Callable[[], int]:
    """A pass of a stream, or as many as it takes to see ``least`` images."""

    def run() -> int:
        seen = 0
        while seen < max(1, least):
            seen += sum(len(batch) for batch in stream)
        return seen

    return run


def small_images(folder: Path, count: int) -> Path:
    """Shards of random images of CIFAR's size, lossless: noise is the most that JPEG and PNG have to do."""

    class Images:
        def __len__(self) -> int:
            return count

        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            return pixels[i], i % CLASSES

    pixels = noise(count, 32).permute(0, 2, 3, 1).contiguous().numpy()
    make_shards(from_datasets("noise", {"train": Images(), "test": Images()}), folder, console=Console(quiet=True))
    return folder


def photographs(folder: Path, count: int) -> Path:
    """Shards of JPEG photographs of 500 x 375, as most of ImageNet's are: crops of scikit-learn's two."""
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(0)
    wholes = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    for i in range(count):
        image = wholes[i % 2]
        x, y = int(rng.integers(0, image.width - 500 + 1)), int(rng.integers(0, image.height - 375 + 1))
        path = folder / "files" / "train" / f"{i % 2}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.crop((x, y, x + 500, y + 375)).save(path, quality=90)
    make_shards(f"imagefolder:{folder / 'files'}", folder / "shards", console=Console(quiet=True))
    return folder / "shards"


def decoding(meter: Meter, data: Path) -> Row:
    """Whole photographs, decoded by torchvision on the device (nvJPEG where it is a GPU), 64 at a time."""
    from torchvision.io import ImageReadMode, decode_jpeg

    dataset = open_shards(data / "train")
    samples = [dataset.read(i) for i in range(min(64, len(dataset)))]
    coded = [torch.frombuffer(bytearray(sample["jpg"]), dtype=torch.uint8) for sample in samples if "jpg" in sample]

    def decode() -> int:
        return len(decode_jpeg(coded, ImageReadMode.RGB, device=meter.device))

    return {"work": f"decode_jpeg, batches of {len(coded)}", "images/s": meter.rate(decode)}


class PlainLoop:
    """KD as one writes it over a torchvision data set in memory and a DataLoader, with the networks of a pair.

    Args:
        teacher, student: names of networks.
        images: uint8 [N,3,H,W].
        device: of the networks.
        readers: of the DataLoader.
        layout: memory format of networks and images.
        precision: "no" or "bf16".
    """

    def __init__(self, teacher: str, student: str, images: Tensor, device: torch.device, readers: int, precision: str):
        from torchvision import transforms as tv

        view = tv.Compose(
            [
                tv.ToPILImage(),
                tv.RandomCrop(32, padding=4),
                tv.RandomHorizontalFlip(),
                tv.ToTensor(),
                tv.Normalize(MEAN, STD),
            ]
        )

        class Views(torch.utils.data.Dataset[Any]):
            def __len__(self) -> int:
                return len(images)

            def __getitem__(self, i: int) -> tuple[Tensor, int]:
                return view(images[i]), i % CLASSES

        self.device, self.precision = device, precision
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        move: dict[str, Any] = {"device": device, "memory_format": layout}
        self.teacher = build(teacher, CLASSES).to(**move).eval().requires_grad_(False)
        self.student: nn.Module = build(student, CLASSES).to(**move).train()
        self.optimizer = torch.optim.SGD(self.student.parameters(), 1e-6, momentum=0.9, weight_decay=5e-4)
        self.loader: Any = torch.utils.data.DataLoader(
            Views(),
            BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=readers,
            persistent_workers=readers > 0,
            pin_memory=device.type == "cuda",
        )

    def seconds_per_step(self, meter: Meter, steps: int) -> float:
        """Of ``steps`` steps, after a few."""
        batches = self._batches()
        for _ in range(5):
            self._step(*next(batches))
        meter.wait()
        begin = time.perf_counter()
        for _ in range(steps):
            self._step(*next(batches))
        meter.wait()
        return (time.perf_counter() - begin) / steps

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.loader

    def _step(self, images: Tensor, labels: Tensor) -> None:
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            with torch.no_grad():
                target = self.teacher(images)
            logits = self.student(images)
        logits, target = logits.float(), target.float()
        divergence = F.kl_div(
            F.log_softmax(logits / 4, 1), F.log_softmax(target / 4, 1), reduction="batchmean", log_target=True
        )
        loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * 16 * divergence
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def training(data: Path, pair: tuple[str, str], method: str, precision: str, cpu: bool, steps: int) -> float:
    """Seconds of a step in kdstream's own training: stream, teacher, loss, backward pass, optimizer."""
    teacher, student = pair
    chain, loss = METHODS[method]
    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "data": {"path": str(data), "val": "test"},
            "student": student,
            "teacher": {"model": teacher, "train": {"loss": "ce", "epochs": 1, "stream": "decode | augment(cifar)"}},
            "stream": chain,
            "loss": loss,
            "epochs": 1,
            "batch_size": BATCH,
            "precision": precision,
            "seed": 0,
        }
    )
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision)
    of_epoch = seconds_per_epoch(recipe, accelerator, steps)
    return of_epoch / Stream(data / "train", BATCH).steps


@bench(
    {
        "--device": {"metavar": "NAME", "help": "default: cuda where there is one, else cpu"},
        "--small": {"action": "store_true", "help": "a try in a minute on a CPU: small batches, few images and steps"},
        "--data": {"metavar": "SHARDS", "type": Path, "help": "CIFAR as shards (default: 10,240 images of noise)"},
        "--photos": {"metavar": "SHARDS", "type": Path, "help": "photographs as shards (default: crops of two)"},
        "--workers": {"type": whole, "metavar": "N", "help": "reader processes (default: one a core, at most 16)"},
        "--precision": {"choices": ("no", "bf16"), "default": "no", "help": "of the training steps (default: no)"},
        "--only": {"metavar": "A,B", "help": "of jpeg, cifar, photos, decode, train (default: all)"},
    }
)
def gpu(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The data path, the JPEG kernel and training steps on an accelerator; ``--seconds`` is a measurement's.

    A part that fails is named and the others are measured: a lent machine may be gone tomorrow.
    """
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no GPU that torch can use; --device cpu --small tries the bench")
    parts: dict[str, Callable[[Parts], list[Row]]] = {
        "jpeg": Parts.jpeg,
        "cifar": Parts.cifar,
        "photos": Parts.photos,
        "decode": Parts.decode,
        "train": Parts.train,
    }
    wanted = options.only.split(",") if options.only else list(parts)
    unknown = [name for name in wanted if name not in parts]
    if unknown:
        raise UserError(f"--only: unknown part {unknown[0]!r}; known: {', '.join(parts)}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    console.print(f"device: {name}")
    found: dict[str, Any] = {"device": name, "failed": {}}
    with tempfile.TemporaryDirectory() as folder:
        work = Parts(options, device, Path(folder))
        for part in wanted:
            begin = time.perf_counter()
            try:
                found[part] = parts[part](work)
            except (UserError, RuntimeError, ImportError) as error:
                found["failed"][part] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                console.print(f"{part}: failed: {found['failed'][part]}", markup=False)
                continue
            console.print(_table(f"{part} ({time.perf_counter() - begin:.0f} s)", found[part]))
    return found


class Parts:
    """What the bench measures, part by part; each gives the rows of its table."""

    def __init__(self, options: argparse.Namespace, device: torch.device, folder: Path):
        self.options, self.device, self.folder = options, device, folder
        self.small = options.small
        self.meter = Meter(device, options.seconds)
        self.readers = options.workers or min(READERS_MOST, os.cpu_count() or 1)

    def data(self) -> Path:
        """Shards of small images: the user's, or noise."""
        return self.noise() if self.options.data is None else self.options.data

    def noise(self) -> Path:
        """Shards of small images of noise."""
        path = self.folder / "small"
        return path if path.exists() else small_images(path, 256 if self.small else 10_240)

    def pictures(self) -> Path:
        """Shards of photographs."""
        if self.options.photos is not None:
            return self.options.photos
        path = self.folder / "photos"
        return path / "shards" if path.exists() else photographs(path, 64 if self.small else 1024)

    def jpeg(self) -> list[Row]:
        """The round trip beside copying."""
        bandwidth = copying(self.meter, 1 << (22 if self.small else 30))
        rows: list[Row] = [{"work": "copying", "bytes/s": bandwidth}]
        shapes = ((8, 32, 25), (2, 64, 50)) if self.small else ((4096, 32, 5), (256, 224, 10))
        for count, size, delta in shapes:
            for subsampling in ("4:4:4", "4:2:0"):
                rows.append(versions(self.meter, count, size, delta, subsampling, bandwidth))
        return rows

    def cifar(self) -> list[Row]:
        """Cached small images: gathered, cropped, mirrored; and standardised too."""
        rows = []
        least = 512 if self.small else 200_000
        places: tuple[Where, ...] = ("device", "host")
        for cache in places:
            dataset = open_shards(self.data() / "train")  # decoded once
            for batch in (128, 1024):
                for chain in ("decode | augment(cifar)", "decode | augment(cifar) | normalize"):
                    stream = Stream(dataset, batch, cache=cache, device=self.device, workers=self.readers) | chain
                    stream.open()
                    found = self.meter.rate(passing(stream, least))
                    rows.append({"work": f"cache={cache}, batches of {batch}: {chain}", "images/s": found})
        return rows

    def photos(self) -> list[Row]:
        """Photographs to random boxes of 224 x 224: cut while decoding on the host, cut on the device, decoded and cut
        there; and the cutting alone."""
        rows, rates = [], []
        for chain in (
            "decode | augment(inception, 224, on=host)",
            "decode | augment(inception, 224, on=device)",
            "decode(on=device) | augment(inception, 224, on=device)",
        ):
            stream = (
                Stream(self.pictures() / "train", 64, workers=self.readers, device=self.device, cache="off") | chain
            )
            rates.append(self.meter.rate(passing(stream, 0 if self.small else 4096)))
            rows.append({"work": f"{chain}, {self.readers} readers", "images/s": rates[-1]})
        for work, rate in (("cut on the device", rates[1]), ("decoded and cut on the device", rates[2])):
            rows.append({"work": f"{work} / host", "ratio": rate / rates[0]})
        rows.append({"work": "cut_boxes alone, 64 whole images on the device", "images/s": self._cutting()})
        return rows

    def _cutting(self) -> float:
        whole = Stream(self.pictures() / "train", 64, device=self.device, cache="off") | decode
        batch = next(iter(whole | draw_boxes(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))))

        def cut() -> int:
            return sum(len(one) for one in cut_boxes(size=224)(iter([batch] * (1 if self.small else 64))))

        return self.meter.rate(cut)

    def decode(self) -> list[Row]:
        """JPEG decoding on the device."""
        return [decoding(self.meter, self.pictures())]

    def train(self) -> list[Row]:
        """Training steps of kdstream beside a plain loop."""
        rows = []
        steps = 2 if self.small else 100
        cpu = self.device.type == "cpu"
        images = noise(256 if self.small else 10_240, 32)
        for pair in TRIED if self.small else PAIRS:
            readers = 0 if self.small else min(8, self.readers)
            loop = PlainLoop(*pair, images, self.device, readers, self.options.precision)
            plain = loop.seconds_per_step(self.meter, steps)
            del loop
            rows.append(_cell(pair, f"a plain loop, kd, DataLoader of {readers} readers", plain, plain))
            for method in METHODS:
                taken = training(self.noise(), pair, method, self.options.precision, cpu, steps)
                rows.append(_cell(pair, method, taken, plain))
        return rows


def _cell(pair: tuple[str, str], method: str, seconds: float, plain: float) -> Row:
    return {
        "work": f"{' -> '.join(pair)}: {method}",
        "ms a step": 1e3 * seconds,
        "images/s": BATCH / seconds,
        "plain loop / this": plain / seconds,
        f"minutes of {EPOCHS} epochs": seconds * (CIFAR // BATCH) * EPOCHS / 60,
    }


def _table(title: str, rows: list[Row]) -> Any:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = new_table(title, *columns)
    for row in rows:
        table.add_row(*("" if row.get(name) is None else _shown(row[name]) for name in columns))
    return table


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
