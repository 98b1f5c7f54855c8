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
from kdstream.training import checkpoint
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


def refusal(path, content):
    """The line by which damaged content is refused; None where it is read as what was written."""
    path.write_bytes(content)
    try:
        state = load_checkpoint(path)
    except UserError as error:
        line = str(error)
    else:
        line = None
    if line is not None:
        assert str(path) in line
        assert line.endswith("delete it to start anew")
        assert "\n" not in line
        return line
    assert state.keys() == STATE.keys()
    assert all(state["weights"][name].equal(value) for name, value in STATE["weights"].items())
    assert (state["numbers"], state["text"]) == (STATE["numbers"], STATE["text"])
    return None


def flipped(content, at, mask):
    return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]


@given(data=st.data())
def test_a_flipped_bit_or_a_missing_end_is_found(stored, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    at = data.draw(st.integers(0, len(stored) - 1), "flip at")
    assert refusal(path, flipped(stored, at, 1 << data.draw(st.integers(0, 7), "bit")))
    assert refusal(path, stored[: data.draw(st.integers(0, len(stored) - 1), "cut")])
    assert refusal(path, stored + data.draw(st.binary(min_size=1, max_size=200), "added"))


def test_every_byte_of_the_checksum_itself_counts(stored, tmp_path):
    assert refusal(tmp_path / "c.pt", stored) is None
    said = [refusal(tmp_path / "c.pt", flipped(stored, at, 1)) for at in range(len(stored) - 90, len(stored))]
    assert all(said)
    assert any("checksum, at its end, is missing" in line for line in said)


@given(data=st.data())
def test_a_checkpoint_of_a_version_without_checksums_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "old.pt"
    torch.save(STATE, path)
    content = path.read_bytes()
    assert refusal(path, content) is None
    at = data.draw(st.integers(0, len(content) - 1), "flip at")
    refusal(path, flipped(content, at, 1 << data.draw(st.integers(0, 7), "bit")))  # other values would be a failure


def test_a_checkpoint_is_summed_as_it_is_written(tmp_path, monkeypatch):
    """Neither held in memory a second time nor read again: the largest piece is the largest tensor."""
    state = {"fingerprint": "f", "weights": {str(i): torch.zeros(1000) for i in range(50)}}
    pieces = []
    monkeypatch.setattr(checkpoint._Summing, "write", lambda self, data: pieces.append(len(data)) or write(self, data))
    save_checkpoint(state, tmp_path / "c.pt")
    assert sum(pieces) > 200_000
    assert max(pieces) < 10_000


write = checkpoint._Summing.write


def test_an_interrupt_while_it_is_written_leaves_the_older_state(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint({"fingerprint": "old"}, path)

    def interrupt(self, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint._Summing, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"fingerprint": "new"}, path)
    assert load_checkpoint(path)["fingerprint"] == "old"
    assert os.listdir(tmp_path) == ["last.pt"]


def test_what_to_do_may_be_another_thing(tmp_path):
    (tmp_path / "best.pt").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"put it back$"):
        load_checkpoint(tmp_path / "best.pt", "put it back")


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
