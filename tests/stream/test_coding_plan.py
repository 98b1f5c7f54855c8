"""Coding plans: equal to the online choice, one byte a sample, the same by any number of processes, never mistaken."""

from __future__ import annotations

import concurrent.futures
import errno
import json
import os
import shutil
import signal
import sys
import threading
import time

import pytest
import torch
from jobs import recipe_of, run
from processes import alone, together
from rich.console import Console

import kdstream as kd
from kdstream.batch import Batch
from kdstream.convert.make_shards import make_shards
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.export import save_student
from kdstream.models.taps import Tapped
from kdstream.stream import kept_rows, planning
from kdstream.stream.coding_plan import PlanKey, make_plan
from kdstream.stream.kept_rows import CHUNK
from kdstream.stream.plan import Plan
from kdstream.stream.stream import Stream
from kdstream.training.stop import Stopped


def make_teacher(seed=0):
    torch.manual_seed(seed)
    network = build("resnet8", 10)
    network.fc.weight.data *= 20  # decided, so that versions differ
    return Tapped(network).eval()


def stream_of(folder, chain, teacher=None, **settings):
    given = {"teacher": teacher or make_teacher(), "teacher_mean": (0.3,) * 3, "teacher_std": (0.3,) * 3}
    return Stream(folder / "train", 60, given=given, **settings) | chain


@pytest.fixture
def folder(digits, tmp_path):
    shutil.copytree(digits, tmp_path / "digits", ignore=shutil.ignore_patterns("*.coding-*"))  # of other tests
    return tmp_path / "digits"


def plans(folder):
    return sorted(folder.glob("*.bin"))


@pytest.mark.parametrize(
    "chain",
    ["decode | coded(hkl, delta=20{}) | teacher", "decode | augment(eval, 16) | coded(hkl, delta=20{}) | teacher"],
)
def test_without_augmentation_a_plan_is_the_online_choice(folder, chain):
    online = {
        i: (q, logits)
        for b in stream_of(folder, chain.format(""))
        for i, q, logits in zip(b.index.tolist(), b.quality.tolist(), b.teacher.logits, strict=True)
    }
    planned = stream_of(folder, chain.format(", plan=auto"))
    seen = 0
    for batch in planned:
        for i, q, logits in zip(batch.index.tolist(), batch.quality.tolist(), batch.teacher.logits, strict=True):
            assert q == online[i][0]
            torch.testing.assert_close(logits, online[i][1], rtol=1e-4, atol=1e-4)
            seen += 1
    assert seen == 240
    (path,) = plans(folder)
    assert path.stat().st_size == 240
    assert len({q for q, _ in online.values()}) > 1


def test_with_augmentation_the_view_of_the_planned_version_is_used(folder):
    for order in (
        "coded(hkl, delta=20, plan=auto) | augment(cifar)",
        "augment(cifar) | coded(hkl, delta=20, plan=auto)",
    ):
        batch = next(iter(stream_of(folder, f"decode | {order} | teacher")))
        assert set(batch.quality.tolist()) <= {-1, 0, 20, 40, 60, 80, 100}
    inception = "decode | coded(hkl, delta=20, plan=auto) | augment(inception, 12) | teacher"
    assert next(iter(stream_of(folder, inception))).image.shape[-1] == 12
    assert len(plans(folder)) == 2  # raw images for both cifar orders (the same view), 12x12 for the boxes


def test_a_plan_is_found_again_and_another_teacher_makes_its_own(folder, monkeypatch):
    chain = "decode | coded(hkl, delta=50, plan=auto) | teacher"
    next(iter(stream_of(folder, chain)))
    (path,) = plans(folder)
    stamp = path.stat().st_mtime_ns
    next(iter(stream_of(folder, chain)))
    assert path.stat().st_mtime_ns == stamp
    next(iter(stream_of(folder, chain, make_teacher(1))))
    next(iter(stream_of(folder, chain.replace("50", "25"))))
    assert len(plans(folder)) == 3


