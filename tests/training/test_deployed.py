"""The network to deploy out of a checkpoint: also one that a term has rebuilt; what there is none of is said."""

from __future__ import annotations

import pytest

import kdstream as kd
from kdstream.models.export import load_student
from kdstream.training.checkpoint import load_checkpoint, save_checkpoint
from kdstream.training.deployed import read_deployed


def test_a_network_of_the_teachers_parts_comes_out_of_the_last_checkpoint_and_the_best(digits, tmp_path):
    few = {"epochs": 1, "batch_size": 60, "workers": 0, "cpu": True, "show": False}
    teacher = kd.models.build("resnet8", 10)
    run = kd.distill(digits, student="resnet8", teacher=teacher, loss="simkd", out=tmp_path / "run", **few)
    exported = load_student(run)
    for which in ("last", "best"):
        network = read_deployed(run, which)
        assert network.spec == exported.spec
        assert network.about["extra"]["checkpoint"] == which
        assert (network.classes, network.about["mean"]) == (exported.classes, exported.about["mean"])
        for key, value in exported.state_dict().items():
            assert network.state_dict()[key].equal(value), key
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    shared = {v.untyped_storage().data_ptr() for v in state["distiller"].values()}
    assert all(v.untyped_storage().data_ptr() in shared for v in state["deployed"]["state"].values()), (
        "twice in the file"
    )
    del state["deployed"]
    save_checkpoint(state, tmp_path / "run" / "last.pt")
    with pytest.raises(kd.UserError, match="earlier version"):
        read_deployed(run, "last")
    with pytest.raises(kd.UserError, match=r"holds several trainings: name one of .*run"):
        read_deployed(tmp_path, "best")
    with pytest.raises(kd.UserError, match="it is last or best"):
        read_deployed(run, "first")
    (tmp_path / "empty").mkdir()
    for place, said in (("empty", "no training began there"), ("none", "no such folder")):
        with pytest.raises(kd.UserError, match=said):
            read_deployed(tmp_path / place, "last")
