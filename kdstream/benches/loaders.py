"""Data loaders for bench ``stream``: kdstream's and others', each giving uint8 batches of the same augmented images.

Each is a function (what is asked for) -> (a function that goes once through the set, giving its batches). What another
library needs to have on disk is written before the time counts.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from kdstream.stream.augment import draw_box
from kdstream.stream.stream import Stream

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
PAD = 4


@dataclass(frozen=True)
class Asked:
    """What a loader shall give.

    Attributes:
        folder: holds ``images/<class>/*``, ``shards/`` and, for a loader's own files, room.
        boxes: random resized crops and flips; else crops of the padded image and flips.
        size: side of the views.
        batch: images of a batch.
        workers: reader processes, or threads where a library has threads.
    """

    folder: Path
    boxes: bool
    size: int
    batch: int
    workers: int

    @property
    def paths(self) -> list[Path]:
        """The image files."""
        return sorted((self.folder / "images").glob("*/*"))

    @property
    def shards(self) -> list[str]:
        """The tars."""
        return sorted(map(str, (self.folder / "shards").glob("*.tar")))


Epoch = Callable[[], Iterable[Tensor]]


def kdstream(asked: Asked) -> Epoch:
    """Reader processes."""
    kind = f"inception, {asked.size}" if asked.boxes else f"cifar, pad={PAD}"
    text = f"decode | augment({kind})"
    stream = Stream(asked.folder / "shards" / "train", asked.batch, workers=asked.workers, cache="off") | text
    return lambda: (batch.image for batch in stream)


def kdstream_cached(asked: Asked) -> Epoch:
    """Decoded once and kept in memory: no reader processes."""
    stream = (
        Stream(asked.folder / "shards" / "train", asked.batch, cache="host") | f"decode | augment(cifar, pad={PAD})"
    )
    return lambda: (batch.image for batch in stream)


def _view(asked: Asked, tensors: bool = False) -> Any:
    """torchvision's transforms of an image, or of a tensor."""
    from torchvision.transforms import v2

    cut = [v2.RandomResizedCrop(asked.size, SCALE, RATIO, antialias=True)]
    if not asked.boxes:
        cut = [v2.RandomCrop(asked.size, padding=PAD)]
    return v2.Compose([*cut, v2.RandomHorizontalFlip(), *([] if tensors else [v2.PILToTensor()])])


def _loaded(asked: Asked, data: Any, **settings: Any) -> Epoch:
    """torch's loader over (image, label)."""
    settings = {"batch_size": asked.batch, "num_workers": asked.workers, "persistent_workers": True} | settings
    loader = DataLoader(data, **settings)
    return lambda: (images for images, _ in loader)


def torchvision(asked: Asked) -> Epoch:
    """ImageFolder, which opens images by Pillow."""
    from torchvision.datasets import ImageFolder

    return _loaded(asked, ImageFolder(str(asked.folder / "images"), _view(asked)), shuffle=True)


def _by_torchvision(path: str) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(path, ImageReadMode.RGB)


def torchvision_io(asked: Asked) -> Epoch:
    """ImageFolder with torchvision's own decoder and transforms of tensors."""
    from torchvision.datasets import ImageFolder

    data = ImageFolder(str(asked.folder / "images"), _view(asked, tensors=True), loader=_by_torchvision)
    return _loaded(asked, data, shuffle=True)


class _InMemory(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Pixels in an array, each image transformed when it is asked for, as torchvision's CIFAR10 does it."""

    def __init__(self, asked: Asked):
        self.pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in asked.paths])
        self.view = _view(asked)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.view(Image.fromarray(self.pixels[i])), 0


def torchvision_in_memory(asked: Asked) -> Epoch:
    """An array in memory, as torchvision's CIFAR10 has it."""
    return _loaded(asked, _InMemory(asked), shuffle=True)


def webdataset(asked: Asked) -> Epoch:
    """The same tars, shuffled in a buffer."""
    import webdataset as wds

    data = wds.WebDataset(asked.shards, shardshuffle=len(asked.shards), empty_check=False).shuffle(100).decode("pil")
    pairs = data.to_tuple("jpg;jpeg;png", "cls").map_tuple(_view(asked), int)
    return _loaded(asked, pairs.batched(asked.batch), batch_size=None)


class _Opened:
    """(bytes of an image file, label) -> (view, label)."""

    def __init__(self, asked: Asked):
        self.view = _view(asked)

    def __call__(self, sample: Mapping[str, Any]) -> tuple[Tensor, int]:
        return self.view(Image.open(io.BytesIO(sample["image"])).convert("RGB")), sample["label"]


