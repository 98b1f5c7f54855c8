"""fsp and ft: the papers' own forms have the values measured for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import batch, task

from kdstream.batch import Outputs
from kdstream.objectives.fsp import FlowOfSolution
from kdstream.objectives.ft import FactorTransfer

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize(("name", "case"), [("fsp", "00"), ("fsp", "01"), ("ft", "00")])
def test_the_form_of_the_paper_has_its_measured_value(name, case):
    with np.load(GOLDEN / name / f"{case}.npz", allow_pickle=False) as stored:
        meta = json.loads(str(stored["meta"]))
        arrays = {
            key: torch.from_numpy(stored[key]).double() for key in stored.files if key.startswith(("in/", "param/"))
        }
    sides = []
    for role in ("student", "teacher"):
        prefix = f"in/{role}.features."
        features = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
        sides.append(Outputs(torch.zeros(1, 10), features))
    wanted = next(value for form, value in meta["alternatives"].items() if form.startswith("paper form"))
    if name == "fsp":
        found = FlowOfSolution(meta["hyper"]["taps"], weights=meta["hyper"]["W"], form="paper")(*sides, batch())
    else:
        # The measured value is of the paper's normalisation on the public code's factors.
        term = FactorTransfer()
        term.setup(task(*(side.map(torch.Tensor.float) for side in sides)))
        term.double().load_state_dict(
            {key.removeprefix("param/"): value for key, value in arrays.items() if key.startswith("param/")},
            strict=False,
        )
        term.form = "paper"
        found = term(*sides, batch())
    assert found.item() == pytest.approx(wanted, rel=1e-10)
