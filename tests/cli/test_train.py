"""train.py as a user runs it: commands, their exit codes and what they print."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from processes import alone

import kdstream
import kdstream as kd
from kdstream.cli import train
from kdstream.data.shards import open_shards
from kdstream.models import build
from kdstream.recipe_file import load_recipe
from kdstream.training.checkpoint import load_checkpoint
from kdstream.training.metrics import read_metrics

TRAIN = str(Path(kdstream.__file__).parent / "train.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps device and precision for the life of a process; each command here is a process to itself."""
    environment = dict(os.environ)  # it keeps notes there, too
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def write(digits, tmp_path, monkeypatch):
    """Writes r.yaml into a working folder of its own."""
    monkeypatch.chdir(tmp_path)

    def write(**settings):
        base = {
            "data": {"path": str(digits)},
            "student": "resnet8",
            "loss": "ce",
            "stream": "decode",
            "epochs": 1,
            "batch_size": 60,
            "workers": 0,
        }
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({**base, **settings}, sort_keys=False))
        return "r.yaml"

    return write


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs a command that must fail: exit code 2, one line on stderr, no result. Gives the line."""

    def refused(*arguments):
        capsys.readouterr()
        assert train.main(["--cpu", *arguments]) == 2
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()
        assert line.startswith("error: ")
        assert "Traceback" not in captured.out
        assert not list(tmp_path.rglob("result.json")), "it went on"
        assert not list(tmp_path.rglob("*.part")), "something half-written is left"
        return line

    return refused


# --- what is wrong in the recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.path=shards/nowhere", "no shards at shards/nowhere/train: make them with `kdstream shards"),
        ("data.path=pipe:touch executed;", "no command is ever run to read data"),
        ("data.val=tset", "has no split 'tset': found train, val"),
        ("epohcs=3", "r.yaml: unknown setting 'epohcs': did you mean 'epochs'?"),
        ("optimizer.momentun=0", "r.yaml: unknown setting 'optimizer.momentun': did you mean 'momentum'?"),
        ("loss=fitnett", "loss: unknown objective 'fitnett': did you mean 'fitnet'?"),
        ("loss={ce: {wieght: 1}}", "loss.ce: unknown setting 'wieght': did you mean 'weight'?"),
        ("stream=decode | agument(cifar)", "unknown stage 'agument': did you mean 'augment'?"),
        ("student=resnet9", "unknown model 'resnet9': did you mean 'resnet8'?"),
        ("student=mine:Net", "model 'mine:Net': cannot import module 'mine'"),
        ("batch_size=0", "batch_size: input should be greater than or equal to 1; it is 0"),
        ("epochs", "'epochs' is no override: write key=value, as in optimizer.lr=0.1"),
        ("out=r.yaml", "cannot write to r.yaml (File exists): choose another out=FOLDER"),
    ],
)
def test_mistakes_in_the_recipe(write, refused, override, message):
    assert message in refused(write(), override)
    assert not Path("executed").exists()
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", "error: r.yaml: not readable as YAML: "),
        ("- student", "error: r.yaml: a recipe is a YAML mapping such as 'student: resnet8'"),
        ("student: resnet8", "error: r.yaml: data is missing"),
    ],
)
def test_files_that_are_no_recipe(write, refused, content, message):
    Path(write()).write_text(content)
    assert refused("r.yaml").startswith(message)


def test_an_unknown_recipe(write, refused):
    assert "no recipe 'quickstrat': neither a file nor one of kdstream's (did you mean 'quickstart'?)" in refused(
        "quickstrat"
    )


# --- what is wrong in the files


class Touch:
    """Pickled, it makes a file when it is read."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_teacher_files_that_do_not_fit(write, refused):
    torch.save(build("resnet8", 7).state_dict(), "seven.pth")
    torch.save(build("resnet14", 10).state_dict(), "other.pth")
    torch.save({"state_dict": {"a": torch.zeros(2)}, "note": Touch()}, "pickled.pth")
    Path("page.pth").write_text("<!DOCTYPE html><title>404</title>")
    recipe = write(loss="kd", teacher="resnet8")
    for file, message in {
        "seven.pth": "seven.pth is for 7 classes, the data has 10",
        "other.pth": "other.pth is for another architecture than resnet8: ",
        "pickled.pth": "pickled.pth carries a pickled object (",
        "page.pth": "page.pth is a web page (HTML), not weights",
        "gone.pth": "teacher.weights: 'gone.pth': no such file or folder",
    }.items():
        line = refused(recipe, f"teacher.weights={file}", "out=out")
        assert message in line
        if file == "other.pth":
            assert line.endswith("it looks like resnet14")
    assert not Path("executed").exists()


