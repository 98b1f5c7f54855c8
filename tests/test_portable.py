"""Systems that the tests cannot run on: without ``fcntl``, as on Windows, data is read and a student loaded."""

from __future__ import annotations

import subprocess
import sys

import kdstream as kd
from kdstream.models import build
from kdstream.models.export import save_student

SCRIPT = """
import sys

sys.modules["fcntl"] = None  # every import of it fails
import kdstream as kd
from kdstream.convert.make_shards import make_shards
from kdstream.data.shards import open_shards

student = kd.load_student({student!r})
made = make_shards("digits", {made!r}, processes=1)
stream = kd.Stream({digits!r} + "/train", batch_size=8) | kd.decode() | kd.augment("cifar") | kd.normalize()
print(tuple(student(next(iter(stream)).image).shape), len(open_shards({made!r} + "/train")))
"""


def test_without_fcntl(digits, tmp_path):
    save_student(tmp_path / "student", build("resnet8", 10), classes=list("0123456789"), mean=[0.5] * 3, std=[0.2] * 3)
    paths = {"student": str(tmp_path / "student"), "made": str(tmp_path / "made"), "digits": str(digits)}
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(**paths)], capture_output=True, text=True, check=False)
    assert done.stdout == f"(8, 10) {len(kd.open_shards(tmp_path / 'made' / 'train'))}\n", done.stderr