def test_a_named_plan_that_does_not_fit_is_refused(folder):
    next(iter(stream_of(folder, "decode | coded(hkl, delta=50, plan=auto) | teacher")))
    (path,) = plans(folder)
    chain = f"decode | coded(hkl, delta={{}}, plan='{path}') | teacher"
    assert next(iter(stream_of(folder, chain.format(50)))).quality is not None
    with pytest.raises(UserError, match="was made for delta 50, not 25"):
        next(iter(stream_of(folder, chain.format(25))))
    with pytest.raises(UserError, match=r"was made for teacher \w+\.\.\., not \w+"):
        next(iter(stream_of(folder, chain.format(50), make_teacher(1))))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged"):
        next(iter(stream_of(folder, chain.format(50))))
    with pytest.raises(UserError, match="no coding plan at"):
        next(iter(stream_of(folder, "decode | coded(hkl, plan=nowhere.bin) | teacher")))
    with pytest.raises(UserError, match="need no plan"):
        stream_of(folder, "decode | coded(fixed(5), plan=auto) | teacher")


KEY = PlanKey("data", "teacher", "hkl", 10, "4:4:4", "view")


class Numbers:
    """As much of a data set as a plan needs to know."""

    split, fingerprint = "train", "f" * 16

    def __init__(self, path, count):
        path.mkdir(exist_ok=True)
        self.path, self.count = path, count

    def __len__(self):
        return self.count


def choosing(layout, taken, change=lambda batch: batch):
    """Chooses quality index % 101, the original for every seventh; notes the chunks that were asked for."""

    def choose(chunks):
        for chunk in chunks:
            taken.append(chunk)
            index = layout.batch(0, chunk)
            quality = torch.where(index % 7 == 0, -1, index % 101)
            yield change(Batch(torch.zeros(len(index), 3, 1, 1), index, index, quality=quality))

    return choose


SIZES = [1, 2, 511, 512, 513, 767, 1023, 1024, 1025, 1438, 1535, 1536, 1537, 50_000]


@pytest.mark.parametrize("count", SIZES)
def test_a_plan_of_any_size(count, tmp_path):
    layout, taken = Plan(count, CHUNK, shuffle=False), []
    plan = make_plan(Numbers(tmp_path, count), KEY, layout, choosing(layout, taken))
    index = torch.arange(count)
    assert plan.equal(torch.where(index % 7 == 0, 255, index % 101).to(torch.uint8))
    assert taken == list(range(layout.steps))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin", ".json"]


