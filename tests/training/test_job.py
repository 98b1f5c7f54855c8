"""Jobs: mistakes are found before any work begins, teachers are trained once, and no stranger's file is deleted."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from rich.console import Console
from torch import nn

import kdstream as kd
from kdstream.convert.make_shards import make_shards
from kdstream.display.progress import Display
from kdstream.errors import DiskError, UserError
from kdstream.models import build
from kdstream.models.download import cached
from kdstream.models.export import save_student
from kdstream.recipe import make_recipe
from kdstream.training.checks import check
from kdstream.training.job import Job
from kdstream.training.metrics import MetricsLog, read_metrics

HERE = Path(__file__).stem


def recipe(path, **settings):
    base = {
        "data": {"path": str(path)},
        "student": "resnet8",
        "loss": "ce",
        "stream": "decode",
        "epochs": 1,
        "batch_size": 120,
        "workers": 0,
    }
    return make_recipe({**base, **settings}, "test")


def job(wanted, **settings):
    return Job(wanted, Accelerator(cpu=True), Display(Console(quiet=True)), **settings).run()


class Net(nn.Sequential):
    """Somebody's own network, with a setting that must be given."""

    def __init__(self, num_classes, width):
        super().__init__(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, width), nn.Linear(width, num_classes))


class Prepares(kd.Term):
    """A term that contributes nothing to the main phase."""

    in_main = False


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


