"""Bench ``jpeg``: JPEG versions made by kdstream and by the libraries that people make them with."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kdstream import jpeg as kdstream_jpeg
from kdstream.benches.measure import SUBSAMPLING, Ratio, alternate, bench, milliseconds, new_table, ratio, step, whole
from kdstream.errors import UserError
from kdstream.jpeg.reference import Subsampling
from kdstream.registry import nearest


@dataclass(frozen=True)
class Case:
    """So many square colour images of a size, each at so many qualities; ``targets``: peer -> how many times faster."""

    batch: int
    size: int
    qualities: tuple[int, ...]
    subsampling: Subsampling = "4:4:4"
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
    found: list[dict[str, Any]] = []
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
