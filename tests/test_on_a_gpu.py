"""What only a GPU shows: the same batches and choices as on the processor, and trainings in its precisions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from image_bytes import encoded, exif
from photographs import jpeg as jpeg_file
from photographs import photograph
from tars import write_tar

import kdstream as kd
from kdstream import jpeg
from kdstream.batch import Outputs
from kdstream.stream.coded import hkl

GPU = "cuda" if torch.cuda.is_available() else os.environ.get("KDSTREAM_TEST_DEVICE", "")
"""The variable lets these tests be tried without one: ``cpu``."""
pytestmark = pytest.mark.skipif(not GPU, reason="there is no GPU here")

COMMAND = [sys.executable, "-m", "kdstream", "train"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}


@pytest.mark.parametrize(
    "chain", ["decode | augment(cifar)", "decode | augment(cifar, pad=2, mode=reflect) | normalize"]
)
@pytest.mark.parametrize("cache", ["off", "host", "device"])
def test_batches_are_those_of_the_processor(digits, chain, cache):
    there = kd.Stream(digits / "train", 48, seed=3, device=GPU, cache=cache) | chain
    here = kd.Stream(digits / "train", 48, seed=3, cache="off") | chain
    for ours, theirs in zip(there, here, strict=True):
        assert ours.image.device.type == GPU
        assert torch.equal(ours.index.cpu(), theirs.index)
        assert torch.equal(ours.label.cpu(), theirs.label)
        torch.testing.assert_close(ours.image.cpu(), theirs.image, rtol=0, atol=1e-6 if "normalize" in chain else 0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_photographs_are_cut_and_decoded_there(tmp_path, interpolation):
    """Boxes are the host's; nvJPEG's colours are its own. The host decodes the last three."""
    files = [("jpg", jpeg_file(photograph(200 + 9 * n, 300 - 7 * n, n), subsampling=n % 3)) for n in range(12)]
    files += [("jpg", jpeg_file(photograph(120, 180, 20).convert("L")))]
    files += [("jpg", jpeg_file(photograph(120, 180, 21), progressive=True))]
    files += [("jpg", jpeg_file(photograph(120, 180, 22), exif=exif(6)))]
    files += [("png", encoded(photograph(120, 180, 23), "PNG"))]
    members = [(f"{i:02}.{name}", data) for i, (name, data) in enumerate(files)]
    write_tar(tmp_path / "own-000000.tar", sorted([*members, *((f"{i:02}.cls", b"1") for i in range(len(files)))]))

    def views(chain: str, device: str, workers: int = 0) -> torch.Tensor:
        stream = kd.Stream(tmp_path, 8, device=device, workers=workers)
        cut = f"augment(inception, 64, on=device, interpolation={interpolation})"
        return torch.cat([batch.image.cpu() for batch in stream | f"{chain} | {cut}"]).float()

    here = views("decode", "cpu")
    assert (views("decode", GPU) - here).abs().max() <= (1 if interpolation == "bilinear" else 2)
    there = views("decode(on=device)", GPU)
    assert (there - here).abs().mean((1, 2, 3)).max() < 3
    assert (there - here).abs().mean() < 2
    for _ in range(3):
        assert torch.equal(views("decode(on=device)", GPU, workers=2), there)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_versions_of_photographs(subsampling):
    """Of many blocks and programs at once, and large enough to be cut into pieces."""
    images = torch.randint(0, 256, (6, 3, 150, 203), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    qualities = list(range(0, 101, 20))
    ours = jpeg.roundtrip(images.to(GPU), qualities, subsampling)
    assert torch.equal(ours.cpu(), jpeg.roundtrip(images, qualities, subsampling))


def test_a_coded_teacher_chooses_as_it_does_on_the_processor(digits):
    """In float64 answers differ by rounding alone, which decides nothing here."""
    weights = torch.randn(3 * 16 * 16, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def answers(device: str) -> tuple[torch.Tensor, torch.Tensor]:
        given = {
            "teacher": lambda images: Outputs(images.double().flatten(1) @ weights.to(images.device)),
            "teacher_mean": (0.5, 0.5, 0.5),
            "teacher_std": (0.3, 0.3, 0.3),
        }
        stream = kd.Stream(digits / "train", 60, device=device, given=given)
        batches = list(stream | "decode | coded(hkl, delta=25) | augment(cifar) | teacher")
        return (
            torch.cat([batch.quality.cpu() for batch in batches]),
            torch.cat([batch.teacher.logits.cpu() for batch in batches]),
        )

    (here, values), (there, found) = answers("cpu"), answers(GPU)
    assert len(here.unique()) > 2
    assert torch.equal(here, there)
    torch.testing.assert_close(values, found, rtol=1e-4, atol=1e-4)  # images are standardised in float32
    logits = torch.randn(50, 7, 10, generator=torch.Generator().manual_seed(1))
    label = torch.arange(50) % 10
    assert torch.equal(hkl(logits, label), hkl(logits.to(GPU), label.to(GPU)).cpu())


@pytest.fixture
def recipe(digits, tmp_path) -> Path:
    """A teacher and a coded student, by a plan, with what depends on the device left open."""
    settings = {
        "data": {"path": str(digits)},
        "student": "resnet8",
        "teacher": {"model": "resnet8", "train": {"loss": "ce", "epochs": 6}},
        "loss": {"ce": 0.5, "kd": {"weight": 0.5, "temperature": 2}},
        "stream": "decode | coded(hkl, delta=25, plan=auto) | augment(cifar)",
        "optimizer": {"lr": 0.05},
        "epochs": 6,
        "batch_size": 40,
        "tensorboard": False,
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"] if GPU == "cuda" else ["no"])
def test_a_coded_student_is_trained_and_exported(recipe, precision):
    """The export answers on both devices alike."""
    folder = recipe.parent
    settings = [str(recipe), f"precision={precision}", "out=run"]
    done = subprocess.run([*COMMAND, *settings], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["top1"] > 15
    assert GPU != "cuda" or result["memory"]["device"] > 0
    images = torch.rand(4, 3, 16, 16)
    student = kd.load_student(folder / "run")
    with torch.no_grad():
        expected = student(images)
        torch.testing.assert_close(student.to(GPU)(images.to(GPU)).cpu(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("loss", ["crd", "reviewkd", "simkd", "dist", "cmkd", "rkd", "wttm"])
def test_objectives_with_parts_of_their_own(recipe, loss):
    """Memory banks, connectors, sorted and pairwise statistics: all on the device."""
    settings = [str(recipe), f"loss={{{loss}: 1}}" if loss == "simkd" else f"loss={{ce: 1, {loss}: 1}}", "epochs=1"]
    settings += ["stream=decode | augment(cifar)", "teacher.train.epochs=1", f"out={loss}"]
    done = subprocess.run([*COMMAND, *settings], cwd=recipe.parent, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((recipe.parent / loss / "result.json").read_text())["top1"] >= 0
