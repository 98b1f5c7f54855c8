"""Every objective, the coded selector and the model zoo against measured values: value, gradients, parameter names.

The cases are the .npz files of ``tests/golden``, or of the folder that the environment variable ``KDSTREAM_GOLDEN``
names; its README files describe formulas and schema. A new objective enters by an adapter in a file of
``golden_adapters``.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_case import TOLERANCE, Adapter, Case, assert_near
from torch import Tensor, nn

from kdstream import models
from kdstream.batch import Batch, Outputs
from kdstream.models.taps import Tapped
from kdstream.objectives import OBJECTIVES
from kdstream.objectives.common.soft_rank import soft_rank
from kdstream.stream.coded import hkl

GOLDEN = Path(os.environ.get("KDSTREAM_GOLDEN") or Path(__file__).parent / "golden")


def _adapters() -> dict[str, Adapter]:
    """Those of every file in ``golden_adapters``."""
    found: dict[str, Adapter] = {}
    for path in sorted((Path(__file__).parent / "golden_adapters").glob("*.py")):
        family = importlib.import_module(f"golden_adapters.{path.stem}").ADAPTERS
        twice = found.keys() & family.keys()
        assert not twice, f"{path}: methods that another file adapts as well: {sorted(twice)}"
        found |= family
    return found


ADAPTERS = _adapters()


# ---------------------------------------------------------------------------------------------- objectives


def outputs_of(role: str, inputs: Mapping[str, Tensor], used: set[str]) -> Outputs | None:
    """The case's ``student.`` or ``teacher.`` tensors as Outputs; adds their names to ``used``."""
    names = [name for name in inputs if name == f"{role}.logits" or name.startswith(f"{role}.features.")]
    if not names:
        return None
    used.update(names)
    features = {name.removeprefix(f"{role}.features."): inputs[name] for name in names if "features" in name}
    some = inputs[names[0]]
    return Outputs(inputs.get(f"{role}.logits", some.new_zeros(len(some), 2)), features)


def batch_of(case: Case, count: int, used: set[str]) -> Batch:
    """The case's labels, index and images as a Batch (zeros and 0..N-1 where it has none)."""
    names = {"image": "images", "label": "labels", "index": "index"}
    used.update(name for name in names.values() if name in case.inputs)
    image, label, index = (case.inputs.get(name) for name in names.values())
    return Batch(
        image=torch.zeros(count, 3, 1, 1, dtype=case.dtype) if image is None else image,
        label=torch.zeros(count, dtype=torch.int64) if label is None else label,
        index=torch.arange(count) if index is None else index,
    )


def fill(module: nn.Module, values: Mapping[str, Tensor], what: str) -> None:
    """Give the module's parameters and buffers the case's values, by name; nothing may be left on either side."""
    parameters = dict(module.named_parameters())
    targets = {**dict(module.named_buffers()), **parameters}
    missing, left = values.keys() - targets.keys(), parameters.keys() - values.keys()
    assert not missing, f"{what}: no parameter or buffer called {sorted(missing)}; there are {sorted(targets)}"
    assert not left, f"{what}: parameters that the case has no values for: {sorted(left)}"
    with torch.no_grad():
        for name, value in values.items():
            assert targets[name].shape == value.shape, f"{what}: {name} is {list(targets[name].shape)}"
            targets[name].copy_(value)


def check_objective(case: Case, adapter: Adapter) -> None:
    """Build the term from the case's hyper-parameters, run it on the case's tensors, compare all that is stored."""
    relative, _, zero = TOLERANCE[case.dtype]
    wanted = {name for group in case.grads.values() for name in group}
    inputs = {name: value.requires_grad_() if name in wanted else value for name, value in case.inputs.items()}
    used: set[str] = set()
    student = adapter.outputs(outputs_of("student", inputs, used))
    teacher = adapter.outputs(outputs_of("teacher", inputs, used))
    batch = batch_of(case, len(student.logits), used)

    term = OBJECTIVES.find(case.method)(**adapter.settings(case))
    term.setup(adapter.task(case, student, teacher))
    term.to(case.dtype).train()
    used |= adapter.attach(term, case)
    unused = inputs.keys() - used
    assert not unused, f"{case.method}: inputs that nothing reads: {sorted(unused)}"
    own = {name: value for name, value in case.params.items() if f"param/{name}" not in used}
    fill(term, own, case.method)
    assert set(term.student_taps) == student.features.keys(), f"{case.method}: student taps {term.student_taps}"
    if teacher is not None:
        assert set(term.teacher_taps) == teacher.features.keys(), f"{case.method}: teacher taps {term.teacher_taps}"

    values = {**adapter.parts(term, student, teacher, batch), "loss": term(student, teacher, batch)}
    for name, expected in case.outs.items():
        if name not in adapter.unexposed:
            assert name in values, f"{case.method}: no value for out/{name}"
            assert_near(values[name].detach(), expected, relative, zero, f"{case.method}: out/{name}")
    leaves = {**inputs, **{f"param/{name}": value for name, value in term.named_parameters()}}
    for of, gradients in case.grads.items():
        check_gradients(values[of].mean(), gradients, leaves, case.dtype, f"{case.method}: {of}")