def test_a_last_pt_with_a_pickled_object(write, refused):
    Path("out").mkdir()
    torch.save({"fingerprint": "x", "best": Touch()}, "out/last.pt")
    line = refused(write(), "out=out")
    assert "error: out/last.pt holds a pickled object, which would run code when read" in line
    assert not Path("executed").exists()


@pytest.fixture
def copied(digits, tmp_path):
    """A copy of the shards that may be damaged; gives the folder and the first training shard."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for path in digits.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder, sorted(folder.glob("train-*.tar"))[0]


def test_a_truncated_tar(write, refused, copied):
    folder, shard = copied
    size = shard.stat().st_size
    os.truncate(shard, size // 2)
    line = refused(write(), f"data.path={folder}")
    assert f"{shard} is truncated: {size // 2} bytes of {size}" in line


def test_a_foreign_truncated_tar(write, refused, copied):
    folder, shard = copied
    foreign = folder / "foreign" / "train"
    foreign.mkdir(parents=True)
    (foreign / "0.tar").write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    line = refused(write(), f"data.path={foreign.parent}", "data.val=train")
    assert "0.tar is truncated" in line


@pytest.mark.parametrize("workers", [None, 0, 1])
def test_a_corrupt_png_inside_a_shard(write, refused, copied, workers):
    """By its checksum in a set of our own (None); of other people's tars nobody knows it, there the image is named."""
    folder, shard = copied
    if workers is not None:
        foreign = folder / "foreign" / "train"
        foreign.mkdir(parents=True)
        folder, shard = foreign.parent, shard.rename(foreign / "0.tar")
    with tarfile.open(shard) as tar:
        member = next(m for m in tar if m.name.endswith(".png"))
    with shard.open("r+b") as file:
        file.seek(member.offset_data + 8)
        file.write(bytes(member.size - 8))
    if workers is None:
        assert f"{shard} is damaged: its checksum differs" in refused(write(), f"data.path={folder}", "out=out")
        return
    line = refused(write(), f"data.path={folder}", "data.val=train", "out=out", f"workers={workers}")
    key = member.name.removesuffix(".png")
    assert f"cannot decode sample {key!r} of {shard} (png)" in line
    assert "kdstream shards --verify" in line


# --- the command line


@pytest.fixture
def refused_by_rank(capsys, monkeypatch):
    """Runs a command that must fail as one process of several. Gives the line."""

    def refused(rank, *arguments):
        monkeypatch.setenv("RANK", rank)
        assert train.main(list(arguments)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        return line

    return refused


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nope"], "unrecognized arguments: --nope"),
        (["quickstart", "epochs=1", "--nope"], "unrecognized arguments: --nope"),
        (["--fresh=yes"], "argument --fresh: ignored explicit argument 'yes'"),
    ],
)
def test_bad_options(refused_by_rank, rank, arguments, message):
    place = "error" if rank == "0" else f"error in process {rank}"
    assert refused_by_rank(rank, *arguments) == f"{place}: {message}; see --help"


