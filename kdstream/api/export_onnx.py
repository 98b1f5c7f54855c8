"""export_onnx: a student as one ONNX file, from its folder or from the network itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from torch import nn

from kdstream.api.students import load_student
from kdstream.errors import UserError
from kdstream.models import onnx_export
from kdstream.models.onnx_export import OnnxFile
from kdstream.notes import about_of


def export_onnx(
    student: nn.Module | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    normalization: bool = False,
    opset: int | None = None,
    checkpoint: Literal["last", "best"] | None = None,
    trust_code: bool = False,
) -> OnnxFile:
    """Write a student as ONNX, checked against torch where onnxruntime is installed.

    Args:
        student: a result of :func:`kdstream.distill`, the folder of a run, or a network as
            :func:`kdstream.load_student` gives it.
        path: of the file; default: student.onnx in the run's folder.
        size: pixels, H = W, or (H, W); default: as trained.
        normalization: the file takes images in [0,1] and standardises them itself.
        opset: of ONNX; None = the one that torch writes by itself.
        checkpoint: the weights so far of a training, see :func:`kdstream.load_student`.
        trust_code: run the code of a network of your own that an export names.

    Raises:
        UserError: no student there; no path or size that is known; see
            :func:`kdstream.models.onnx_export.export_onnx`.
    """
    if isinstance(student, nn.Module):
        network = student
    else:
        network = load_student(student, trust_code, checkpoint=checkpoint)
        place = Path(student)
        path = path if path is not None else (place if place.is_dir() else place.parent) / "student.onnx"
    if path is None:
        raise UserError("export_onnx of a module needs a path: give one, as student.onnx")
    about: Any = about_of(network)
    size = size if size is not None else about.get("image_size")
    if size is None:
        raise UserError("the network does not say what size of images it takes: give size, as size=32")
    height, width = (size, size) if isinstance(size, int) else size
    return onnx_export.export_onnx(
        network,
        path,
        (height, width),
        mean=about.get("mean"),
        std=about.get("std"),
        normalization=normalization,
        classes=about.get("classes"),
        opset=opset,
        metadata={key: about[key] for key in ("spec", "weights_sha256") if key in about},
    )