def check_gradients(
    value: Tensor, gradients: Mapping[str, Tensor], leaves: Mapping[str, Tensor], dtype: torch.dtype, what: str
) -> None:
    """Compare d value / d leaf for every stored gradient; what the value does not reach has gradient 0."""
    _, relative, zero = TOLERANCE[dtype]
    absent = gradients.keys() - leaves.keys()
    assert not absent, f"{what}: gradients of unknown tensors {sorted(absent)}"
    trained = [name for name in gradients if leaves[name].requires_grad]
    found: Iterable[Tensor | None] = torch.autograd.grad(
        value, [leaves[name] for name in trained], retain_graph=True, allow_unused=True
    )
    actual = dict(zip(trained, found, strict=True))
    for name, expected in gradients.items():
        gradient = actual.get(name)
        gradient = torch.zeros_like(expected) if gradient is None else gradient
        assert_near(gradient, expected, relative, zero, f"{what}: gradient of {name}")


# ------------------------------------------------------------------------------------------ coded selector


def check_hkl(case: Case) -> None:
    """The chosen versions, and KD towards them with its gradient."""
    relative, _, zero = TOLERANCE[case.dtype]
    assert case.hyper.keys() == {"tau", "V"}, f"hkl: hyper-parameters {sorted(case.hyper)}"
    assert case.outs.keys() <= {"selected", "loss", "kl", "correct", "selected_reverse_kl"}, sorted(case.outs)
    variants, label = case.inputs["teacher.variant_logits"], case.inputs["labels"]
    assert variants.shape[1] == case.hyper["V"]
    selected = hkl(variants, label)
    assert selected.dtype == torch.int64
    assert_near(selected, case.outs["selected"], 0, 0, "hkl: out/selected")
    student = case.inputs["student.logits"].requires_grad_()
    teacher = variants[torch.arange(len(label)), selected]
    term = OBJECTIVES.find("kd")(temperature=case.hyper["tau"])
    loss = term(Outputs(student), Outputs(teacher), batch_of(case, len(label), set()))
    assert_near(loss.detach(), case.outs["loss"], relative, zero, "hkl: out/loss")
    check_gradients(loss, case.grads["loss"], {"student.logits": student}, case.dtype, "hkl")


# ---------------------------------------------------------------------------------------------- soft ranks


def check_soft_rank(case: Case, backend: str) -> None:
    """The ranks, and their vector-Jacobian product with the stored gradient."""
    relative, _, zero = TOLERANCE[case.dtype]
    assert case.hyper.keys() == {"regularization", "regularization_strength"}, sorted(case.hyper)
    assert case.hyper["regularization"] == "l2"
    assert case.inputs.keys() == {"values", "grad_output"}
    assert case.outs.keys() == {"soft_rank"}
    values = case.inputs["values"].requires_grad_()
    ranks = soft_rank(values, case.hyper["regularization_strength"], backend)
    assert_near(ranks.detach(), case.outs["soft_rank"], relative, zero, "soft_rank: out/soft_rank")
    # The gradient of <grad_output, ranks>.
    product = (ranks * case.inputs["grad_output"]).sum()
    check_gradients(product, case.grads["loss"], {"values": values}, case.dtype, "soft_rank")


# -------------------------------------------------------------------------------------------------- models


def filled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the weights of the README's filling rule (computed in float64, rounded to float32)."""
    result = {}
    for k, (key, value) in enumerate(state.items()):
        if not value.is_floating_point():
            result[key] = torch.zeros_like(value)
            continue
        i = np.arange(value.numel(), dtype=np.int64)
        if value.ndim >= 2:
            q = (7919 * i * i + 37 * i + 104729 * k) % 1000003
            flat = 1.3 * np.sin(2 * math.pi * q / 1000003) / math.sqrt(value.numel() / value.shape[0])
        elif key.endswith(("running_var", ".weight")):
            flat = 1 + 0.1 * np.sin(0.37 * i + k)
        else:
            flat = 0.1 * np.sin(0.37 * i + k)
        result[key] = torch.from_numpy(flat.astype(np.float32)).reshape(value.shape)
    return result


