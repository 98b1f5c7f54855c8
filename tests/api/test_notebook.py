"""The notebook: its code runs from the first cell to the last, and is what ruff would have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

NOTEBOOK = Path(__file__).resolve().parents[2] / "tools" / "quickstart.ipynb"


def test_its_cells_run_and_end_with_a_prediction(tmp_path, monkeypatch, capsys):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in cells), "cleared before it is kept"
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for text in code:
        small = text.replace("EPOCHS = 10", "EPOCHS = 1").replace('("digits", ', '("digits", limit=240, dest=')
        exec(compile(small, "cell", "exec"), names)
    assert (names["EPOCHS"], names["measured"].samples) == (1, 240)
    assert names["taught"].student.predict("digit.png").label == names["again"].predict("digit.png").label
    assert names["measured"].top1 == pytest.approx(names["taught"].top1)
    assert "digit.png: " in capsys.readouterr().out
    assert isinstance(names["student"], torch.nn.Module)
