"""The student as one ONNX file: any batch size, checked against torch, with the normalisation inside on request."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdstream.atomic import write_atomic
from kdstream.batch import SMALLEST_STD
from kdstream.errors import UserError
from kdstream.notes import architecture

TOLERANCE = 1e-3
"""Largest difference from torch's logits that is let pass, relative to the largest of them. Usual is below 1e-5."""

_OLDEST_OPSET = 18
"""The opset in which torch's exporter thinks; it converts to newer ones, not to older ones."""


@dataclass(frozen=True)
class OnnxFile:
    """What was written.

    Attributes:
        path: the file.
        size: its bytes.
        opset: of the standard ONNX domain.
        shape: of the input ``images``: (3, H, W) after the free batch dimension.
        takes: the input in words.
        difference: largest absolute difference of onnxruntime's logits from torch's; None: onnxruntime is not
            installed, so nothing was compared.
        largest: largest absolute logit of that comparison.
    """

    path: Path
    size: int
    opset: int
    shape: tuple[int, int, int]
    takes: str
    difference: float | None
    largest: float


class Normalised(nn.Module):
    """A network with the standardisation before it: images float [N,C,H,W] in [0,1] -> logits.

    Args:
        network: takes standardised images.
        mean, std: by channel, for images in [0,1]; a std below 1e-6 counts as 1e-6, as in training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).clamp(min=SMALLEST_STD).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


def export_onnx(
    network: nn.Module,
    path: str | PathLike[str],
    image_size: tuple[int, int],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    normalization: bool = False,
    classes: Sequence[str] | None = None,
    opset: int | None = None,
    metadata: dict[str, Any] | None = None,
) -> OnnxFile:
    """Write ``network`` as ONNX: input ``images`` float32 [batch,3,H,W] RGB, output ``logits`` float32 [batch,C].

    The weights stand in the file. It appears whole or not at all, and only after onnxruntime, where that is
    installed, has given torch's logits for batches of 1 and 3 random images. What the input must be is written
    into the file's metadata (``input``; ``classes``, ``mean``, ``std`` and ``metadata`` as JSON).

    Args:
        network: images -> logits; left as it is (a copy is exported: on the CPU, in eval mode).
        path: of the file.
        image_size: (H, W), fixed in the file.
        mean, std: by channel, of images in [0,1], as the network was trained.
        normalization: True = the file takes images in [0,1] and standardises them itself; False = it takes
            standardised images, as the network does.
        classes: C names, in the order of the logits.
        opset: of ONNX; by default the one that the installed torch writes by itself (20 for torch 2.15).
        metadata: more to write into the file; plain JSON values.

    Raises:
        UserError: onnx and onnxscript are not installed; no mean and std to put inside; an opset that does not work; a
            network that has no ONNX form; onnxruntime's logits differ from torch's by more than ``TOLERANCE``; a
            place that cannot be written to.
    """
    onnx = need("onnx")
    need("onnxscript")
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not _OLDEST_OPSET <= opset <= newest:
        raise UserError(f"opset {opset}: torch and the installed onnx write opsets {_OLDEST_OPSET} to {newest}")
    name = architecture(network)
    plain = copy.deepcopy(network).cpu().float().eval()
    unit = torch.rand(3, 3, *image_size, generator=torch.Generator().manual_seed(0))
    if normalization:
        if mean is None or std is None:
            raise UserError(f"{name}: its mean and std are not known, so the normalisation cannot be put inside")
        plain, images = Normalised(plain, mean, std).eval(), unit
        takes = "RGB images in [0,1], not standardised"
    else:
        images = unit if mean is None or std is None else Normalised(nn.Identity(), mean, std)(unit)
        takes = "standardised RGB images: (x - mean) / std by channel, for x in [0,1]"
    takes = f"float32 [batch,3,{image_size[0]},{image_size[1]}], {takes}"
    with torch.no_grad():
        expected = plain(images)
    model = _model(plain, images[:2], opset, name)
    written = next(entry.version for entry in model.opset_import if entry.domain == "")
    if opset is not None and written != opset:
        raise UserError(f"{name} could not be converted to opset {opset} (it is {written}); leave the opset out")
    about = {"classes": classes, "mean": mean, "std": std, **(metadata or {})}
    about = {key: json.dumps(value, ensure_ascii=False) for key, value in about.items() if value is not None}
    onnx.helper.set_model_props(model, {"input": takes, **about})
    model.doc_string = f"{name}, exported by kdstream. images: {takes}. logits: before any softmax."
    data = model.SerializeToString()
    largest = expected.abs().max().item()
    difference = _difference(data, images, expected, name, written)
    if difference is not None and not difference <= TOLERANCE * max(largest, 1e-6):
        raise UserError(
            f"{name}: onnxruntime's logits differ from torch's by up to {difference:.3g} (largest logit "
            f"{largest:.3g}), so nothing is written; try another opset"
        )
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    return OnnxFile(path, len(data), written, (3, *image_size), takes, difference, largest)


def need(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"ONNX export needs {package}: pip install onnx onnxscript") from None


def _model(network: nn.Module, images: Tensor, opset: int | None, name: str) -> Any:
    """The graph as onnx.ModelProto, its weights within."""
    try:
        with quiet():
            program = torch.onnx.export(
                network,
                (images,),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            model = program.model_proto
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()
        raise UserError(f"{name} cannot be exported to ONNX: {reason[0] if reason else 'unknown reason'}") from error
    # Where the network's code fixes the batch size, the exporter goes on with that of the example.
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise UserError(
            f"{name} cannot be exported to ONNX: its forward pass depends on the number of images (len(images), a "
            "Python int or condition made of images.shape[0]); write it for any"
        )
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's chatter on its own steps, which a user can do nothing about."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _difference(data: bytes, images: Tensor, expected: Tensor, name: str, opset: int) -> float | None:
    """Of onnxruntime's logits for one image and for all from torch's; None without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        return None
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
        found = [session.run(["logits"], {"images": images[:count].numpy()})[0] for count in (1, len(images))]
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        reason = (str(error).strip().splitlines() or ["unknown reason"])[0]
        raise UserError(f"{name}: onnxruntime cannot run its ONNX form of opset {opset}: {reason}") from error
    gaps = [(torch.from_numpy(logits) - expected[: len(logits)]).abs().max() for logits in found]
    return torch.stack(gaps).max().item()