def check_model(path: Path) -> None:
    """Keys and shapes in order, parameter count, logits, and shape, mean and spread of every tap."""
    with np.load(path, allow_pickle=False) as stored:
        meta = json.loads(str(stored["meta"]))
        x = torch.from_numpy(stored["in/x"])
        outs = {key.removeprefix("out/"): torch.from_numpy(stored[key]) for key in stored.files if key[:4] == "out/"}
    network = models.build(meta["name"], meta["num_classes"])
    state = network.state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == [list(entry) for entry in meta["state_dict"]]
    assert sum(parameter.numel() for parameter in network.parameters()) == meta["params"]
    network.load_state_dict(filled(state))
    taps = list(meta["taps"])
    with torch.inference_mode():
        outputs = Tapped(network, taps).eval()(x)
    assert_near(outputs.logits, outs.pop("logits"), 1e-5, 0, f"{meta['name']}: logits")
    assert outputs.features.keys() == meta["taps"].keys()
    for tap, shape in meta["taps"].items():
        value = outputs.features[tap].double()
        assert list(value.shape) == shape, f"{meta['name']}: {tap} is {list(value.shape)}, expected {shape}"
        mean, spread = outs.pop(f"{tap}.mean").double(), outs.pop(f"{tap}.std").double()
        scale = (mean.abs() + spread).item()
        assert abs(value.mean() - mean) <= 1e-5 * scale, f"{meta['name']}: mean of {tap}"
        assert abs(value.std(correction=0) - spread) <= 1e-5 * scale, f"{meta['name']}: spread of {tap}"
    assert not outs, f"{meta['name']}: values that nothing compares: {sorted(outs)}"


# --------------------------------------------------------------------------------------------------- tests

CASES = sorted(GOLDEN.glob("*/*.npz"))
FOLDERS = sorted({path.parent.name for path in CASES} | {path.name for path in GOLDEN.glob("[!.]*") if path.is_dir()})
OBJECTIVE_CASES = [path for path in CASES if path.parent.name in ADAPTERS]
HKL_CASES = [path for path in CASES if path.parent.name == "hkl"]
SOFT_RANK_CASES = [path for path in CASES if path.parent.name == "soft_rank"]
MODEL_CASES = [path for path in CASES if path.parent.name == "models"]
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def case_name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_the_folder_holds_cases():
    assert CASES, f"no <method>/*.npz under {GOLDEN}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_is_known(folder):
    assert folder in ADAPTERS or folder in ("hkl", "models", "soft_rank"), (
        f"golden folder {folder!r} is compared with nothing: add an adapter for it to ADAPTERS in {__file__}"
    )


@DTYPES
@pytest.mark.parametrize("path", OBJECTIVE_CASES, ids=case_name)
def test_objective(path, dtype):
    case = Case.read(path, dtype)
    assert case.method == path.parent.name
    ADAPTERS[case.method].check(case, check_objective)


@DTYPES
@pytest.mark.parametrize("path", HKL_CASES, ids=case_name)
def test_coded_selector(path, dtype):
    check_hkl(Case.read(path, dtype))


@DTYPES
@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("path", SOFT_RANK_CASES, ids=case_name)
def test_soft_rank(path, backend, dtype):
    check_soft_rank(Case.read(path, dtype), backend)


@pytest.mark.parametrize("path", MODEL_CASES, ids=case_name)
def test_model(path):
    check_model(path)


# ------------------------------------------------------------------------------- the comparison itself fails

FITNET = Path(__file__).parent / "golden" / "fitnet" / "00.npz"


def _broken(case: Case, how: str) -> Case:
    weight = "connector.block2.conv.weight"
    if how == "no translation":
        return case.changed(hyper={**case.hyper, "surprise": 1})
    if how == "out/loss":
        return case.changed(outs={**case.outs, "loss": case.outs["loss"] * (1 + 1e-4)})
    if how == "gradient of student.features.block2":
        gradient = case.grads["loss"]["student.features.block2"].clone()
        gradient.flatten()[0] += 1e-3 * gradient.abs().max()
        return case.changed(grads={"loss": {"student.features.block2": gradient}})
    if how == "no parameter or buffer called":
        return case.changed(params={**case.params, "stranger": torch.zeros(1)})
    if how == "has no values for":
        return case.changed(params={name: value for name, value in case.params.items() if name != weight})
    if how == "nothing reads":
        return case.changed(inputs={**case.inputs, "stranger": torch.zeros(1)})
    if how == "no value for out/stranger":
        return case.changed(outs={**case.outs, "stranger": torch.zeros(())})
    if how == "gradients of unknown tensors":
        return case.changed(grads={"loss": {"param/stranger": torch.zeros(1)}})
    raise ValueError(how)


@pytest.mark.parametrize(
    "how",
    [
        "no translation",
        "out/loss",
        "gradient of student.features.block2",
        "no parameter or buffer called",
        "has no values for",
        "nothing reads",
        "no value for out/stranger",
        "gradients of unknown tensors",
    ],
)
def test_a_broken_case_is_noticed(how):
    case = Case.read(FITNET, torch.float32)
    check_objective(case, ADAPTERS["fitnet"])
    with pytest.raises(AssertionError, match=how):
        check_objective(_broken(case, how), ADAPTERS["fitnet"])
