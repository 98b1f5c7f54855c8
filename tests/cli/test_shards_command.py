"""make_shards, the command: the same bytes however it is run, interrupted or not; and what it prints."""

from __future__ import annotations

import filecmp
import io
import json
import os
import random
import signal
import site
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kdstream.cli.shards import main
from kdstream.convert import make_shards as convert
from kdstream.convert.make_shards import make_shards, parse_size
from kdstream.data.shards import open_shards
from kdstream.data.verify import verify
from kdstream.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "make_shards.py"


@pytest.fixture
def run(capsys):
    """Run the command here; gives (exit code, what it printed, its error line)."""

    def call(*arguments) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Two classes of 150 images."""
    root = tmp_path_factory.mktemp("source")
    for c, name in enumerate(("cat", "dog")):
        (root / name).mkdir()
        for i in range(150):
            pixels = np.random.default_rng(1000 * c + i).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:03d}.jpg")
    return root


@pytest.fixture(scope="module")
def reference(source, tmp_path_factory) -> Path:
    dest = tmp_path_factory.mktemp("reference") / "set"
    make_shards(f"imagefolder:{source}", dest, shard_count=12, processes=1)
    return dest


def assert_same(first: Path, second: Path) -> None:
    names = sorted(os.listdir(first))
    assert names == sorted(os.listdir(second))
    assert filecmp.cmpfiles(first, second, names, shallow=False) == (names, [], [])


def one_line(text: str) -> str:
    assert text.startswith(("error: ", "interrupted: ", "terminated: "))
    assert text.count("\n") == 1
    return text


# ---- the same bytes


@pytest.mark.parametrize("processes", [2, 5])
def test_any_number_of_processes_gives_the_same_bytes(source, reference, tmp_path, processes):
    make_shards(f"imagefolder:{source}", tmp_path / "set", shard_count=12, processes=processes)
    assert_same(reference, tmp_path / "set")


def start(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options, preexec_fn=_hear_interrupts)


def _hear_interrupts() -> None:
    """Whatever the tests run under: what a shell starts in the background does not hear Ctrl-C, nor do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_killed_and_continued_gives_the_same_bytes(source, reference, tmp_path):
    """kill -9 once a number of shards is finished, four times, with various numbers of processes; what was finished
    stays. The killed process's workers have to end by themselves."""
    dest, rng = tmp_path / "set", random.Random(0)
    arguments = (f"imagefolder:{source}", dest, "--shard-count", 12)
    kept: dict[str, int] = {}
    for wanted in (1, 3, 6, 9):
        process = start(*arguments, "--processes", rng.choice([1, 2, 3]))
        while process.poll() is None and len(list(dest.glob("*.tar"))) < wanted:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        for name, stamp in kept.items():
            assert (dest / name).stat().st_mtime_ns == stamp
        kept = {path.name: path.stat().st_mtime_ns for path in dest.glob("*.tar")}
        if (dest / "dataset.json").exists():
            break
        with pytest.raises(UserError, match="half-made"):
            open_shards(dest / "train")
    if not (dest / "dataset.json").exists():
        process = start(*arguments, "--processes", 2)
        assert process.wait() == 0, process.stderr.read()
    for name, stamp in kept.items():
        assert (dest / name).stat().st_mtime_ns == stamp
    assert_same(reference, dest)


def test_workers_end_with_a_killed_parent(tmp_path):
    """Large images, so that two workers would need seconds for the rest."""
    (tmp_path / "in" / "cat").mkdir(parents=True)
    Image.new("RGB", (4000, 4000)).save(tmp_path / "in" / "cat" / "0.jpg")
    for i in range(1, 60):
        (tmp_path / "in" / "cat" / f"{i}.jpg").hardlink_to(tmp_path / "in" / "cat" / "0.jpg")
    dest = tmp_path / "set"
    process = start(f"imagefolder:{tmp_path / 'in'}", dest, "--shard-count", 30, "--processes", 2)
    while process.poll() is None and not list(dest.glob("*.tar")):
        time.sleep(0.001)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    process.kill()
    process.communicate()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        time.sleep(0.01)
    assert len(list(dest.glob("*.tar"))) < 30


