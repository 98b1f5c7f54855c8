"""An ONNX file in int8: onnxruntime's static quantization, calibrated on images, and what it costs and saves."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdstream.atomic import write_atomic, writing
from kdstream.errors import UserError
from kdstream.models.onnx_export import need, quiet

ROUNDS = 50
"""Of timing, each of one pass by either file."""


def quantize_onnx(source: str | PathLike[str], path: str | PathLike[str], batches: Iterable[Tensor]) -> int:
    """Write an ONNX file whose convolutions and linear layers compute in int8; it takes and gives floats as before.

    Weights are symmetric int8, a scale for each output channel, of 7 bits: with all 8, processors without VNNI
    instructions saturate, and answers would depend on the processor. Activations are uint8; their ranges are the
    smallest and largest value that the images give (Jacob et al. 2018, "Quantization and training of neural networks
    for efficient integer-arithmetic-only inference", sec. 3 and 4.1, of a finished network).

    Args:
        source: the file in float32, as :func:`kdstream.models.onnx_export.export_onnx` writes it.
        path: of the new one; it appears whole or not at all.
        batches: images as the file takes them, float32 [n,3,H,W]: some hundreds in all, like those that it will see.

    Returns:
        Bytes of the new file.

    Raises:
        UserError: onnxruntime or onnx are not installed; no images; a network that cannot be quantized.
    """
    onnx = need("onnx")
    _runtime()
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        def __init__(self, arrays: Iterator[np.ndarray]):
            self.arrays, self.count = arrays, 0

        def get_next(self) -> dict[str, np.ndarray] | None:
            array = next(self.arrays, None)
            self.count += 0 if array is None else len(array)
            return None if array is None else {"images": array}

    arrays, path = (batch.cpu().float().numpy() for batch in batches), Path(path)
    if (first := next(arrays, None)) is None:
        raise UserError("int8: there are no images to calibrate with")
    images = Images(itertools.chain([first], arrays))
    with tempfile.TemporaryDirectory() as folder:
        ready, made = Path(folder, "ready.onnx"), Path(folder, "int8.onnx")
        try:
            with quiet():
                quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
                quantization.quantize_static(
                    str(ready),
                    str(made),
                    images,
                    per_channel=True,
                    reduce_range=True,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                )
        except UserError:
            raise
        except Exception as error:  # its exceptions have no common base of their own
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{source} cannot be quantized: {said}") from error
        model = onnx.load(made)
    before = onnx.load(source, load_external_data=False)
    about = {entry.key: entry.value for entry in before.metadata_props}
    onnx.helper.set_model_props(model, {**about, "quantized": f"int8, calibrated on {images.count} images"})
    model.doc_string = before.doc_string
    data = model.SerializeToString()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    return len(data)


class Runner:
    """An ONNX file that answers as a network does, by onnxruntime on the CPU.

    Args:
        path: of the file, with an input ``images`` and an output ``logits``.

    Raises:
        UserError: onnxruntime is not installed, or cannot run the file.
    """

    def __init__(self, path: str | PathLike[str]):
        runtime = _runtime()
        settings = runtime.SessionOptions()
        settings.log_severity_level = 4
        try:
            self._session = runtime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            said = (str(error).strip().splitlines() or ["unknown reason"])[0]
            raise UserError(f"{path}: onnxruntime cannot run it: {said}") from error

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 [n,3,H,W], as the file takes them -> logits [n,C], both on the CPU."""
        (logits,) = self._session.run(["logits"], {"images": images.cpu().float().numpy()})
        return torch.from_numpy(logits)


def time_ratio(one: Runner, other: Runner, image: Tensor) -> float:
    """The time that ``one`` takes over that of ``other``: the median over rounds in which each sees ``image``."""
    ratios = []
    for _ in range(ROUNDS):
        first, second = (_seconds(runner, image) for runner in (one, other))
        ratios.append(first / second)
    return statistics.median(ratios[ROUNDS // 5 :])  # the first rounds warm up


def _seconds(runner: Runner, image: Tensor) -> float:
    start = time.perf_counter()
    runner(image)
    return time.perf_counter() - start


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError("int8 needs onnxruntime: pip install onnxruntime") from None
    return onnxruntime