def litdata(asked: Asked) -> Epoch:
    """Its chunks of files, as bytes."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import Cache

    place = str(asked.folder / "litdata")
    cache = Cache(place, chunk_bytes="16MB")
    for i, path in enumerate(asked.paths):
        cache[i] = {"image": path.read_bytes(), "label": i % 10}
    cache.done()
    cache.merge()
    opened = _Opened(asked)

    class Views(StreamingDataset):
        def __getitem__(self, index: Any) -> tuple[Tensor, int]:
            return opened(super().__getitem__(index))

    loader = StreamingDataLoader(
        Views(place, shuffle=True), batch_size=asked.batch, num_workers=asked.workers, persistent_workers=True
    )
    return lambda: (images for images, _ in loader)


def streaming(asked: Asked) -> Epoch:
    """Its shards of files, as bytes."""
    from streaming import MDSWriter, StreamingDataset

    place = str(asked.folder / "streaming")
    with MDSWriter(out=place, columns={"image": "bytes", "label": "int"}, size_limit="16mb") as writer:
        for i, path in enumerate(asked.paths):
            writer.write({"image": path.read_bytes(), "label": i % 10})
    opened = _Opened(asked)

    class Views(StreamingDataset):
        def __getitem__(self, index: Any) -> tuple[Tensor, int]:
            return opened(super().__getitem__(index))

    return _loaded(asked, Views(local=place, shuffle=True, batch_size=asked.batch))


def spdl(asked: Asked) -> Epoch:
    """Threads; FFmpeg decodes, cuts and scales."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    paths = list(map(str, asked.paths))
    spdl.io.load_image(paths[0])  # says why where there is no FFmpeg; in the threads it would be told once an image

    def decoded(path: str) -> Any:
        packets = spdl.io.demux_image(path)
        if asked.boxes:
            box = draw_box(packets.height, packets.width, [random.random() for _ in range(40)], SCALE, RATIO)
            top, left, height, width = box
            cut = f"crop={width}:{height}:{left}:{top}:exact=1,scale={asked.size}:{asked.size}:flags=bilinear"
        else:
            top, left = random.randint(0, 2 * PAD), random.randint(0, 2 * PAD)
            side = asked.size + 2 * PAD
            cut = f"pad={side}:{side}:{PAD}:{PAD},crop={asked.size}:{asked.size}:{left}:{top}:exact=1"
        flip = ",hflip" if random.random() < 0.5 else ""
        return spdl.io.decode_packets(packets, filter_desc=f"{cut}{flip},format=pix_fmts=rgb24")

    def batched(frames: list[Any]) -> Tensor:
        pixels = spdl.io.to_torch(spdl.io.convert_frames(frames))
        return pixels.permute(0, 3, 1, 2).contiguous()

    def epoch() -> Iterator[Tensor]:
        random.shuffle(paths)
        builder = PipelineBuilder().add_source(paths).pipe(decoded, concurrency=asked.workers)
        pipeline = builder.aggregate(asked.batch).pipe(batched).add_sink(3).build(num_threads=asked.workers)
        with pipeline.auto_stop():
            yield from pipeline

    return epoch


def dali(asked: Asked) -> Epoch:
    """Threads on the CPU; boxes are decoded in part."""
    from nvidia.dali import fn, pipeline_def, types

    paths = list(map(str, asked.paths))

    @pipeline_def(batch_size=asked.batch, num_threads=asked.workers, device_id=None)
    def defined() -> Any:
        data, label = fn.readers.file(files=paths, labels=[0] * len(paths), random_shuffle=True)
        if asked.boxes:
            image = fn.decoders.image_random_crop(
                data, device="cpu", random_area=list(SCALE), random_aspect_ratio=list(RATIO)
            )
            image = fn.resize(
                image,
                resize_x=asked.size,
                resize_y=asked.size,
                antialias=True,
                interp_type=types.INTERP_TRIANGULAR,
            )
        else:
            corner = fn.random.uniform(range=[-PAD - 0.5, PAD + 0.5], shape=[2])
            image = fn.slice(
                fn.decoders.image(data, device="cpu"),
                start=fn.cast(corner, dtype=types.INT32),
                shape=[asked.size, asked.size],
                axes=[0, 1],
                out_of_bounds_policy="pad",
            )
        mirrored = fn.crop_mirror_normalize(
            image, mirror=fn.random.coin_flip(), dtype=types.UINT8, mean=[0.0], std=[1.0], output_layout="CHW"
        )
        return mirrored, label

    pipeline = defined()
    pipeline.build()

    def epoch() -> Iterator[Tensor]:
        steps, ahead = len(paths) // asked.batch, 2
        for _ in range(min(ahead, steps)):  # run() would go on making batches when the pass is over
            pipeline.schedule_run()
        for step in range(steps):
            images, _ = pipeline.share_outputs()
            yield torch.from_dlpack(images.as_tensor())
            pipeline.release_outputs()
            if step + ahead < steps:
                pipeline.schedule_run()

    return epoch


@dataclass(frozen=True)
class Loader:
    """A way to load images.

    Attributes:
        make: (what is asked for) -> a function that goes once through the set.
        package: what must be installed; None: comes with kdstream.
        distributions: under which names the registry has it.
    """

    make: Callable[[Asked], Epoch]
    package: str | None = None
    distributions: tuple[str, ...] = ()


LOADERS: Mapping[str, Loader] = {
    "kdstream": Loader(kdstream),
    "kdstream, cached": Loader(kdstream_cached),
    "torchvision": Loader(torchvision, "torchvision", ("torchvision",)),
    "torchvision.io": Loader(torchvision_io, "torchvision", ("torchvision",)),
    "torchvision, in memory": Loader(torchvision_in_memory, "torchvision", ("torchvision",)),
    "webdataset": Loader(webdataset, "webdataset", ("webdataset",)),
    "litdata": Loader(litdata, "litdata", ("litdata",)),
    "streaming": Loader(streaming, "streaming", ("mosaicml-streaming",)),
    "spdl": Loader(spdl, "spdl", ("spdl",)),
    "dali": Loader(dali, "nvidia.dali", tuple(f"nvidia-dali-cuda{number}" for number in (130, 120, 110))),
}
"""All loaders by the name that the table shows."""
