"""Two hosts, each with an address and a disk of its own, see the batches of one process.

The hosts are network namespaces joined by a cable, each with a mount of its own for the shards. It takes the right to
make namespaces, and is run where KDSTREAM_TEST_EVERY=1 is set."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from every import EVERY

HOSTS = ("10.77.31.1", "10.77.31.2")

HOST = """
import json, os, sys
from pathlib import Path
import torch
from kdstream.stream.decode import decode
from kdstream.stream.augment import augment
from kdstream.stream.stream import Stream

rank, world, place, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
if world > 1:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    hosts = [None] * world
    mine = (os.environ["HOST_ADDRESS"], sorted(os.listdir(place)), os.stat(place).st_dev)
    torch.distributed.all_gather_object(hosts, mine)
    assert len({address for address, _, _ in hosts}) == world
    assert len({device for _, _, device in hosts}) == world, "they share a disk"

def of(stream):
    return [(b.index.tolist(), b.label.tolist(), b.image.double().sum(dim=(1, 2, 3)).tolist()) for b in stream]

told = {}
shuffled = Stream(place + "/train", 50, 1, workers=1) | decode | augment("cifar")
told["shuffled"] = [of(shuffled), of(shuffled)]
told["val"] = of(Stream(place + "/train", 50, train=False) | decode)
sequential = Stream(place + "/train", 20, 1, workers=1, order="sequential") | decode
told["sequential"] = [of(sequential), of(sequential)]
tars = Stream(place + "/train-{000000..000011}.tar", 20, 1, order="sequential") | decode
told["tars"] = of(tars)
if world > 1:
    sums = torch.tensor([float(len(told["tars"]))])
    torch.distributed.all_reduce(sums)
    assert sums == world * len(told["tars"])
    torch.distributed.destroy_process_group()
out.write_text(json.dumps(told))
"""


def namespaces_allowed() -> bool:
    wanted = [
        "unshare",
        "--net",
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs none /mnt && ip link add one type veth peer name two",
    ]
    try:
        return not subprocess.run(wanted, capture_output=True, check=False).returncode
    except FileNotFoundError:
        return False


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def hosts():
    """Names of two network namespaces that are joined by a cable."""
    names = [f"kdstream{os.getpid()}{letter}" for letter in "ab"]
    try:
        for name in names:
            run("ip", "netns", "add", name)
        cable = ["type", "veth", "peer", "name", "eth", "netns", names[1]]
        run("ip", "link", "add", "eth", "netns", names[0], *cable)
        for name, address in zip(names, HOSTS, strict=True):
            for link in ("lo", "eth"):
                run("ip", "-n", name, "link", "set", link, "up")
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.skipif(not EVERY, reason="it starts hosts: set KDSTREAM_TEST_EVERY=1")
@pytest.mark.skipif(EVERY and not namespaces_allowed(), reason="namespaces are not permitted here")
def test_two_hosts_see_the_batches_of_one_process(photo_shards, tmp_path, hosts):
    program = tmp_path / "host.py"
    program.write_text(HOST)
    # Nothing of the set is seen from both hosts but what is copied to a disk of each.
    copied, disk = tmp_path / "copied", tmp_path / "disk"
    shutil.copytree(photo_shards, copied)
    disk.mkdir()
    started = []
    for rank, (name, address) in enumerate(zip(hosts, HOSTS, strict=True)):
        own = {"MASTER_ADDR": HOSTS[0], "MASTER_PORT": "29512", "GLOO_SOCKET_IFNAME": "eth", "HOST_ADDRESS": address}
        own |= {"XDG_CACHE_HOME": f"{disk}/cache", "OMP_NUM_THREADS": "1"}
        python = f"exec {sys.executable} {program} {rank} 2 {disk}/set {tmp_path}/{rank}.json"
        shell = f"mount -t tmpfs none {disk} && cp -r {copied} {disk}/set && {python}"
        command = ["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-c", shell]
        started.append(subprocess.Popen(command, env={**os.environ, **own}, stderr=subprocess.PIPE, text=True))
    try:
        ended = [process.communicate(timeout=500)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], ended
    assert not list(disk.iterdir())
    run(sys.executable, str(program), "0", "1", str(copied), str(tmp_path / "one.json"))
    one, *halves = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "0", "1"))
    for epoch in range(2):
        both = zip(*(half["shuffled"][epoch] for half in halves), strict=True)
        assert [[a + b for a, b in zip(*slices, strict=True)] for slices in both] == one["shuffled"][epoch]
        numbers = [n for half in halves for index, _, _ in half["sequential"][epoch] for n in index]
        assert len(set(numbers)) == len(numbers)
        assert len({len(half["sequential"][epoch]) for half in halves}) == 1
    dealt = [None] * len(one["val"])
    for rank, half in enumerate(halves):
        dealt[rank::2] = half["val"]
    assert dealt == one["val"]
    assert len(halves[0]["tars"]) == len(halves[1]["tars"]) > 0
    numbers = [n for half in halves for index, _, _ in half["tars"] for n in index]
    assert len(set(numbers)) == len(numbers)
