"""bench, the command: that what it says about a run is right and complete. How fast anything is, no test knows."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import processes  # noqa: F401  # the server that bench stream's processes are forked from
import pytest
import torch
from commands import modules_that_help_loads, refused, run_from_a_clone

from kdstream import jpeg
from kdstream.batch import Batch
from kdstream.cli.bench import NAMES, main
from kdstream.errors import UserError
from kdstream.stream.coding_plan import ORIGINAL
from kdstream.stream.normalize import standardise

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "bench.py"


@pytest.fixture
def benches():
    """The files of the benches by name."""
    names = ("measure", "jpeg", "coded", "plan", "step", "taps", "others", "gpu", "stream", "loaders")
    return SimpleNamespace(**{name: importlib.import_module(f"kdstream.benches.{name}") for name in names})


@pytest.fixture
def run(run_main):
    return partial(run_main, main)


@pytest.fixture
def clock(benches, monkeypatch):
    """A clock that only moves when told to: clock(seconds)."""
    now = [0.0]
    monkeypatch.setattr(benches.measure.time, "perf_counter", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


def test_rounds_alternate_and_keep_their_own_times(benches, clock):
    calls = []

    def work(name, seconds):
        calls.append(name)
        clock(seconds)

    rounds = benches.measure.alternate({"a": lambda: work("a", 1), "b": lambda: work("b", 3)}, seconds=0)
    assert "".join(calls) == "abbaab"
    assert rounds == [{"a": 1, "b": 3}] * 3


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 3), (10, 5), (1e9, 50)])
def test_the_budget_ends_the_rounds(benches, clock, seconds, rounds):
    assert len(benches.measure.alternate({"a": lambda: clock(2)}, seconds)) == rounds


def test_ratios_are_of_a_round_and_their_median_counts(benches):
    rounds = [
        {"a": 1, "b": 1, "c": 4},
        {"a": 10, "b": 30, "c": 40},
        {"a": 1, "b": 3, "c": 12},
        {"a": 2, "b": 2, "c": 20},
    ]
    found = benches.measure.ratio(rounds, ["c"], ["a", "b"])
    assert found == (2.5, 1, 5, 4)
    assert str(found) == "2.50 (1.00-5.00)"
    assert benches.measure.milliseconds(rounds, "a", "b") == 4000


def test_differing_counts_pixels_not_channels(benches):
    expected = torch.zeros(2, 2, 3, 4, 4, dtype=torch.uint8)
    found = expected.clone()
    found[0, 1, :, 2, 3] = 255
    found[1, 0, 1, 0, 0] = 7
    assert benches.jpeg.differing(found, expected) == {"pixels": 64, "differing_pixels": 2, "largest_difference": 255}
    assert benches.jpeg.differing(expected, expected)["differing_pixels"] == 0


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_jpeg_table_and_json(run, benches, tmp_path, subsampling):
    file = tmp_path / "jpeg.json"
    threads = torch.get_num_threads()
    tiny = ["--size", 16, "--batch", 2, "--delta", 50, "--seconds", 0, "--subsampling", subsampling]
    code, out, error = run("jpeg", *tiny, "--threads", 2, "--json", file)
    assert (code, error) == (0, "")
    assert torch.get_num_threads() == threads
    data = json.loads(file.read_text())
    assert (data["bench"], data["machine"]["cpu"], data["machine"]["threads"]) == (
        "jpeg",
        benches.measure.cpu_name(),
        2,
    )
    (case,) = data["cases"]
    assert (case["batch"], case["size"], case["qualities"]) == (2, 16, [0, 50, 100])
    assert case["kdstream"] == {"pixels": 2 * 3 * 16 * 16, "differing_pixels": 0, "largest_difference": 0}
    # simplejpeg is an extra; the other peers are what kdstream itself needs.
    able = {"4:4:4": {"Pillow"}, "4:2:0": {"Pillow", "torchvision.io", "kornia"}}[subsampling]
    rows = {row["peer"]: row for row in case["peers"]}
    assert set(rows) - {"simplejpeg"} == able
    assert set(rows) | set(data["not_installed"]) | set(case["unable"]) == set(benches.jpeg.PEERS)
    assert rows["Pillow"]["differing_pixels"] == 0
    if subsampling == "4:2:0":
        assert rows["torchvision.io"]["differing_pixels"] == 0
        assert rows["kornia"]["differing_pixels"] > 0
    for row in rows.values():
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["rounds"] == 3
        assert row["low"] > 0
        line = next(line for line in out.splitlines() if line.split()[:1] == [row["peer"]])
        ratio = benches.measure.Ratio(row["ratio"], row["low"], row["high"], row["rounds"])
        assert f"{row['peer_ms']:.2f}" in line
        assert f"{row['kdstream_ms']:.2f}" in line
        assert str(ratio) in line
    assert benches.measure.cpu_name() in out
    assert "2 images 16x16, 3 qualities, " + subsampling in out


def test_jpeg_targets_are_shown_beside_the_ratios(benches, run, monkeypatch, tmp_path):
    case = benches.jpeg.Case(1, 8, (50,), "4:4:4", {"Pillow": 40})
    monkeypatch.setattr(benches.jpeg, "CASES", (case,))
    arguments = ("jpeg", "--seconds", 0, "--peers", "Pillow", "--json", tmp_path / "a.json")
    _, out, _ = run(*arguments)
    assert ">= 40" in out
    assert json.loads((tmp_path / "a.json").read_text())["cases"][0]["peers"][0]["target"] == 40
    _, out, _ = run(*arguments, "--threads", 2)  # the targets are for one thread
    assert ">= 40" not in out


def test_jpeg_names_the_peers_that_are_missing(benches, run, monkeypatch):
    monkeypatch.setitem(
        benches.jpeg.PEERS, "simplejpeg", replace(benches.jpeg.PEERS["simplejpeg"], package="no_such_package")
    )
    code, out, _ = run("jpeg", "--size", 8, "--batch", 1, "--delta", 100, "--seconds", 0)
    assert code == 0
    assert "not installed, hence not measured: simplejpeg" in out
    assert not re.search(r"^ *simplejpeg ", out, re.MULTILINE)


def test_jpeg_without_any_peer_that_can(run):
    code, out, _ = run("jpeg", "--size", 8, "--delta", 100, "--seconds", 0, "--peers", "kornia")
    assert code == 0
    assert "kornia make 4:2:0 only" in out


TINY = ("--teacher", "resnet8", "--student", "resnet8", "--batch", 2, "--size", 8, "--classes", 3, "--delta", 50)


def test_coded_table_and_json(run, tmp_path):
    file = tmp_path / "coded.json"
    code, out, error = run("coded", *TINY, "--seconds", 0, "--json", file)
    assert (code, error) == (0, "")
    data = json.loads(file.read_text())
    assert data["settings"]["versions"] == 3
    assert data["settings"]["teacher"] == "resnet8"
    assert [row["target"] for row in data["comparisons"]] == [1.10, 1.05, None, None]
    assert "<= 1.10" in out
    assert "<= 1.05" in out
    for row in data["comparisons"]:
        assert 0 < row["low"] <= row["ratio"] <= row["high"]
        assert row["compared"] in out
        line = next(line for line in out.splitlines() if row["compared"] in line)
        shown = re.search(r"([\d.e-]+) \(([\d.e-]+?)-([\d.][\d.e-]*)\)", line).groups()
        assert [float(text) for text in shown] == pytest.approx([row["ratio"], row["low"], row["high"]], rel=0.06)
    for name, value in data["milliseconds"].items():
        assert value > 0
        assert name in out
        assert f"{value:.1f}" in out


def test_coded_compares_the_times_that_it_names(benches, run, clock, monkeypatch, tmp_path):
    for name, seconds in {"teacher_passes": 6, "kd": 2, "compress": 1, "online": 12, "planned": 3}.items():
        monkeypatch.setattr(benches.coded.Steps, name, lambda self, seconds=seconds: clock(seconds))
    code, _, error = run("coded", *TINY, "--seconds", 0, "--json", tmp_path / "a.json")
    assert (code, error) == (0, "")
    data = json.loads((tmp_path / "a.json").read_text())
    assert [row["ratio"] for row in data["comparisons"]] == [12 / 8, 3 / 2, 12 / 2, 1 / 12]


def test_the_steps_do_what_they_are_called(benches, monkeypatch):
    """How many images the teacher sees, and that every step trains the student."""
    steps = benches.coded.Steps("resnet8", "resnet8", 2, 8, 3, 50, "4:4:4")
    seen = []
    steps.teacher.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0]))
    weight = steps.distiller.student.classifier.weight

    def teacher_images(work) -> tuple[torch.Tensor, bool]:
        seen.clear()
        before = weight.clone()
        work()
        return torch.cat(seen), not torch.equal(weight, before)

    images, trained = teacher_images(steps.teacher_passes)
    assert (len(images), trained) == (3 * 2, False)
    images, trained = teacher_images(steps.kd)
    assert (len(images), trained) == (2, True)
    images, trained = teacher_images(steps.online)
    assert (len(images), trained) == ((1 + 3) * 2, True)
    images, trained = teacher_images(steps.planned)
    assert trained
    pairs = zip(steps.batch.image[:, None], steps.plan.tolist(), strict=True)
    one = [image if quality == ORIGINAL else jpeg.roundtrip(image, [quality])[0] for image, quality in pairs]
    assert torch.equal(images, standardise(torch.cat(one), benches.coded.MEAN, benches.coded.STD))
    assert isinstance(steps.batch, Batch)
    assert steps.batch.variants is None


def test_taps_table_and_json(run, tmp_path):
    file = tmp_path / "taps.json"
    tiny = ("--models", "resnet8,vgg8", "--batch", 2, "--classes", 3, "--seconds", 0)
    code, out, error = run("taps", *tiny, "--json", file)
    assert (code, error) == (0, "")
    rows = json.loads(file.read_text())["models"]
    assert [row["model"] for row in rows] == ["resnet8", "vgg8"]
    for row in rows:
        assert 0 < row["low"] <= row["median"] <= row["high"]
        line = next(line for line in out.splitlines() if line.split()[:1] == [row["model"]])
        assert str(len(row["taps"])) in line
        assert f"{row['median']:.3f} (" in line
        assert "<= 1.02" in line


PAIR = ("--teacher", "resnet14", "--student", "resnet8", "--batch", 4, "--size", 16, "--classes", 5)


def test_step_table_and_json(run, tmp_path):
    file = tmp_path / "step.json"
    code, out, error = run("step", *PAIR, "--objectives", "kd,cc,ft", "--seconds", 0, "--json", file)
    assert (code, error) == (0, "")
    data = json.loads(file.read_text())
    assert [row["work"] for row in data["objectives"]] == ["kd", "cc", "ft.paraphraser", "ft"]
    assert [row["target"] for row in data["objectives"]] == [1.03, None, None, None]
    kd, cc, *_ = data["objectives"]
    assert kd["trains"] == 0
    assert cc["trains"] == 2 * (64 + 1) * 128
    assert [other["name"] for other in cc["others"]] == ["plain loop"]
    for row in data["objectives"]:
        assert row["low"] <= row["median"] <= row["high"]
        line = next(line for line in out.splitlines() if line.strip().startswith(f"{row['work']}  "))
        assert f"{row['median']:.3f} (" in line
        assert row["trains"] == 0 or f" {row['trains']:,} " in line


def test_plan_opens_sets_that_are_mostly_holes(run, tmp_path):
    arguments = ["plan", "--samples", "4e6", "--shards", "50", "--json", str(tmp_path / "plan.json")]
    code, out, _ = run(*arguments)
    assert code == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    assert [(row["samples"], row["shards"]) for row in found["sets"]] == [(4_000_000, 50)]
    for row in found["sets"]:
        assert f"{row['samples']:,}" in out
        assert row["own_bytes"] < found["targets"]["bytes"] < row["process_bytes"]
        assert row["fork_bytes"] < found["targets"]["bytes"]
        assert row["mapped_bytes"] > 0


SMALL_SET = ("--images", 8, "--batch", 4, "--workers", 1, "--seconds", 0)


def test_stream_table_and_json(run, tmp_path):
    file = tmp_path / "stream.json"
    works = ("--work", "photographs,cached", "--peers", "torchvision,dali")
    code, out, error = run("stream", *works, *SMALL_SET, "--json", file)
    assert (code, error) == (0, "")
    photographs, cached = json.loads(file.read_text())["works"]
    assert (photographs["images"], photographs["batch"], photographs["failed"]) == (8, 4, {})
    assert [row["loader"] for row in photographs["loaders"]][:2] == ["kdstream", "torchvision"]
    assert [row["loader"] for row in cached["loaders"]] == ["kdstream, cached", "torchvision, in memory"]
    assert [row["target"] for row in cached["loaders"]] == [None, 20]
    for row in photographs["loaders"] + cached["loaders"]:
        assert 0 < row["wall"]["low"] <= row["wall"]["median"] <= row["wall"]["high"]
        line = next(line for line in out.splitlines() if line.strip().startswith(f"{row['loader']}  "))
        assert f" {row['images_per_second']:,.0f} " in line


def test_stream_says_what_each_took_and_who_gave_something_else(benches, run, clock, monkeypatch, tmp_path):
    took = {"kdstream": (1, 2), "torchvision": (2, 6), "webdataset": (3, 8), "torchvision.io": (1, 1)}

    class Apart:
        def __init__(self, name, asked, threads):
            if name == "webdataset":
                raise benches.stream.UserError("webdataset: no reason")
            self.name, self.mean, self.passes = name, 100 + 20 * (name == "torchvision.io"), 0

        def go(self):
            clock(1)
            self.passes += 1  # every pass takes longer, for all of them
            return benches.stream.Pass(*(self.passes * seconds / 1000 for seconds in took[self.name]))

        def close(self):
            pass

    monkeypatch.setattr(benches.stream, "Apart", Apart)
    monkeypatch.setattr(benches.stream, "_write", lambda *_: 1000)
    file, names = tmp_path / "stream.json", "torchvision,torchvision.io,webdataset"
    code, out, error = run("stream", "--work", "photographs", "--peers", names, "--seconds", 0, "--json", file)
    assert (code, error) == (0, "")
    (work,) = json.loads(file.read_text())["works"]
    assert work["failed"].keys() == {"webdataset", "torchvision.io"}
    assert "no reason" in out
    assert "20 off kdstream's" in out
    ours, other = work["loaders"]
    assert (ours["images_per_second"], ours["cpu_ms_an_image"]) == pytest.approx((500, 4))
    assert (other["wall"]["median"], other["cpu"]["median"], other["cpu"]["rounds"]) == pytest.approx((2, 3, 3))
    assert other["target"] == 2.5


def test_means_of_many_images_must_be_alike_and_of_few_not_so_much(benches):
    assert benches.stream.most_gap(6400) == benches.stream.most_gap(256) == benches.stream.MOST_GAP
    assert benches.stream.most_gap(16) == 4 * benches.stream.MOST_GAP


def test_every_loader_goes_once_through_the_set(benches, tmp_path):
    work = replace(benches.stream.WORKS["small"], images=24)
    benches.stream._write(work, tmp_path, None, 1)
    asked = benches.loaders.Asked(tmp_path, False, 32, 8, 1)
    means = {}
    for name in benches.loaders.LOADERS:
        if benches.stream._version(name) is None or name == "spdl":  # which may lack FFmpeg
            continue
        batches = list(benches.loaders.LOADERS[name].make(asked)())
        assert [benches.stream._wrong(batch, asked) for batch in batches] == [None] * 3, name
        means[name] = torch.cat(batches).float().mean().item()
    assert means.keys() >= {"kdstream", "kdstream, cached", "torchvision", "torchvision.io", "webdataset"}
    assert max(means.values()) - min(means.values()) < benches.stream.most_gap(24), means
    assert "gives (8, 3, 32, 32) torch.float32" in benches.stream._wrong(torch.zeros(8, 3, 32, 32), asked)
    assert "from 0 to 1" in benches.stream._wrong(batches[0] // 128, asked)


def test_a_loader_that_fails_says_why(benches, tmp_path):
    asked = benches.loaders.Asked(tmp_path, False, 32, 8, 1)
    with pytest.raises(benches.stream.UserError, match="torchvision, in memory: ValueError: need at least one array"):
        benches.stream.Apart("torchvision, in memory", asked, 1)


def test_cpu_time_counts_processes_of_the_loader(benches):
    before = benches.stream.cpu_seconds()
    subprocess.run([sys.executable, "-S", "-c", "sum(range(2 * 10**7))"], check=True)
    assert benches.stream.cpu_seconds() - before > 0.1


def test_step_says_which_objective_is_not_for_the_pair(run):
    code, out, _ = run("step", *PAIR[:2], "--student", "resnet8x4", *PAIR[4:], "--objectives", "fsp", "--seconds", 0)
    assert code == 0
    assert "not for this pair: fsp" in out


LOSSES = ("at", "cc", "dist", "fitnet", "kd", "nst", "pkt", "reviewkd", "rkd", "vid")
"""Objectives whose other implementation gives the same number; those of FSP, FT and SP have other forms, AB needs
maps before the ReLU, and the plain KD-SVD and CRD decompose and draw differently."""


@pytest.mark.parametrize("name", LOSSES)
def test_the_others_compute_the_same_number(benches, name):
    pair = benches.step.Pair("resnet14", "resnet8", 6, 16, 5)
    work = benches.step.set_up(name, pair)
    batch = work.answered(pair.batch)
    found = work.distiller.student.eval()(batch.image).detach()
    expected = work.term(found, batch.teacher, batch)
    others = [other for other in benches.others.OTHERS[name] if other.installed()]
    if not others:
        pytest.skip("torchdistill, an optional peer of the bench, is not installed")
    for other in others:
        value = other(work.term, pair.labels)(found, batch.teacher, batch)
        assert value.item() == pytest.approx(expected.item(), rel=1e-3), other.name


def test_a_step_trains_the_student_and_its_loss_alone_does_not(benches):
    pair = benches.step.Pair("resnet14", "resnet8", 4, 16, 5)
    work = benches.step.set_up("cc", pair)
    weight = work.distiller.student.classifier.weight
    before = weight.clone()
    for run in work.loss_alone(benches.others.OTHERS["cc"][0]):
        run()
    assert torch.equal(weight, before)
    work.step(work.distiller.stages()[-1])()
    assert not torch.equal(weight, before)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["step", "--objectives", "wtm"], "did you mean 'wttm'?"),
        (["taps", "--models", "resnet9"], "did you mean"),
        (["jpg"], "jpg"),
        (["step", "--nope"], "error: unrecognized arguments: --nope; see --help"),
        (["step", "--student"], "argument --student: expected one argument; see --help"),
        ([], "BENCH"),
        (["jpeg", "--peers", "pilow"], "did you mean 'Pillow'?"),
        (["jpeg", "--batch", "3"], "--size"),
        (["jpeg", "--size", "0"], "'0' is not a whole number"),
        (["jpeg", "--seconds", "-1"], "'-1' is not a number of seconds"),
        (["coded", "--teacher", "resnet57"], "did you mean"),
        (["plan", "--samples", "many"], "'many' is no list of numbers of samples"),
        (["stream", "--peers", "dalli"], "did you mean 'dali'?"),
        (["stream", "--work", "cache"], "did you mean 'cached'?"),
        (["stream", "--data", "no/such/folder"], "there is no such folder"),
        (["stream", "--images", "10"], "a pass has at least one batch"),
        (["coded", "--delta", "101"], "1 to 100"),
        (["coded", "--json", "no/such/folder/a.json"], "no/such/folder/a.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, arguments, part):
    code, out, error = run(*arguments)
    refused((code, "", error), part)
    assert "ms" not in out.split()  # what was found out before may be told, times not


def test_rates_are_the_median_of_rounds_after_a_first_one(benches, clock, monkeypatch):
    monkeypatch.setattr(benches.gpu.time, "perf_counter", benches.measure.time.perf_counter)
    times = iter([100, 1, 4, 2, 3, 50])

    def work():
        clock(next(times))
        return 12

    assert benches.gpu.Meter(torch.device("cpu"), seconds=8).rate(work) == (12 / 2 + 12 / 3) / 2


def test_the_gpu_bench_measures_what_it_can_and_names_what_fails(benches, run, tmp_path, monkeypatch):
    """On the CPU: cached images, plain steps; a part that fails is told, and the others are measured."""

    def nothing_there(parts):
        raise UserError("no JPEG today")

    monkeypatch.setattr(benches.gpu.Parts, "jpeg", nothing_there)
    monkeypatch.setattr(benches.gpu, "METHODS", {"kd": benches.gpu.METHODS["kd"]})
    file = tmp_path / "gpu.json"
    code, out, error = run(
        "gpu", "--device", "cpu", "--small", "--seconds", 0, "--only", "jpeg,cifar,train", "--json", file
    )
    assert (code, error) == (0, "")
    found = json.loads(file.read_text())
    assert found["failed"] == {"jpeg": "UserError: no JPEG today"}
    assert "jpeg: failed: UserError: no JPEG today" in out
    assert len(found["cifar"]) == 8
    assert all(row["images/s"] > 0 for row in found["cifar"])
    plain, ours = found["train"]
    assert plain["plain loop / this"] == 1
    assert ours["work"] == "resnet8 -> resnet8: kd"
    assert ours["plain loop / this"] == pytest.approx(plain["ms a step"] / ours["ms a step"])
    assert ours["minutes of 240 epochs"] == pytest.approx(ours["ms a step"] / 1000 * (50_000 // 64) * 240 / 60)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--only", "jpeg,juice"), "unknown part 'juice'; known: jpeg, cifar"), (("--device", "cuda"), "there is no GPU")],
)
def test_a_gpu_bench_that_cannot_be(run, arguments, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, error = run("gpu", *arguments)
    refused((code, "", error), says)


def test_interrupted(benches, run, monkeypatch):
    def interrupt(*_):
        """A bench that is stopped."""
        raise KeyboardInterrupt

    table = benches.measure.BENCHES
    monkeypatch.setitem(table, "step", (interrupt, table["step"][1]))
    code, _, error = run("step")
    assert (code, error) == (130, "interrupted\n")


def test_every_bench_has_a_file_of_its_name_and_a_line_of_help(benches, run):
    assert benches.measure.BENCHES.keys() == NAMES.keys()
    for name, (function, _) in benches.measure.BENCHES.items():
        assert function.__module__ == f"kdstream.benches.{name}"


def test_how_it_is_used_is_told_without_torch():
    text, loaded = modules_that_help_loads("kdstream.cli.bench")
    assert not loaded
    assert all(name in text for name in NAMES)


def test_from_a_clone_without_installation(tmp_path):
    done = run_from_a_clone(SCRIPT, "nothing", cwd=tmp_path, env={"PATH": ""})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
