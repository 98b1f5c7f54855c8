"""ONNX files in int8: what is written, that answers stay close, what is refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
import torch
from onnx_files import answer, images

from kdstream.errors import UserError
from kdstream.models.quantize import Runner, quantize_onnx, time_ratio


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A float file of two convolutions and a linear layer, which is made here because torch's exporter takes seconds
    to load."""
    draw = np.random.default_rng(0)
    shapes = {"a": (16, 3, 3, 3), "b": (32, 16, 3, 3), "c": (32, 10)}
    weights = {name: draw.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["images", "a"], ["1"], pads=[1] * 4),
        node("Relu", ["1"], ["2"]),
        node("Conv", ["2", "b"], ["3"], strides=[2, 2]),
        node("GlobalAveragePool", ["3"], ["4"]),
        node("Flatten", ["4"], ["5"]),
        node("Gemm", ["5", "c"], ["logits"]),
    ]
    batch = partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    inputs, outputs = [batch("images", shape=["batch", 3, 16, 16])], [batch("logits", shape=["batch", 10])]
    kept = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = onnx.helper.make_graph(nodes, "net", inputs, outputs, kept)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.helper.set_model_props(model, {"input": "float32", "classes": "[]"})
    path = tmp_path_factory.mktemp("onnx") / "student.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def quantized(exported):
    path = exported.with_suffix(".int8.onnx")
    size = quantize_onnx(exported, path, (images(8, seed) for seed in range(4)))
    assert size == path.stat().st_size
    return path


def test_the_file_computes_in_int8_and_is_smaller(exported, quantized):
    model = onnx.load(quantized)
    onnx.checker.check_model(model, full_check=True)
    whole = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    kernels = [array for array in whole.values() if array.dtype == np.int8 and array.ndim == 4]
    assert len(kernels) == 2, "both convolutions"
    assert max(np.abs(kernel).max() for kernel in kernels) <= 64, "7 bits"
    assert [name for name, array in whole.items() if array.dtype == np.float32 and array.size > 64] == []
    assert quantized.stat().st_size < 0.5 * exported.stat().st_size


def test_it_answers_almost_as_the_float_file_for_any_number_of_images(exported, quantized):
    for count in (1, 5):
        x = images(count, seed=9)
        before, after = answer(exported, x), answer(quantized, x)
        assert after.shape == before.shape == (count, 10)
        spread = before.max() - before.min()
        assert 0 < np.abs(after - before).max() < 0.1 * spread
        np.testing.assert_array_equal(Runner(quantized)(x).numpy(), after)


def test_it_says_what_the_float_file_says(exported, quantized):
    before, after = ({one.key: one.value for one in onnx.load(p).metadata_props} for p in (exported, quantized))
    assert after == {**before, "quantized": "int8, calibrated on 32 images"}


def test_a_range_that_calibration_does_not_see_is_cut_off(exported, tmp_path):
    dark = tmp_path / "dark.onnx"
    quantize_onnx(exported, dark, [torch.zeros(4, 3, 16, 16)])
    x = images(4)
    far = np.abs(answer(dark, x) - answer(exported, x)).max()
    assert far > 10 * np.abs(answer(dark, 0 * x) - answer(exported, 0 * x)).max(), "the images count"


def test_times_are_compared(exported, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr("kdstream.models.quantize.time.perf_counter", lambda: float(next(clock)))
    runner = Runner(exported)
    assert time_ratio(runner, runner, images(1)) == 1.0


def test_mistakes_are_a_line_and_leave_no_file(exported, tmp_path):
    for source, batches, says in (
        (exported, [], "there are no images to calibrate with"),
        (exported, [torch.zeros(2, 3, 9, 9)], "cannot be quantized"),
        (tmp_path / "nowhere.onnx", [images(2)], "cannot be quantized"),
    ):
        with pytest.raises(UserError, match=says) as error:
            quantize_onnx(source, tmp_path / "x.onnx", batches)
        assert "\n" not in str(error.value)
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="onnxruntime cannot run it"):
        Runner(tmp_path / "no.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["no.onnx"]