def test_interrupted_before_the_training(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("kdstream.recipe_file.load_recipe", interrupt)
    assert train.main([]) == 130
    assert capsys.readouterr().err == "interrupted; the same command continues\n"


def test_a_disk_error_of_anything_is_one_line(monkeypatch, capsys):
    def fail(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/birds")

    monkeypatch.setattr("kdstream.recipe_file.load_recipe", fail)
    assert train.main([]) == 2
    line = "error: /data/birds: Permission denied; allow writing there, then the same command continues\n"
    assert capsys.readouterr().err == line


# --- signals while modules are imported

TOOLS = Path(TRAIN).parent.parent / "tools"
COMMANDS = {
    "train": [TRAIN],
    "shards": [TOOLS / "make_shards.py", "digits", "set"],
    "bench": [TOOLS / "bench.py", "jpeg"],
    "export": [TOOLS / "export_onnx.py", "run"],
    "evaluate": [TOOLS / "reproduce.py", "evaluate", "run", "set"],
}
SENDING = "import os, time; os.kill(os.getpid(), {}); time.sleep(60)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_during_imports_ends_the_command_without_a_traceback(tmp_path, command, number):
    """train.py in silence: its launcher may say something itself; the others by one line, or in silence."""
    for name in ("torch", "numpy"):  # whichever comes first
        (tmp_path / f"{name}.py").write_text(SENDING.format(int(number)))
    done = subprocess.run(
        [sys.executable, *COMMANDS[command]], cwd=tmp_path, env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path)},
        capture_output=True, timeout=60, text=True, restore_signals=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (128 + number, "")
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert done.stderr == "" if command == "train" else done.stderr.startswith(word)
    assert done.stderr.count("\n") <= 1


def test_the_first_word_may_be_recipe_or_override(write):
    assert train.parse_arguments([]).recipe == "quickstart"
    chosen = train.parse_arguments(["epochs=1", "--cpu", "seed=2"])
    assert (chosen.recipe, chosen.overrides, chosen.cpu, chosen.fresh) == (
        "quickstart",
        ["epochs=1", "seed=2"],
        True,
        False,
    )
    chosen = train.parse_arguments(["--fresh", "my.yaml", "epochs=1"])
    assert (chosen.recipe, chosen.overrides, chosen.fresh) == ("my.yaml", ["epochs=1"], True)


def test_the_record_of_a_job_is_a_recipe_though_its_folder_has_an_equals_sign(write):
    folder = Path("runs/r,epochs=2")
    folder.mkdir(parents=True)
    Path(write()).rename(folder / "job.yaml")
    chosen = train.parse_arguments(["runs/r,epochs=2/job.yaml", "seed=1"])
    assert (chosen.recipe, chosen.overrides) == ("runs/r,epochs=2/job.yaml", ["seed=1"])
    assert load_recipe(chosen.recipe).epochs == 1


def test_processes_that_do_not_know_of_each_other_are_refused(write, refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # and nothing else that a launcher tells its processes
    line = refused(write())
    assert "2 processes" in line
    assert "Accelerate" in line


# --- whole runs


def command(*arguments, launcher=(sys.executable,)):
    return [*launcher, TRAIN, *arguments]


def succeed(arguments, folder, **settings):
    done = subprocess.run(
        arguments, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, **settings
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_quickstart_in_small_by_two_processes_and_once_more_by_one(tmp_path, monkeypatch, capsys):
    overrides = ["epochs=1", "teacher.train.epochs=1", "seeds=2"]
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    done = succeed(command("--cpu", *overrides, launcher=(*launcher, "--main_process_port", "0")), tmp_path)
    assert "Making shards of digits in shards/digits" in done.stdout
    assert "Traceback" not in done.stderr
    train_set = open_shards(tmp_path / "shards/digits/train")
    assert len(train_set) + len(open_shards(tmp_path / "shards/digits/val")) == 1797
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "teachers")
    assert folder.name == "quickstart,epochs=1_teacher.train.epochs=1"
    runs = ("labels only", "kd", "coded kd", "wttm")
    trainings = [(f"{run}, seed {seed}", f"{run.replace(' ', '_')}/seed{seed}") for run in runs for seed in (0, 1)]
    table = done.stdout[done.stdout.index("top-1 %") :]
    rows = [line for line in table.splitlines() if "resnet" in line]
    assert [row.split("  ")[1].strip() for row in rows] == ["teacher resnet14", *(name for name, _ in trainings)]
    for row, (_, place) in zip(rows[1:], trainings, strict=True):
        result = json.loads((folder / place / "result.json").read_text())
        assert f" {result['top1']:.2f} " in row
        assert [line["step"] for line in read_metrics(folder / place)] == [5], "20 samples a step, by both together"
        kd.load_student(folder / place)
    (report,) = (line.removeprefix("report: ") for line in done.stdout.splitlines() if line.startswith("report: "))
    assert Path(report) == folder / "report.html"
    page = Path(report).read_text()  # one process speaks
    assert "2 process(es)" in page
    assert "coded kd" in page
    assert page.count("<svg") >= 5

    def stamps():
        return {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.suffix in (".tar", ".pt", ".safetensors")}

    before = stamps()
    monkeypatch.chdir(tmp_path)
    assert train.main(["--cpu", *overrides]) == 0
    said = capsys.readouterr().out
    assert said.count(": finished before, top-1 ") == 9
    assert "Making shards" not in said
    assert "epoch " not in said
    assert stamps() == before


MINE = '''
"""A stage and an objective of one's own."""

import torch
import kdstream as kd


@kd.stage
def without(samples, label):
    """Drops a class."""
    for sample in samples:
        if sample["label"] != label:
            yield sample


@kd.batch_stage
def invert(batches):
    """Negatives."""
    for batch in batches:
        yield batch.map_views(lambda images: 255 - images)


class Counting(kd.Term):
    """Cross-entropy, and a thousand for each sample of one class."""

    uses_teacher = False

    def __init__(self, label):
        super().__init__()
        self.label = label

    def forward(self, student, teacher, batch):
        found = (batch.label == self.label).sum()
        return torch.nn.functional.cross_entropy(student.logits, batch.label) + 1000 * found
'''


def test_a_stage_and_an_objective_of_ones_own(write, tmp_path, monkeypatch, digits):
    Path("own_parts.py").write_text(MINE)
    recipe = write(
        loss={"own_parts:Counting": {"weight": 0.5, "label": 3}},
        stream="decode | own_parts:without(3) | augment(cifar, pad=1) | own_parts:invert",
    )
    # In a recipe, with readers of their own, from another working folder than kdstream's.
    process = alone(run_here, ["--cpu", recipe, "epochs=2", "workers=1"], tmp_path)
    process.join(240)
    assert process.exitcode == 0, Path("train.err").read_text()
    rows = read_metrics(tmp_path / "runs" / "r,epochs=2")
    assert len(rows) == 2, "the override"
    for row in rows:
        assert 0 < row["loss/own_parts:Counting"] < 100, "a three came through"
        assert row["loss"] == pytest.approx(row["loss/own_parts:Counting"] / 2)
    # In Python.
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_parts

    every = kd.Stream(digits / "train", 60) | kd.decode()
    mine = kd.Stream(digits / "train", 60) | kd.decode() | own_parts.without(3) | own_parts.invert()
    term = own_parts.Counting(3)
    for plain, changed in zip(every, mine, strict=True):
        keep = plain.label != 3
        assert changed.index.equal(plain.index[keep])
        assert changed.image.equal(255 - plain.image[keep])
        logits = torch.zeros(len(changed), 10)
        assert float(term(kd.Outputs(logits), None, changed)) == pytest.approx(2.302585)
        logits = torch.zeros(len(plain), 10)
        assert float(term(kd.Outputs(logits), None, plain)) == pytest.approx(2.302585 + 1000 * int((~keep).sum()))


def run_here(arguments, folder):
    """The command in a process group of its own; what it says goes to train.out and train.err."""
    os.setsid()
    os.chdir(folder)
    os.environ["COLUMNS"] = "100"
    for stream, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"train.{ending}", os.O_WRONLY | os.O_CREAT), stream)
    train.leave(train.main(arguments))


