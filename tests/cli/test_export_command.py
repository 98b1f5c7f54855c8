"""kdstream export: the file that it writes, what it says, one line for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused
from every import EVERY
from jobs import recipe_of
from onnx_files import answer, images

from kdstream.api.int8 import to_int8
from kdstream.cli.export import main
from kdstream.data.shards import open_shards
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.export import load_student, save_student
from kdstream.models.onnx_export import OnnxFile
from kdstream.stream.decode import decode
from kdstream.stream.normalize import normalize
from kdstream.stream.stream import Stream

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


@pytest.fixture
def run(resnet, digits, tmp_path):
    """A student whose training, which was none, says where its images are."""
    shards = open_shards(digits / "val")
    recipe = recipe_of(digits, tmp_path / "out").shown()
    about = {"mean": shards.mean, "std": shards.std, "image_size": 16, "extra": {"recipe": recipe}}
    save_student(tmp_path / "run", resnet, shards.classes, **about)
    return tmp_path / "run"


@pytest.mark.parametrize("inside", [True, *([False] if EVERY else [])])
def test_int8_stands_beside_float_and_all_is_uploaded(run, digits, resnet, run_main, inside, monkeypatch, tmp_path):
    sent = {}
    monkeypatch.setattr("kdstream.api.hub.check_hub", lambda repository: None)
    monkeypatch.setattr("kdstream.api.hub.upload", lambda *given: sent.update(given=given) or "https://hub/me/birds")
    options = ["--int8", "--calibrate", "70", *(["--with-normalization"] if inside else [])]
    code, out, err = run_main(main, run, *options, "--hub", "me/birds", "--private", "--license", "mit")
    assert (code, err) == (0, "")
    shards = open_shards(digits / "val")
    right = same = 0
    for batch in Stream(shards, 40, train=False, workers=0) | decode() | normalize():
        images = batch.image
        if inside:
            images = images * torch.tensor(shards.std).view(3, 1, 1) + torch.tensor(shards.mean).view(3, 1, 1)
        one, other = (answer(run / name, images).argmax(1) for name in ("student.onnx", "student.int8.onnx"))
        with torch.no_grad():
            np.testing.assert_array_equal(one, resnet(batch.image).argmax(1).numpy())
        right += (other == batch.label.numpy()).sum()
        same += (one == other).sum()
    assert f"240 images of digits/val, the same class for {100 * same / 240:.1f} %; calibrated on 64 training" in out
    (accuracy,) = (line.split() for line in out.splitlines() if "top-1, %" in line)
    assert accuracy[3] == f"{100 * right / 240:.2f}"
    sizes = [(run / name).stat().st_size for name in ("student.onnx", "student.int8.onnx")]
    assert f"x {sizes[1] / sizes[0]:.2f}" in out
    card = (run / "README.md").read_text()
    assert f"| `student.int8.onnx`, int8 | {accuracy[3]} |" in card
    assert "uploaded: https://hub/me/birds" in out
    repository, files, _, private = sent["given"]
    assert (repository, private) == ("me/birds", True)
    onnx = ["student.int8.onnx", "student.onnx"]
    assert sorted(files) == ["README.md", *onnx[:1], "student.json", *onnx[1:], "student.safetensors"]
    place = tmp_path / "loaded"
    place.mkdir()
    for name, content in files.items():
        assert str(tmp_path).encode() not in content, "where it lay is nobody's business"
        (place / name).write_bytes(content)
    assert load_student(place).about["extra"]["recipe"]["data"]["path"] == "digits"


def test_int8_without_its_images_says_how_to_name_them(run, photo_shards, tmp_path):
    made = OnnxFile(tmp_path / "x.onnx", 1, 20, (3, 12, 12), "images", None, 1.0)
    about = load_student(run).about
    nothing = {**about, "extra": {}}
    for student, more, says in (
        (about, {"data": "nowhere"}, "int8 needs images: .*nowhere.* with --data SHARDS"),
        (about, {"data": str(photo_shards)}, "has no split val or test.* with --data SHARDS"),
        ({**about, "classes": ["other"] * 10}, {}, "has other classes than the student"),
        (about, {}, "16 x 16 in evaluation, the file takes 12 x 12: leave --size out"),
        (about, {"images": 0}, "0 images to calibrate with"),
        (nothing, {}, "does not say how it was trained"),
    ):
        with pytest.raises(UserError, match=says):
            to_int8(made, student, **more)
    assert not (tmp_path / "x.int8.onnx").exists()


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
