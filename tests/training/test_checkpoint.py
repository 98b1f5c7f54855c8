"""Checkpoints come back as they were, appear whole or not at all, and execute nothing."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdstream.errors import UserError
from kdstream.training.checkpoint import load_checkpoint, save_checkpoint

STATE = {
    "fingerprint": "f",
    "weights": OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.tensor(7)),
    "numbers": [1, 2.5, None, True],
    "text": {"x": "ä"},
}


class Runs:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_a_state_comes_back(tmp_path):
    save_checkpoint(STATE, tmp_path / "last.pt")
    state = load_checkpoint(tmp_path / "last.pt")
    assert state.keys() == STATE.keys()
    assert all(state["weights"][name].equal(value) for name, value in STATE["weights"].items())
    assert (state["numbers"], state["text"]) == (STATE["numbers"], STATE["text"])
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_the_state_of_an_optimizer_and_of_the_random_numbers_comes_back(tmp_path):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    state = {"fingerprint": "", "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
    save_checkpoint(state, tmp_path / "c.pt")
    back = load_checkpoint(tmp_path / "c.pt")
    again = torch.optim.SGD([weight], 0.5, momentum=0.1)
    again.load_state_dict(back["optimizer"])
    assert again.param_groups[0]["lr"] == 0.1
    assert again.state[weight]["momentum_buffer"].equal(torch.ones(3))
    assert back["random"].equal(state["random"])


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "last.pt") is None


def test_the_newer_state_replaces_the_older_and_what_a_crash_left(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint({"fingerprint": "1"}, path)
    (tmp_path / "last.pt.part").write_bytes(b"half of a checkpoint")
    assert load_checkpoint(path)["fingerprint"] == "1"
    save_checkpoint({"fingerprint": "2"}, path)
    assert load_checkpoint(path)["fingerprint"] == "2"
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("size", [10, 1 << 20])
def test_a_full_disk_leaves_the_older_state(tmp_path, size):
    path = tmp_path / "last.pt"
    save_checkpoint({"fingerprint": "old"}, path)
    (tmp_path / "last.pt.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"^cannot write the checkpoint .*last\.pt: .*make room") as error:
        save_checkpoint({"fingerprint": "new", "weights": torch.zeros(size)}, path)
    assert "\n" not in str(error.value)
    assert load_checkpoint(path)["fingerprint"] == "old"
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_folder_that_is_gone_is_said_so(tmp_path):
    with pytest.raises(UserError, match="No such file or directory"):
        save_checkpoint(STATE, tmp_path / "gone" / "last.pt")


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickled_object_is_refused_and_not_run(tmp_path, form):
    path, trace = tmp_path / "last.pt", tmp_path / "trace"
    state = {"fingerprint": "f", "bad": Runs(trace)}
    if form == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state))
    with pytest.raises(UserError, match=r"last\.pt .*pickled object.*delete it to start anew"):
        load_checkpoint(path)
    assert not trace.exists()
    torch.load(path, weights_only=False) if form == "torch" else pickle.loads(path.read_bytes())
    assert trace.exists(), "the object would have run: the refusal above was no accident"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "c.pt"
    save_checkpoint(STATE, path)
    return path.read_bytes()


@given(data=st.data())
def test_damaged_bytes_are_an_error_of_one_line(stored, tmp_path_factory, data):
    cut = data.draw(st.integers(0, len(stored) - 1), "cut")
    at = data.draw(st.integers(0, len(stored) - 1), "flip at")
    for name, content in (
        ("cut", stored[:cut]),
        ("flip", stored[:at] + bytes([stored[at] ^ data.draw(st.integers(1, 255), "by")]) + stored[at + 1 :]),
    ):
        path = tmp_path_factory.getbasetemp() / f"{name}.pt"
        path.write_bytes(content)
        message = ""
        try:
            state = load_checkpoint(path)
        except UserError as error:
            message = str(error)
        if message:
            assert str(path) in message
            assert "\n" not in message
        else:
            assert name == "flip", "a truncated file was taken for a checkpoint"
            assert "fingerprint" in state


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02."])
def test_other_files_are_no_checkpoints(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pt"):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, torch.zeros(2)])
def test_weights_are_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt is not a checkpoint of kdstream: delete it"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no readable checkpoint"):
        load_checkpoint(tmp_path)