def one_of_two(rank, arguments, folder, port):
    """One of two processes that nobody launches but the user's own script."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    environment = {**ENVIRONMENT, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        command("--cpu", *arguments), cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def test_the_end_of_one_process_ends_the_other_with_one_line(write, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [one_of_two(rank, [write(epochs=10_000), "out=out"], tmp_path, port) for rank in (0, 1)]
    wait_for_a_row(tmp_path / "out", processes[0])
    processes[1].kill()
    _, err = processes[0].communicate(timeout=120)
    processes[1].communicate()
    assert processes[0].returncode == 1
    (line,) = err.splitlines()
    assert line.startswith("error: another process of this training has ended (")
    assert line.endswith("; the same command continues")


def wait_for_a_row(folder, process):
    """Until the training has ended an epoch."""
    ended = process.poll if isinstance(process, subprocess.Popen) else lambda: process.exitcode
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and ended() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def test_the_end_of_accelerate_launch_saves_and_stops(write, tmp_path):
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--cpu")
    process = subprocess.Popen(
        command(write(epochs=10_000, checkpoint_seconds=10_000), "out=out", launcher=launcher), cwd=tmp_path,
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_a_row(tmp_path / "out", process)
    process.terminate()  # and not its child, to which it passes nothing on
    _, err = process.communicate(timeout=120)  # the child's end, too: it has the other end of the pipe
    assert process.returncode == -signal.SIGTERM
    *_, line = err.splitlines()  # after the launcher's advice
    assert "Traceback" not in err
    assert line.startswith("stopped: r, epoch ")
    assert line.endswith(" is saved in out; the same command continues")
    assert load_checkpoint(tmp_path / "out" / "last.pt")["global_step"] > 0
    assert not (tmp_path / "out" / ".lock").exists()


def gone(group):
    """Whether a process group ends within a few seconds."""
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_sigterm_to_the_whole_group_saves_and_the_same_command_continues(write, tmp_path, capsys):
    arguments = ["--cpu", write(epochs=16, workers=1, checkpoint_seconds=0), "out=out"]
    process = alone(run_here, arguments, tmp_path)
    wait_for_a_row(tmp_path / "out", process)
    os.killpg(process.pid, signal.SIGTERM)
    process.join(60)
    out, err = (Path(f"train.{ending}").read_text() for ending in ("out", "err"))
    assert process.exitcode == 143, err
    (line,) = err.splitlines()
    assert line.startswith("stopped: r, epoch ")
    assert line.endswith(" of 4 is saved in out; the same command continues")
    assert "Traceback" not in out
    assert gone(process.pid), "a reader stays behind"
    assert not (tmp_path / "out" / "result.json").exists()
    done = len(read_metrics(tmp_path / "out"))
    assert 1 <= done < 16
    assert train.main(arguments) == 0
    said = capsys.readouterr().out
    assert "r: continues at epoch " in said
    assert [row["epoch"] for row in read_metrics(tmp_path / "out")] == list(range(1, 17))
