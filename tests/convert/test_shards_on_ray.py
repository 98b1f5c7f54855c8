"""Shards from a Ray cluster: the same bytes, from one of two nodes. Starting it takes long: on request."""

from __future__ import annotations

import sys

import pytest
from every import EVERY
from tars import assert_same_files

from kdstream.convert.make_shards import make_shards
from kdstream.errors import UserError

on_a_cluster = pytest.mark.skipif(not EVERY, reason="KDSTREAM_TEST_EVERY=1 starts a cluster")


def test_without_ray_and_with_a_number_of_processes(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"ray is not installed: pip install \"kdstream\[ray\]\""):
        make_shards(f"imagefolder:{photos}", tmp_path / "a", distributor="ray")
    with pytest.raises(UserError, match="says itself how many processes it has"):
        make_shards(f"imagefolder:{photos}", tmp_path / "b", distributor="ray", processes=2)
    with pytest.raises(UserError, match="'processes' or 'ray', not 'slurm'"):
        make_shards(f"imagefolder:{photos}", tmp_path / "b", distributor="slurm")


@on_a_cluster
def test_two_machines_write_what_one_process_writes(photos, photo_shards, damaged, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")  # of a busy machine
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        assert (
            make_shards(f"imagefolder:{photos}", tmp_path / "set", shard_count=12, distributor="ray").converted == 300
        )
        assert_same_files(photo_shards, tmp_path / "set")
        for known in ("dog/empty.png", "dog/cut.png"):  # before anything is written
            (damaged / known).unlink()
        with pytest.raises(UserError, match=r"cannot read image .*text\.jpg"):
            make_shards(f"imagefolder:{damaged}", tmp_path / "bad", shard_count=2, distributor="ray")
        assert not ray.is_initialized(), "what was started here has ended"
    finally:
        cluster.shutdown()