def test_killed_at_the_end_the_same_command_succeeds(source, reference, tmp_path, monkeypatch):
    """Between dataset.json and the removal of the work folder."""

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    arguments = {"source": f"imagefolder:{source}", "dest": tmp_path / "set", "shard_count": 12}
    with monkeypatch.context() as patch:
        patch.setattr(convert, "_remove_work", killed)
        with pytest.raises(KeyboardInterrupt):
            make_shards(**arguments)
    assert (tmp_path / "set" / ".making").is_dir()
    assert make_shards(**arguments).converted == 0
    assert_same(reference, tmp_path / "set")


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("sent", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_interrupted_says_how_to_go_on(source, reference, tmp_path, processes, sent, code, word):
    for attempt in range(10):  # on a busy machine a conversion may end before it is interrupted
        dest = tmp_path / f"set{attempt}"
        process = start(f"imagefolder:{source}", dest, "--shard-count", 12, "--processes", processes)
        while process.poll() is None and not list(dest.glob("*.tar")):
            time.sleep(0.001)
        process.send_signal(getattr(signal, sent))
        _, errors = process.communicate()
        if not (dest / "dataset.json").exists():
            break
    assert process.returncode == code
    assert one_line(errors) == (f"{word}: finished shards are kept, run the same command again to continue\n")
    result = make_shards(f"imagefolder:{source}", dest, shard_count=12)
    assert result.kept_shards >= 1
    assert_same(reference, dest)


def test_output_that_cannot_be_written(source, tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, SCRIPT, f"imagefolder:{source}", tmp_path / "set"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr == "error: cannot write the output: No space left on device\n"


def test_a_worker_that_dies_is_told_and_the_rest_continues(source, reference, tmp_path, monkeypatch):
    real, parent = convert.write_shard, os.getpid()

    def write_shard(images, path, *rest):
        if os.getpid() != parent and path.name == "train-000007.tar":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(images, path, *rest)

    arguments = {"source": f"imagefolder:{source}", "dest": tmp_path / "set", "shard_count": 12}
    with monkeypatch.context() as patch:
        patch.setattr(convert, "write_shard", write_shard)
        with pytest.raises(UserError, match="exit code -9"):
            make_shards(**arguments, processes=2)
    make_shards(**arguments)
    assert_same(reference, tmp_path / "set")


# ---- options


def test_order_and_limit(source, reference, tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    make_shards(f"imagefolder:{source}", first, shard_count=1, limit=40)
    make_shards(f"imagefolder:{source}", other, shard_count=1, limit=40, seed=1)
    whole = [open_shards(reference / "train").key(i) for i in range(300)]
    keys = [open_shards(first / "train").key(i) for i in range(40)]
    assert keys == whole[:40]
    assert keys != [open_shards(other / "train").key(i) for i in range(40)]
    labels = open_shards(first / "train").labels
    assert 10 <= int(labels.sum()) <= 30  # a shuffle, not the first class


def test_shard_size(source, tmp_path):
    make_shards(f"imagefolder:{source}", tmp_path / "set", shard_size=100_000)
    sizes = [path.stat().st_size for path in (tmp_path / "set").glob("*.tar")]
    assert len(sizes) > 4
    assert max(sizes) < 110_000
    counts = [shard.count for shard in convert.load_dataset_info(tmp_path / "set").splits["train"].shards]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("text", "size"), [("100M", 10**8), ("2.5G", 25 * 10**8), ("7k", 7000), ("512", 512), ("1MB", 10**6)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "12X", "-3M", "0", "1e5"])
def test_no_sizes(text):
    with pytest.raises(UserError, match="is no size"):
        parse_size(text)


def test_dataset_json_says_how_it_was_made(source, reference):
    info = json.loads((reference / "dataset.json").read_bytes())
    assert info["schema"] == 1
    assert info["classes"] == ["cat", "dog"]
    assert info["source"] == f"imagefolder:{source}"
    assert info["made"]["by"].startswith("kdstream ")
    assert info["made"]["options"]["seed"] == 0
    train = info["splits"]["train"]
    assert train["count"] == 300 == sum(shard["count"] for shard in train["shards"])
    assert train["image_size"] == {"min": [16, 16], "max": [16, 16]}
    assert len(train["shards"]) == 12
    assert train["skipped"] == []


# ---- unreadable images


@pytest.fixture
def damaged(tmp_path) -> Path:
    root = tmp_path / "damaged"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(root / name / f"{i}.png")
    (root / "cat" / "text.jpg").write_text("hello")
    cut = (root / "dog" / "5.png").read_bytes()
    (root / "dog" / "cut.png").write_bytes(cut[: len(cut) // 2])
    (root / "dog" / "empty.png").write_bytes(b"")
    return root


@pytest.mark.parametrize("processes", [1, 2])
def test_an_unreadable_image_stops_and_can_be_skipped(run, damaged, tmp_path, processes):
    dest = tmp_path / "set"
    arguments = (f"imagefolder:{damaged}", dest, "--shard-count", 4, "--processes", processes)
    code, _, error = run(*arguments)
    assert code == 2
    assert any(str(damaged / name) in one_line(error) for name in ("cat/text.jpg", "dog/cut.png", "dog/empty.png"))
    assert "--on-error skip" in error
    assert not (dest / "dataset.json").exists()
    code, out, _ = run(*arguments, "--on-error", "skip")  # goes on from where it stopped
    assert code == 0
    assert "3 unreadable images" in out
    skipped = {
        entry["file"] for entry in json.loads((dest / "dataset.json").read_bytes())["splits"]["train"]["skipped"]
    }
    assert skipped == {str(damaged / name) for name in ("cat/text.jpg", "dog/cut.png", "dog/empty.png")}
    assert len(open_shards(dest / "train")) == 12
    assert verify(dest).samples == 12


def test_skipped_images_do_not_slip_through_a_run_that_stops(damaged, tmp_path, monkeypatch):
    """Half made with skip, continued without: the skipped image is reported, not accepted."""
    arguments = {"source": f"imagefolder:{damaged}", "dest": tmp_path / "set", "shard_count": 4, "processes": 1}

    def killed(folder, job):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_finish_split", killed)
        with pytest.raises(KeyboardInterrupt):
            make_shards(**arguments, on_error="skip")
    with pytest.raises(UserError, match="cannot read image"):
        make_shards(**arguments)


def test_photographs_that_cannot_be_read_stop_before_anything_is_written(run, damaged, tmp_path):
    (damaged / "cat" / "text.jpg").unlink()
    (damaged / "dog" / "cut.png").unlink()
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    (damaged / "cat" / "a.heic").write_bytes(heic)
    (damaged / "cat" / "b.jpg").write_bytes(heic)  # found when it is opened
    (damaged / "dog" / "c.HEIC").write_bytes((damaged / "dog" / "0.png").read_bytes())  # a PNG, whatever its name
    dest = tmp_path / "set"
    code, _, error = run(f"imagefolder:{damaged}", dest)
    assert code == 2
    assert f"cannot read image {damaged}/cat/a.heic: it is a HEIC photograph: convert it to JPEG or PNG" in error
    assert "one of 2 such files: 1 x a HEIC photograph, 1 x an empty file (0 bytes)" in one_line(error)
    assert not dest.exists()
    code, out, _ = run(f"imagefolder:{damaged}", dest, "--on-error", "skip")
    assert code == 0
    assert "1 are of another format than their name says" in out
    split = json.loads((dest / "dataset.json").read_bytes())["splits"]["train"]
    assert {Path(entry["file"]).name: entry["error"].split(":")[0] for entry in split["skipped"]} == {
        "a.heic": "it is a HEIC photograph",
        "b.jpg": "it is a HEIC photograph",
        "empty.png": "it is an empty file (0 bytes)",
    }
    shards = open_shards(dest / "train")
    members = {shards.read(i)["__key__"]: set(shards.read(i)) for i in range(len(shards))}
    assert "png" in members["dog/c"]


def test_a_bound_on_pixels(run, tmp_path, monkeypatch):
    for name, size in (("cat", 30), ("dog", 10)):
        (tmp_path / "in" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (size, size), (i, 0, 0)).save(tmp_path / "in" / name / f"{i}.png")
    arguments = (f"imagefolder:{tmp_path / 'in'}", tmp_path / "set", "--shard-count", 6)
    code, _, error = run(*arguments, "--max-pixels", 899)
    assert code == 2
    assert "an image of 30 x 30 pixels, more than the 899 that are allowed; --max-pixels allows more" in one_line(error)

    def killed(folder, job):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_finish_split", killed)
        assert run(*arguments, "--max-pixels", 899, "--on-error", "skip")[0] == 130
    assert run(*arguments, "--max-pixels", 900)[0] == 0  # what was left out under the lower bound is not
    assert len(open_shards(tmp_path / "set" / "train")) == 6
    assert run(*arguments, "--max-pixels", 899, "--on-error", "skip", "--force")[0] == 0
    assert len(open_shards(tmp_path / "set" / "train")) == 3
    assert run(*arguments, "--max-pixels", 0)[0] == 2


def test_no_readable_image_at_all(tmp_path):
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "cat" / "1.jpg").write_text("hello")
    with pytest.raises(UserError, match="none of the images of split 'train' could be read"):
        make_shards(f"imagefolder:{tmp_path / 'in'}", tmp_path / "set", on_error="skip")


def test_other_formats_and_rotations_pass_through(tmp_path):
    folder = tmp_path / "in" / "cat"
    folder.mkdir(parents=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by a quarter
    image.save(folder / "turned.jpg", exif=exif)
    image.save(folder / "web.webp", lossless=True)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("P").save(folder / "few.gif")
    image.save(folder / "bits.BMP")
    made = make_shards(f"imagefolder:{tmp_path / 'in'}", tmp_path / "set")
    split = made.info.splits["train"]
    assert (split.image_size.min, split.image_size.max) == ((6, 6), (9, 9))  # one of them is upright, and so counted
    assert split.adjusted == {"orientation": 1}
    assert any("1 are turned upright, as their EXIF data says" in note for note in made.notes)
    shards = open_shards(tmp_path / "set" / "train")
    files = {f"cat/{path.stem}": path for path in folder.iterdir()}
    for i in range(len(shards)):
        sample = shards.read(i)
        path = files.pop(sample["__key__"])
        assert sample[path.suffix[1:].lower()] == path.read_bytes()
    assert not files


# ---- what stands in the folder


def test_a_finished_set_is_replaced_by_force_only(run, source, tmp_path):
    dest = tmp_path / "set"
    arguments = (f"imagefolder:{source}", dest, "--limit", 20)
    assert run(*arguments, "--shard-count", 3)[0] == 0
    (dest / "mine.txt").write_text("stays")
    code, _, error = run(*arguments)
    assert code == 2
    assert "already holds a finished data set: replace it with --force" in one_line(error)
    assert len(list(dest.glob("*.tar"))) == 3
    assert run(*arguments, "--force")[0] == 0
    assert sorted(os.listdir(dest)) == ["dataset.json", "mine.txt", "train-000000.tar", "train.index.npz"]


def test_a_half_made_folder_belongs_to_its_command(run, source, tmp_path, monkeypatch):
    dest = tmp_path / "set"

    def killed(folder, job):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_finish_split", killed)
        code, _, error = run(f"imagefolder:{source}", dest, "--limit", 20)
    assert code == 130
    assert "interrupted" in one_line(error)
    code, _, error = run(f"imagefolder:{source}", dest, "--limit", 20, "--seed", 4)
    assert code == 2
    assert "half-made by another command (seed 0, now 4)" in one_line(error)
    assert run(f"imagefolder:{source}", dest, "--limit", 20, "--seed", 4, "--force")[0] == 0


def test_a_source_that_changed_meanwhile(damaged, tmp_path, monkeypatch):
    for name in ("cat/text.jpg", "dog/cut.png", "dog/empty.png"):
        (damaged / name).unlink()

    def killed(folder, job):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_finish_split", killed)
        with pytest.raises(KeyboardInterrupt):
            make_shards(f"imagefolder:{damaged}", tmp_path / "set")
    os.utime(damaged / "cat" / "0.png", ns=(5, 5))
    with pytest.raises(UserError, match="the source has changed since"):
        make_shards(f"imagefolder:{damaged}", tmp_path / "set")


def test_folders_of_others_are_left_alone(run, source, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train-000000.tar").write_bytes(b"theirs")
    (tmp_path / "styled").mkdir()
    (tmp_path / "styled" / "dataset.json").write_text('{"labels": []}')
    (tmp_path / "file").write_text("")
    for dest, expected in (
        ("other", "is not empty and holds no shards made by make_shards"),
        ("styled", "was not made by make_shards"),
        ("file", "is a file"),
        ("file/below", "cannot write to"),
    ):
        code, _, error = run(f"imagefolder:{source}", tmp_path / dest, "--force")
        assert code == 2
        assert expected in one_line(error)
    assert (tmp_path / "other" / "train-000000.tar").read_bytes() == b"theirs"
    assert (tmp_path / "styled" / "dataset.json").read_text() == '{"labels": []}'
    code, _, error = run(f"imagefolder:{source}", source / "shards")
    assert code == 2
    assert "lies inside the source" in one_line(error)
    assert not (source / "shards").exists()


def test_two_at_once_in_one_folder(source, tmp_path, monkeypatch):
    import fcntl

    (tmp_path / "set" / ".making").mkdir(parents=True)
    monkeypatch.setattr(convert, "LOCK_SECONDS", 0.3)
    with open(tmp_path / "set" / ".making" / "lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as kdstream of old holds it, too
        with pytest.raises(UserError, match="another make_shards is writing"):
            make_shards(f"imagefolder:{source}", tmp_path / "set")


# ---- the command line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "name a SOURCE and a DEST"),
        (["digits"], "name a SOURCE and a DEST"),
        (["foo", "DEST"], "unknown source 'foo': known: cifar10, cifar100, csv, digits, imagefolder"),
        (["digits", "DEST", "--nope"], "unrecognized arguments: --nope; see --help"),
        (["digits", "DEST", "--split", "test"], "has no split 'test': found train, val"),
        (["digits", "DEST", "--limit", "0"], "the limit must be at least 1"),
        (["digits", "DEST", "--processes", "x"], "invalid int value: 'x'"),
        (["digits", "DEST", "--shard-size", "12X"], "'12X' is no size"),
        (["digits", "DEST", "--shard-size", "1M", "--shard-count", "2"], "not both"),
        (["digits", "DEST", "--on-error", "maybe"], "invalid choice: 'maybe'"),
        (["digits", "DEST", "--verify", "DEST"], "takes no SOURCE"),
        (["--verify", "DEST"], "nothing to verify"),
    ],
)
def test_bad_input_is_one_line_and_code_2(run, tmp_path, arguments, expected):
    dest = tmp_path / "set"
    code, _, error = run(*[dest if argument == "DEST" else argument for argument in arguments])
    assert code == 2
    assert expected in one_line(error)
    assert not dest.exists()


def test_from_a_clone_without_installation(tmp_path):
    """-S with the packages' folder on the path: kdstream's own (editable) installation is not seen."""
    packages = site.getsitepackages()[0]
    script = f"import sys, runpy; sys.path.append({packages!r}); sys.argv[0] = {str(SCRIPT)!r}; "
    script += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    arguments = ["digits", str(tmp_path / "digits"), "--limit", "30"]
    command = [sys.executable, "-S", "-c", script, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(open_shards(tmp_path / "digits" / "val")) == 30


def test_summary_and_verify(run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    dest = tmp_path / "digits"
    code, out, error = run("digits", dest, "--limit", 60)
    assert (code, error) == (0, "")
    assert "10 classes" in out
    for split in ("train", "val"):
        row = next(line for line in out.splitlines() if line.split()[:1] == [split] and "KB" in line)
        assert row.split()[1:3] == ["60", "1"]
        assert "16 x 16" in row
    assert "120 images in" in out
    assert f"data.path={dest}" in out
    code, out, _ = run("--verify", dest)
    assert code == 0
    assert "120 samples in 2 shards of 2 splits" in out
    data = bytearray((dest / "val-000000.tar").read_bytes())
    data[900] ^= 1
    (dest / "val-000000.tar").write_bytes(data)
    code, _, error = run("--verify", dest)
    assert code == 2
    assert "val-000000.tar is damaged: its checksum differs" in one_line(error)


def test_progress_is_shown_on_the_console_that_is_given(source, tmp_path):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    make_shards(f"imagefolder:{source}", tmp_path / "set", shard_count=4, processes=2, console=console)
    assert "300/300" in screen.getvalue()
    assert "images/s" in screen.getvalue()
