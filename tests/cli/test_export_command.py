"""kdstream export: the file that it writes, what it says, one line for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused
from onnx_files import answer, images

from kdstream.cli.export import main
from kdstream.models import build
from kdstream.models.export import save_student

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "export_onnx.py"
MEAN, STD, CLASSES = (0.2, 0.3, 0.4), (0.3, 0.2, 0.1), [f"class {i}" for i in range(10)]


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return build("resnet8", 10).eval()


@pytest.fixture(scope="module")
def vit():
    """A network of somebody's own, by dotted path."""
    torch.manual_seed(0)
    return build("tiny_vit:TinyViT", 10, width=16).eval()


def test_the_command_exports_a_run(resnet, tmp_path, capsys):
    run = tmp_path / "run"
    save_student(run, resnet, CLASSES, MEAN, STD, (16, 16))
    assert main([str(run), "--with-normalization"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"written: {run}/student.onnx" in out
    assert "input images: float32 [batch,3,16,16], RGB images in [0,1], not standardised" in out
    assert "checked with onnxruntime: max |difference| from torch " in out
    unit = images(4, seed=3)
    with torch.no_grad():
        expected = resnet(torch.stack([(unit[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1))
    np.testing.assert_allclose(answer(run / "student.onnx", unit), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert main([str(run / "student.json"), "--size", "20", "--out", str(tmp_path / "o.onnx")]) == 0
    assert answer(tmp_path / "o.onnx", torch.zeros(2, 3, 20, 20)).shape == (2, 10)


def test_the_command_runs_own_code_on_request_only(vit, tmp_path, run_main):
    save_student(tmp_path / "run", vit, CLASSES, MEAN, STD, 16)
    refused(run_main(main, tmp_path / "run"), "if you trust it, add --trust-code\n")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "run"), "--trust-code"]
    here = Path(__file__).resolve().parents[1]  # of tiny_vit.py
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    with torch.no_grad():
        expected = vit(images(3)).numpy()
    np.testing.assert_allclose(answer(tmp_path / "run" / "student.onnx", images(3)), expected, rtol=1e-4, atol=1e-5)


def test_interrupted(monkeypatch, run_main):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("kdstream.models.export.load_student", interrupt)
    assert run_main(main, "run") == (130, "", "interrupted: nothing written\n")


def test_mistakes_give_one_line_and_exit_code_2(resnet, tmp_path, run_main):
    save_student(tmp_path / "run", resnet)
    for arguments, says in (
        ([tmp_path / "nowhere"], "no such folder"),
        ([tmp_path / "run"], "does not say what size of images it takes: give --size N"),
        ([tmp_path / "run", "--size", "0"], "--size 0"),
        ([tmp_path / "run", "--size", "16", "--with-normalization"], "its mean and std are not known"),
        ([tmp_path / "run", "--size", "16", "--opset", "7"], "opset 7"),
        ([tmp_path / "run", "--size", "16", "--out", tmp_path], "is a folder"),
        ([tmp_path / "run", "--bogus"], "unrecognized arguments: --bogus; see --help"),
        ([], "the following arguments are required: RUN; see --help"),
    ):
        refused(run_main(main, *arguments), says)
    assert not list(tmp_path.rglob("*.onnx"))