@pytest.mark.parametrize("count", SIZES)
def test_chunks_of_another_layout_or_damaged_ones_are_made_again(count, tmp_path):
    layout, taken = Plan(count, CHUNK, shuffle=False), []
    whole = make_plan(Numbers(tmp_path / "whole", count), KEY, layout, choosing(layout, []))
    parts = tmp_path / f"{KEY.file_name('train')[:-4]}.parts"
    parts.mkdir()
    for chunk in range(-(-count // CHUNK)):  # of the layout before: full chunks and a rest, bare bytes
        (parts / f"{chunk:06d}").write_bytes(bytes(min(CHUNK, count - chunk * CHUNK)))

    def killed_at(chunk):
        def change(batch):
            if int(batch.index[0]) == layout.bounds(chunk)[0]:
                raise KeyboardInterrupt
            return batch

        return change

    choose = choosing(layout, taken, killed_at(layout.steps - 1))
    with pytest.raises(KeyboardInterrupt):
        make_plan(Numbers(tmp_path, count), KEY, layout, choose)
    assert taken == list(range(layout.steps))
    for chunk in (1, 2):  # one flipped bit, one short file
        if chunk < layout.steps - 1:
            data = bytearray((parts / f"{chunk:06d}").read_bytes())
            data[5] ^= 1
            (parts / f"{chunk:06d}").write_bytes(data if chunk == 1 else data[:-1])
    taken.clear()
    assert make_plan(Numbers(tmp_path, count), KEY, layout, choosing(layout, taken)).equal(whole)
    assert taken == [chunk for chunk in range(layout.steps) if chunk in (1, 2, layout.steps - 1)]
    assert not parts.exists()


def without_the_first(batch):
    return batch.map_tensors(lambda values: values[1:])


def first_twice(batch):
    return batch.map_tensors(lambda values: torch.cat([values[:1], values]))


@pytest.mark.parametrize("count", [2, 513, 1100])
@pytest.mark.parametrize("change", [without_the_first, first_twice])
def test_a_chain_that_drops_or_adds_has_no_plan(change, count, tmp_path):
    layout = Plan(count, CHUNK, shuffle=False)
    with pytest.raises(UserError, match="needs every sample, but a stage drops or adds some: use plan=off"):
        make_plan(Numbers(tmp_path, count), KEY, layout, choosing(layout, [], change))
    assert not list(tmp_path.glob("*.bin"))


def test_a_stage_may_order_a_batch_anew(tmp_path):
    layout = Plan(700, CHUNK, shuffle=False)

    def turned(batch):
        return batch.map_tensors(lambda values: values.flip(0))

    plain = make_plan(Numbers(tmp_path / "a", 700), KEY, layout, choosing(layout, []))
    assert make_plan(Numbers(tmp_path / "b", 700), KEY, layout, choosing(layout, [], turned)).equal(plain)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plan_for_the_quickstart(workers, tmp_path):
    make_shards("digits", tmp_path, processes=1, console=Console(quiet=True), splits=["train"])
    chain = "decode | coded(hkl, delta=50{}) | teacher"
    planned = stream_of(tmp_path, chain.format(", plan=auto"), train=False, workers=workers)
    assert len(planned.dataset) == 1438
    online = torch.cat([batch.quality for batch in stream_of(tmp_path, chain.format(""), train=False)])
    assert torch.cat([batch.quality for batch in planned]).equal(online)
    if workers:
        odd = kd.stage(lambda samples: (sample for sample in samples if sample["label"] % 2))
        with pytest.raises(UserError, match="drops or adds some"):
            next(iter(stream_of(tmp_path, kd.decode() | odd | kd.coded("hkl", delta=50, plan="auto") | kd.teacher())))


def test_what_was_made_stays_when_the_making_is_stopped(tmp_path):
    layout, taken = Plan(1600, CHUNK, shuffle=False), []
    whole = make_plan(Numbers(tmp_path / "whole", 1600), KEY, layout, choosing(layout, []))

    class Enough(Exception):
        pass

    def after_chunk():
        if len(taken) == 2:
            raise Enough

    data, choose = Numbers(tmp_path, 1600), choosing(layout, taken)
    with pytest.raises(Enough):
        make_plan(data, KEY, layout, choose, after_chunk=after_chunk)
    assert not list(tmp_path.glob("*.bin"))
    assert make_plan(data, KEY, layout, choose).equal(whole)
    assert taken == [0, 1, 2, 3]
    assert make_plan(data, KEY, layout, choose).equal(whole)
    assert taken == [0, 1, 2, 3]


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_share_what_is_missing_and_their_mistakes(world, tmp_path):
    """Threads in the place of processes: any number of them, with fewer chunks than processes too."""
    layout = Plan(1600, CHUNK, shuffle=False)
    whole = make_plan(Numbers(tmp_path / "whole", 1600), KEY, layout, choosing(layout, []))
    barrier, values = threading.Barrier(world, timeout=60), [None] * world

    def together(path, change):
        def work(rank):
            def share(value):
                values[rank] = value
                barrier.wait()
                all_values = list(values)
                barrier.wait()
                return all_values

            choose = choosing(layout, taken[rank], change)
            return make_plan(Numbers(path, 1600), KEY, layout, choose, rank, world, share)

        taken = [[] for _ in range(world)]
        with concurrent.futures.ThreadPoolExecutor(world) as pool:
            return [pool.submit(work, rank) for rank in range(world)], taken

    def no_third(batch):
        return without_the_first(batch) if int(batch.index[0]) == 1024 else batch

    futures, _ = together(tmp_path, no_third)
    assert all("drops or adds some" in str(future.exception()) for future in futures)
    left = len(list(tmp_path.glob("*.parts/*")))
    assert left == {2: 3, 3: 2, 7: 3}[world]  # what the others made meanwhile stays
    futures, taken = together(tmp_path, lambda batch: batch)
    assert all(future.result().equal(whole) for future in futures)
    assert sum(map(len, taken)) == layout.steps - left


def test_chunks_that_nobody_needs_go(tmp_path):
    layout, data = Plan(600, CHUNK, shuffle=False), Numbers(tmp_path, 600)
    make_plan(data, KEY, layout, choosing(layout, []))
    parts = tmp_path / f"{KEY.file_name('train')[:-4]}.parts"
    recent, old = tmp_path / "train.coding-a.parts", tmp_path / "train.coding-b.parts"
    for folder in (parts, recent, old):
        folder.mkdir()
        (folder / "000000").write_bytes(b"x")
    long_ago = time.time() - 100 * 24 * 3600
    for path in (old / "000000", old, recent):
        os.utime(path, (long_ago, long_ago))
    make_plan(data, KEY, layout, choosing(layout, []))  # killed when it had just finished
    assert not parts.exists()
    other = PlanKey("data", "another", "hkl", 10, "4:4:4", "view")
    make_plan(data, other, layout, choosing(layout, []))
    assert recent.exists()  # somebody has written to it
    assert not old.exists()


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    layout, data = Plan(600, CHUNK, shuffle=False), Numbers(tmp_path, 600)

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(kept_rows, "write_atomic", full)
        with pytest.raises(UserError, match=r"cannot write the coding plan to .*No space left on device.*make room"):
            make_plan(data, KEY, layout, choosing(layout, []))
    assert list(tmp_path.iterdir()) == []
    whole = make_plan(data, KEY, layout, choosing(layout, []))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    taken = []
    assert make_plan(data, KEY, layout, choosing(layout, taken)).equal(whole)  # made by somebody who may write there
    assert taken == []
    make_plan(data, PlanKey("data", "another", "hkl", 10, "4:4:4", "view"), layout, choosing(layout, taken))
    assert taken == [0, 1]
    assert len(list((tmp_path / "cache").rglob("*.bin"))) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with pytest.raises(UserError, match="cannot write the coding plan to /proc"):
        make_plan(data, PlanKey("data", "third", "hkl", 10, "4:4:4", "view"), layout, choosing(layout, taken))


MINE = """
import os, signal
import kdstream as kd
import torch

@kd.stage
def shade(samples, by=1.0, how=None):
    for sample in samples:
        yield {**sample, "image": (sample["image"] * ((how or {}).get("by", by))).to(torch.uint8)}

@kd.stage
def random_flip(samples):
    for sample in samples:
        yield {**sample, "image": sample["image"] // 3}

def at(which):
    return lambda logits, label: torch.full_like(label, which)

class Always:
    def __init__(self, which):
        self.which = which
    def __call__(self, logits, label):
        return torch.full_like(label, self.which)

one, two = Always(1), Always(2)
number = (n for n in ())

def unsteady(logits, label):
    return label * 0 + next(number, 0)

def interrupted(logits, label):
    if os.path.exists("interrupt"):
        os.unlink("interrupt")
        os.kill(os.getpid(), signal.SIGTERM)
    return label % 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_for_plans.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield __import__("mine_for_plans")
    sys.modules.pop("mine_for_plans", None)


def test_every_setting_has_its_plan_and_one_meaning_has_one(folder, mine):
    def made(chain):
        before = set(plans(folder))
        batch = next(iter(stream_of(folder, chain)))
        new = set(plans(folder)) - before
        return len(new), batch

    m, plan = "mine_for_plans", "coded({}, delta=50, plan=auto) | teacher"
    coded = kd.coded("hkl", delta=50, plan="auto") | kd.teacher
    for chain in [
        f"decode | {plan.format('hkl')}",
        f"decode | {m}:shade(0.5) | {plan.format('hkl')}",
        f"decode | {m}:shade(0.25) | {plan.format('hkl')}",
        kd.decode | mine.shade(how={"by": 0.5}) | coded,
        kd.decode | mine.shade(how={"by": 0.25}) | coded,
        kd.decode | kd.stage(lambda samples: samples) | coded,
        f"decode | {m}:random_flip | {plan.format('hkl')}",  # not the stage of that name that is left out
        f"decode | {plan.format(f'{m}:at(1)')}",
        f"decode | {plan.format(f'{m}:at(2)')}",
        f"decode | {plan.format(f'{m}:one')}",
        f"decode | {plan.format(f'{m}:two')}",
    ]:
        assert made(chain)[0] == 1, chain
    for chain in [
        f"decode | augment(cifar) | {plan.format('hkl')}",
        f"decode | {m}:shade(by=0.5) | {plan.format('hkl')}",
        kd.decode | mine.shade(0.5) | coded,
        f"decode | {plan.format(f'{m}:at(which=1)')}",
        f"decode | {plan.format(f'{m}:Always(2)')}",
    ]:
        assert made(chain)[0] == 0, chain
    assert set(made(f"decode | {plan.format(f'{m}:at(2)')}")[1].quality.tolist()) == {50}
    with pytest.raises(
        UserError, match=r"plan=auto is not possible.*number, which .*unsteady uses.*a generator.*plan=off"
    ):
        made(f"decode | {plan.format(f'{m}:unsteady')}")
    next(iter(stream_of(folder, f"decode | {plan.format(f'{m}:unsteady').replace('auto', 'off')}")))


def test_a_training_stops_while_it_makes_its_plan(folder, mine, tmp_path, monkeypatch):
    monkeypatch.setattr("kdstream.stream.planning.CHUNK", 60)
    save_student(tmp_path / "teacher", make_teacher().module, classes=[str(i) for i in range(10)], mean=(0.3,) * 3,
                 std=(0.3,) * 3, image_size=(16, 16))  # fmt: skip
    recipe = recipe_of(
        folder,
        tmp_path / "out",
        stream="decode | coded(mine_for_plans:interrupted, delta=50, plan=auto) | augment(cifar)",
        teacher={"weights": str(tmp_path / "teacher")},
        loss="kd",
        epochs=1,
    )
    run(recipe.model_copy(update={"out": str(tmp_path / "undisturbed")}))
    (path,) = plans(folder)
    whole = path.read_bytes()
    path.unlink()
    (tmp_path / "interrupt").touch()
    with pytest.raises(Stopped, match="coding plan or of teacher answers is kept") as stopped:
        run(recipe)
    assert stopped.value.signal == signal.SIGTERM
    assert [part.name for part in folder.glob("*.parts/*")] == ["000000"]
    (result,) = run(recipe)
    assert path.read_bytes() == whole
    assert result["epochs"] == 1


def make(folder):
    planning.CHUNK = 17  # 13 full chunks, and two that share what is left
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    stream_of(folder, "decode | coded(hkl, delta=10, plan=auto) | teacher").open()


def test_two_processes_and_killed_ones_make_the_same_bytes(folder):
    together(1, make, folder)
    (path,) = plans(folder)
    made, about = path.read_bytes(), path.with_suffix(".json").read_text()
    path.unlink()
    path.with_suffix(".json").unlink()
    together(2, make, folder)
    assert plans(folder) == [path]
    assert path.read_bytes() == made
    path.unlink()
    path.with_suffix(".json").unlink()
    parts = path.with_suffix(".parts")
    process = alone(make, folder)
    while not (parts.is_dir() and len(list(parts.iterdir())) >= 2) and process.is_alive():
        time.sleep(0.002)
    process.kill()
    process.join()
    done = {part.name: part.stat().st_mtime_ns for part in parts.glob("0*") if len(part.name) == 6}
    assert done
    assert not path.exists()
    together(1, make, folder)
    assert path.read_bytes() == made
    assert path.with_suffix(".json").read_text() == about
    assert json.loads(about)["count"] == 240
    assert not parts.exists()