# --- check


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "kdd"}, r"^recipe recipe: loss: unknown objective 'kdd': did you mean 'kd'\?$"),
        ({"loss": {"ce": 1, "kd": {"temprature": 2}}}, r"loss\.kd: unknown setting 'temprature': did you mean 'temp"),
        ({"loss": "kd"}, r"the loss \(kd\) needs a teacher: add teacher: to the recipe"),
        ({"loss": {f"{HERE}:Prepares": 1}, "teacher": "resnet8"}, r"the loss \(.*Prepares\) only prepares the student"),
        ({"stream": "decode | agument(cifar)"}, r"unknown stage 'agument': did you mean 'augment'\?"),
        ({"stream": "decode | augment(cifar, padd=3)"}, r"augment.*padd"),
        ({"stream": "decode | "}, r"is not a chain of stages"),
        ({"eval_stream": "dekode"}, r"unknown stage 'dekode': did you mean 'decode'\?"),
        ({"student": "resnet9"}, r"unknown model 'resnet9': did you mean 'resnet8'\?"),
        ({"student": {"model": "resnet8", "options": {"widht": 1}}}, r"model 'resnet8': .*widht"),
        ({"student": {}}, r"student\.model is missing: name a network, such as student=resnet20"),
        ({"student": "no/such.pth"}, r"student\.weights: 'no/such\.pth': no such file or folder"),
        ({"student": f"{HERE}:Nett"}, rf"model '{HERE}:Nett': .*did you mean 'Net'\?"),
        ({"student": "no_such_module:Net"}, r"cannot import module 'no_such_module'"),
        ({"loss": "kd", "teacher": "resnet9"}, r"unknown model 'resnet9'"),
        ({"loss": "kd", "teacher": "ftp://host/t.pth"}, r"teacher\.weights: ftp://host/t\.pth: only http:// and https"),
        ({"loss": "kd", "teacher": "no/such"}, r"teacher\.weights: 'no/such': no such file or folder"),
    ],
)
def test_check_finds_what_a_recipe_alone_can_tell(importable, settings, message):
    with pytest.raises(UserError, match=message) as error:
        check(recipe("nowhere", **settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["resnet32x4", "resnet18", "regnet_y_400mf", "vit_b_32", f"{HERE}:Net"])
def test_check_lets_pass_what_is_right(importable, model):
    check(recipe("nowhere", student=model))


def test_check_downloads_nothing(monkeypatch):
    from torchvision.models import _api

    def refuse(*args, **settings):
        raise AssertionError("a download")

    monkeypatch.setattr(_api, "load_state_dict_from_url", refuse)
    wanted = {"model": "vit_h_14", "options": {"weights": "DEFAULT"}}  # 630 million parameters
    check(recipe("nowhere", student=wanted, teacher=wanted))
    check(recipe("nowhere", loss="kd", teacher={"model": "resnet56", "weights": "https://kdstream.invalid/t.pth"}))


def test_check_knows_timms_networks_and_downloads_nothing():
    pytest.importorskip("timm", reason="an extra")
    loss = {"vitkd": 1, "ce": 1}
    teacher = {"model": "timm:deit3_small_patch16_224", "options": {"pretrained": True}}
    check(recipe("nowhere", loss=loss, student="timm:deit_tiny_patch16_224", teacher=teacher))
    with pytest.raises(UserError, match=r"unknown model 'timm:deit_tini_patch16_224': did you mean"):
        check(recipe("nowhere", student="timm:deit_tini_patch16_224"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runs": {"good": {}, "bad": {"loss": "kdd"}}}, r"recipe bad: loss: unknown objective 'kdd'"),
        ({"teacher": {"model": "resnet8", "train": {"loss": "cee"}}}, r"recipe teacher resnet8: loss: unknown obj"),
        ({"teacher": {"model": "resnet8", "train": {"epohcs": 2}}}, r"teacher\.train: unknown setting 'epohcs'"),
        ({"teacher": {"train": {}}}, r"teacher\.model is missing: name a network, such as teacher=resnet56"),
        ({"teacher": {"model": "resnet8", "train": {}}, "student": "no/such"}, r"student\.weights: 'no/such'"),
    ],
)
def test_nothing_is_begun_when_a_later_part_is_wrong(digits, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        job(recipe(digits, out=str(tmp_path / "runs" / "x"), **settings))
    assert list(tmp_path.iterdir()) == []


# --- data


def test_evaluation_data_of_unknown_classes_is_refused(make_tars, tmp_path):
    make_tars(tmp_path / "set", train=[0, 1, 2], val=[0, 3])
    with pytest.raises(UserError, match=r"set: val holds class 3, train has 3 classes \(0 to 2\)"):
        job(recipe(tmp_path / "set", out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize(("splits", "count"), [(("val", "test"), 3), (("test",), 2)])
def test_the_split_for_evaluation_is_val_else_test(make_tars, tmp_path, flat, splits, count):
    labels = {"train": [0, 1] * 4, "val": [0, 1, 1], "test": [0, 1]}
    make_tars(tmp_path / "set", flat=flat, **{name: labels[name] for name in ("train", *splits)})
    _, val = Job(recipe(tmp_path / "set"), Accelerator(cpu=True), Display(Console(quiet=True))).data()
    assert len(val) == count


def data_of(data):
    return Job(recipe("-", data=data), Accelerator(cpu=True), Display(Console(quiet=True))).data()


def test_a_source_as_the_data_and_a_split_that_is_held_out(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"no split val or test .*as data\.val=NAME, or .*data\.hold_out=0\.1"):
        data_of(f"imagefolder:{photos}")
    train, val = data_of({"path": f"imagefolder:{photos}", "hold_out": 0.2})
    assert (len(train), len(val), val.classes) == (240, 60, ["cat", "dog"])
    assert train.path.parent == tmp_path / "kdstream" / "shards"
    with pytest.raises(UserError, match=r"is a source itself: leave data\.source out"):
        data_of({"path": "imagefolder:x", "source": "digits"})


# --- the teacher


def test_teacher_and_student_of_ones_own_keep_their_own_options(digits, tmp_path, importable):
    wanted = recipe(
        digits,
        teacher={"model": f"{HERE}:Net", "options": {"width": 5}, "train": {}},
        student={"model": "resnet8", "options": {}},
        runs={
            "own": {"student": {"model": f"{HERE}:Net", "options": {"width": 3}}, "loss": "kd"},
            "zoo": {"loss": "kd"},
        },
        out=str(tmp_path / "runs" / "x"),
    )
    own, zoo = job(wanted)
    assert own["params"] == 48 * 3 + 3 + 3 * 10 + 10
    assert zoo["model"] == "resnet8"
    (folder,) = (tmp_path / "runs" / "teachers").iterdir()
    teacher = kd.load_student(folder, trust_code=True)
    assert teacher[2].out_features == 5
    # and the student's options are not the teacher's
    lone = recipe(
        digits,
        teacher={"model": "resnet8", "train": {}},
        student={"model": f"{HERE}:Net", "options": {"width": 3}},
        loss="kd",
        out=str(tmp_path / "lone" / "x"),
    )
    assert job(lone)[0]["params"] == own["params"]


def test_shards_made_anew_give_a_new_teacher(tmp_path):
    wanted = recipe(
        tmp_path / "set", teacher={"model": "resnet8", "train": {}}, loss="kd", out=str(tmp_path / "runs" / "x")
    )
    for count in (40, 60):
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        make_shards("digits", tmp_path / "set", limit=count, processes=1, console=Console(quiet=True))
        job(wanted, fresh=count == 60)
    assert len(list((tmp_path / "runs" / "teachers").iterdir())) == 2


# --- the output folder


def test_fresh_leaves_what_is_not_kdstreams(digits, tmp_path):
    out = tmp_path / "out"
    mine = [out / "thesis.tex", out / "a" / "notes.txt", out / "mine" / "last.pt"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    job(recipe(digits, out=str(out), runs={"a": {}, "b": {}}))
    board = out / "b" / "tensorboard" / "events.out.tfevents.1.here"
    board.parent.mkdir()
    board.write_bytes(b"")
    job(recipe(digits, out=str(out), runs={"a": {"epochs": 2}}), fresh=True)
    assert [path.read_text() for path in mine] == ["precious"] * 3
    assert not (out / "b").exists()
    assert len(read_metrics(out / "a")) == 2


HOLDER = """
import sys
from pathlib import Path
from kdstream.lock import alone
with alone(Path(sys.argv[1]), print, print):
    print("trains", flush=True)
    sys.stdin.read()
"""


def test_fresh_waits_for_the_job_that_trains_there(digits, tmp_path):
    wanted = recipe(digits, out=str(tmp_path / "out"), runs={"a": {}})
    job(wanted)
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "a").iterdir()}
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "out" / "a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "trains\n"
    found = []

    class Watching(Display):
        def note(self, text, once=False):
            if "another job trains in" in text:
                found.append({path: path.read_bytes() for path in before})
                other.stdin.close()

    Job(wanted, Accelerator(cpu=True), Watching(Console(quiet=True)), fresh=True).run()
    assert found == [before], "it deleted under the other one's feet"
    other.wait()
    assert (tmp_path / "out" / "a" / "result.json").exists()
    assert not list(tmp_path.rglob(".lock"))


def test_without_locks_a_job_runs_and_says_so_once(digits, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    screen = io.StringIO()
    wanted = recipe(digits, out=str(tmp_path / "out"), runs={"a": {}, "b": {}})
    Job(wanted, Accelerator(cpu=True), Display(Console(file=screen, width=200))).run()
    assert screen.getvalue().count("no locks where the results go (No locks available)") == 1
    assert (tmp_path / "out" / "b" / "result.json").exists()


def test_what_killed_processes_left_is_removed_and_nothing_else(digits, tmp_path):
    out = tmp_path / "out"
    left = ["last.pt.part", "best.pt.part", "report.html.77.tmp", "student.json.4711.tmp", "job.yaml.1.tmp"]
    mine = ["notes.77.tmp", "last.pt.partly", "last.pt.x.tmp", "mine.part"]
    out.mkdir()
    for name in (*left, *mine):
        (out / name).write_text("precious")
    job(recipe(digits, out=str(out)))
    names = {path.name for path in out.iterdir()}
    assert not names & set(left)
    assert names >= set(mine)


@pytest.mark.parametrize("content", ["", '{"top1": 9', "[]", "{}"])
def test_a_damaged_result_is_written_anew_from_the_last_checkpoint(digits, tmp_path, content):
    wanted = recipe(digits, out=str(tmp_path / "out"))
    (whole,) = job(wanted)
    metrics = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    (tmp_path / "out" / "result.json").write_text(content)
    assert job(wanted) == [whole]
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == whole
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == metrics


def test_a_folder_that_vanishes_while_it_is_trained_into_is_said_so(digits, tmp_path, monkeypatch):
    def write(self, kind, row):
        shutil.rmtree(self.folder)

    monkeypatch.setattr(MetricsLog, "write", write)
    with pytest.raises(DiskError, match=r"last\.pt: No such file or directory; was its folder removed") as error:
        job(recipe(digits, out=str(tmp_path / "out")))
    assert "\n" not in str(error.value)


def test_a_refused_recipe_leaves_the_record_of_the_one_before(digits, tmp_path):
    job(recipe(digits, out=str(tmp_path / "out")))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match=r"epochs: 1 -> 3"):
        job(recipe(digits, out=str(tmp_path / "out"), epochs=3))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert yaml.safe_load(before["job.yaml"])["epochs"] == 1


def test_a_job_that_gets_another_run_keeps_the_first(digits, tmp_path):
    job(recipe(digits, out=str(tmp_path), runs={"a": {}}))
    stamp = (tmp_path / "a" / "result.json").stat().st_mtime_ns
    results = job(recipe(digits, out=str(tmp_path), runs={"a": {}, "b": {"seed": 1}}))
    assert [result["name"] for result in results] == ["a", "b"]
    assert (tmp_path / "a" / "result.json").stat().st_mtime_ns == stamp
    assert list(yaml.safe_load((tmp_path / "job.yaml").read_text())["runs"]) == ["a", "b"]


def test_a_file_in_the_way_of_the_output_folder(digits, tmp_path):
    (tmp_path / "out").write_text("x")
    for out in ("out", "out/below"):
        with pytest.raises(UserError, match=r"cannot write to .*out.*: choose another out=FOLDER"):
            job(recipe(digits, out=str(tmp_path / out)))


def test_a_teachers_address_is_kept_without_what_gives_access_to_it(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    url, newer = (f"http://me:SECRET@127.0.0.1:9/teacher.pth?token=SECRET{i}" for i in range(2))
    cached(url).parent.mkdir(parents=True)
    torch.save(build("resnet8", 10).state_dict(), cached(url))  # as if it had been downloaded
    monkeypatch.setattr(sys, "argv", ["train.py", f"teacher={url}"])
    out = tmp_path / "out"
    (result,) = job(recipe(digits, out=str(out), teacher=url, loss="kd", runs={"a": {}}))
    cached(url).rename(cached(newer))  # the same file by a newer token is no other training
    assert job(recipe(digits, out=str(out), teacher=newer, loss="kd", runs={"a": {}})) == [result]
    for path in out.rglob("*"):
        if path.is_file():
            assert b"SECRET" not in path.read_bytes(), path
            assert "SECRET" not in path.name
    assert "http://127.0.0.1:9/teacher.pth" in (out / "a" / "recipe.yaml").read_text()
    assert "teacher=http://127.0.0.1:9/teacher.pth" in (out / "report.html").read_text()
    assert "SECRET" not in "".join(capsys.readouterr())


def test_of_several_teachers_the_one_with_the_best_validation_accuracy_teaches(digits, tmp_path, capsys):
    several = {"model": "resnet8", "train": {"loss": "ce", "optimizer": {"lr": 0.2}}, "seeds": 3}
    wanted = recipe(digits, teacher=several, loss={"ce": 1, "kd": 1}, out=str(tmp_path / "runs" / "kd"))
    text = io.StringIO()
    Job(wanted, Accelerator(cpu=True), Display(Console(file=text, width=2000))).run()
    tops = {}
    for path in (tmp_path / "runs" / "teachers").glob("*/result.json"):
        tops[yaml.safe_load((path.parent / "recipe.yaml").read_text())["seed"]] = json.loads(path.read_text())["top1"]
    assert sorted(tops) == [0, 1, 2]
    assert len(set(tops.values())) > 1
    best = max(sorted(tops), key=tops.__getitem__)
    each = ", ".join(f"{tops[i]:.2f}" for i in range(3))
    said = f"of 3 teachers resnet8 the one of seed {best} teaches (top-1 {each} %)"
    assert said in text.getvalue()
    assert said in (tmp_path / "runs" / "kd" / "report.html").read_text()
    # A teacher alone that is the best one teaches the same; it is trained already.
    alone = {"model": "resnet8", "train": {"loss": "ce", "optimizer": {"lr": 0.2}, "seed": best}}
    again = recipe(digits, teacher=alone, loss={"ce": 1, "kd": 1}, out=str(tmp_path / "runs" / "again"))
    Job(again, Accelerator(cpu=True), Display(enabled=False)).run()
    assert len(list((tmp_path / "runs" / "teachers").iterdir())) == 3
    one, two = (json.loads((tmp_path / "runs" / name / "result.json").read_text()) for name in ("kd", "again"))
    assert one["fingerprint"].partition("-")[2] == two["fingerprint"].partition("-")[2]  # data and teacher
    assert one["top1"] == two["top1"]


def test_several_teachers_one_given_and_one_trained(digits, tmp_path, capsys):
    torch.manual_seed(0)
    save_student(tmp_path / "given", build("resnet8", 10), mean=(0.2,) * 3, std=(0.3,) * 3)
    train = {"loss": "ce", "optimizer": {"lr": 0.2}}
    both = [str(tmp_path / "given"), {"model": "resnet14", "train": train}]
    # A term that reads features gets those of the first.
    wanted = recipe(digits, teacher=both, loss={"ce": 1, "kd": 1, "pkt": 1}, out=str(tmp_path / "runs" / "kd"))
    text = io.StringIO()
    (result,) = Job(wanted, Accelerator(cpu=True), Display(Console(file=text, width=2000))).run()
    (kept,) = (tmp_path / "runs" / "teachers").iterdir()
    assert "resnet14" in kept.name
    assert "teacher resnet8 + resnet14" in text.getvalue()
    told = json.loads((tmp_path / "runs" / "kd" / "teacher.json").read_text())
    first, second = (kd.load_teacher(path) for path in (tmp_path / "given", kept))
    stream = kd.Stream(f"{digits}/val", 240, train=False) | "decode"
    right = 0
    for batch in stream:
        images = batch.image.float() / 255
        answers = []
        for network in (first, second):
            mean, std = (torch.tensor(getattr(network, name))[:, None, None] for name in ("mean", "std"))
            answers.append(network((images - mean) / std).softmax(1))
        right += int(((answers[0] + answers[1]).argmax(1) == batch.label).sum())
    assert told["top1"] == pytest.approx(100 * right / 240)
    assert result["top1"] > 0
    # The same list in Python finds all that was made, the trained one too.
    modules = [first, {"model": "resnet14", "train": train}]
    again = {**wanted.model_dump(exclude={"data", "student", "teacher", "loss", "out"}), "loss": {"ce": 1, "kd": 1}}
    kd.distill(str(digits), student="resnet8", teacher=modules, out=tmp_path / "runs" / "two", show=False, **again)
    assert len(list((tmp_path / "runs" / "teachers").iterdir())) == 1
