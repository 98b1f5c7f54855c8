from __future__ import annotations

import errno
import io
import math
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from kdstream.display.progress import Display

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
WIDTHS = [20, 40, 60, 80, 120, 200]


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(width: int = 80, terminal: bool = True, **options) -> tuple[Display, io.StringIO, Clock]:
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, width=width, height=24, force_terminal=terminal, color_system="truecolor", **options)
    return Display(console, clock=clock), file, clock


def frames(text: str) -> list[str]:
    """The lines that were written, in order, without control codes."""
    return [line for line in re.split(r"[\r\n]+", ESCAPE.sub("", text)) if line.strip()]


def losses(epoch: int) -> dict[str, float]:
    total = 2.0 / (epoch + 1)
    return {"loss": total, "loss/ce": total / 4, "loss/kd": 3 * total / 4, "loss/crd": 1e-5}


def row(epoch: int, phase: str = "main", **more) -> dict:
    top1 = 60.0 + epoch - 3 * (epoch % 3)
    return {
        "phase": phase,
        "epoch": epoch,
        "step": 10,
        "lr": 0.05,
        **losses(epoch),
        "train/top1": 50.0,
        "val/top1": top1,
        "val/top5": 90.0,
        **more,
    }


SPEED = {"images_per_s": 12345.6, "wait_share": 0.031, "seconds": 12.0}


def train(display: Display, clock: Clock, name: str = "kd", epochs: int = 3, steps: int = 10, hint: int = 0) -> None:
    display.start_run(name, epochs + hint)
    for phase, length in (("fitnet.hint", hint), ("main", epochs)):
        for epoch in range(length):
            display.start_epoch(name, phase, epoch, length, steps)
            for step in range(steps):
                clock.now += 1.0
                display.step(step, lambda epoch=epoch: losses(epoch), 640, 0.25)
            display.end_epoch(row(epoch, phase), SPEED)


# --- on a terminal


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["kd", "a very long name of a run, [red]说明说明说明说明说明说明[/red]" * 4])
def test_no_line_is_wider_than_the_terminal(width, name):
    display, file, clock = make(width)
    with display:
        train(display, clock, name, epochs=4, hint=2)
        with display.task("evaluation of something with a long name", 1_000_000) as task:
            clock.now += 1
            task.advance(123_456)
    lines = frames(file.getvalue())
    assert len(lines) > 20
    assert max(map(cell_len, lines)) <= width


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 150),
    name=st.text(max_size=60),
    terms=st.dictionaries(st.text(max_size=12), st.floats(), max_size=12),
    steps=st.integers(0, 10**7),
    top1=st.one_of(st.none(), st.floats()),
)
def test_any_run_fits_any_width(width, name, terms, steps, top1):
    display, file, clock = make(width)
    with display:
        display.start_run(name, 3)
        display.start_epoch(name, "main", 0, 3, steps)
        clock.now += 1
        display.step(0, {"loss": 1.0, **{f"loss/{term}": value for term, value in terms.items()}}, 64, math.nan)
        display.end_epoch({"val/top1": top1, **terms}, {"images_per_s": top1})
        display.start_epoch(name, "main", 1, 3, steps)
    assert max(map(cell_len, frames(file.getvalue())), default=0) <= max(width, 1)


def test_bars_say_where_the_run_stands():
    display, file, clock = make(120)
    with display:
        train(display, clock, "kd run", epochs=3)
        display.start_run("next", 5)
        display.start_epoch("next", "main", 1, 5, 100, first_step=50)
        file.seek(0)
        file.truncate()
        clock.now += 10
        display.step(69, {"loss": 1.5, "ce": 0.5, "kd": 1.0, "train/top1": 33.0}, 1000, 0.5)
        text = "\n".join(frames(file.getvalue()))
    for part in ("next", "epoch 2/5", "step 70/100", "100 img/s", "wait 50%", "loss 1.500  ce 0.500  kd 1.000"):
        assert part in text
    assert "train 33.00%" in text
    # 20 steps took 10 s; 30 steps and three epochs of 100 are left.
    assert "ETA 2:45" in text


def test_narrow_terminals_keep_what_matters():
    display, file, clock = make(60)
    with display:
        train(display, clock, "kd", epochs=4)
        display.start_run("kd", 400)
        display.start_epoch("kd", "main", 1, 400, 10_000)
        clock.now += 1
        file.seek(0)
        file.truncate()
        display.step(4, losses(1), 640, 0.25)
        text = "\n".join(frames(file.getvalue()))
    for part in ("kd", "2/400", "5/10000", "img/s", "ETA", "loss 1.000", "━━━━━━"):
        assert part in text


@pytest.mark.parametrize(("epochs", "most"), [(1, 1), (7, 7), (20, 20), (21, 11), (300, 20)])
def test_lasting_lines_are_few_and_the_last_epoch_has_one(epochs, most):
    display, file, clock = make(200)
    with display:
        train(display, clock, epochs=epochs, steps=1)
    lasting = [line for line in frames(file.getvalue()) if "lr 0.05" in line]
    assert len(lasting) == most
    assert f"epoch {epochs}/{epochs}" in lasting[-1]


def screen(text: str) -> list[str]:
    """What a terminal shows in the end, for the few control codes that live bars need."""
    lines, at = [""], 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if token == "\n":
            at += 1
            lines += [""] * (at + 1 - len(lines))
        elif token == "\x1b[2K":
            lines[at] = ""
        elif token.startswith("\x1b[") and token.endswith("A"):
            at -= int(token[2:-1])
        elif not token.startswith("\x1b") and token != "\r":
            lines[at] += token
    return [line.rstrip() for line in lines if line.strip()]


def test_the_screen_holds_bars_during_and_only_lasting_lines_after_a_run():
    display, file, clock = make(100)
    with display:
        display.note("before")
        train(display, clock, epochs=2)
        after_run = screen(file.getvalue())
        display.start_run("kd2", 3)
        display.start_epoch("kd2", "main", 0, 3, 10)
        task = display.task("evaluate", 4)
        task.advance()
        display.note("in between")
        during = screen(file.getvalue())
    lasting = ["before", "kd  epoch 1/2", "kd  epoch 2/2"]
    assert [line[: len(start)] for line, start in zip(after_run, lasting, strict=True)] == lasting
    assert during[:4] == [*after_run, "in between"]
    assert [line.split()[0] for line in during[4:]] == ["kd2", "main", "evaluate"]
    assert screen(file.getvalue()) == [*after_run, "in between"]
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")  # the cursor is back


def test_an_exception_takes_the_bars_away():
    display, file, _ = make(80)

    def fail():
        with display:
            display.start_run("kd", 3)
            display.start_epoch("kd", "main", 0, 3, 10)
            assert len(screen(file.getvalue())) == 2
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert screen(file.getvalue()) == []


def test_names_are_not_markup_and_carry_no_control_codes():
    display, file, clock = make(200)
    evil = "[red]x[/red] \x1b[31m\x07\nnext"
    with display:
        display.headline(evil)
        display.note(evil)
        display.error(evil)
        train(display, clock, evil, epochs=1)
        display.task(evil, 3)
        display.table(evil, [{evil: evil, "top1": 3.0}])
    text = file.getvalue()
    assert "\x1b[31m" not in text
    assert "\x07" not in text
    assert ESCAPE.sub("", text).count("[red]x[/red]") >= 7


@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE, errno.ENOSPC])
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_without_its_terminal_the_work_goes_on_unseen(terminal, number, after):
    class Closed(io.StringIO):
        writes = 0

        def write(self, text):
            self.writes += 1
            if self.writes > after:
                raise OSError(number, os.strerror(number))
            return super().write(text)

    clock = Clock()
    with Display(None, clock=clock) as display:
        own = type(display.console)
    with Display(own(file=Closed(), force_terminal=terminal, width=80), clock=clock) as display:
        display.headline("a")
        train(display, clock, "kd", epochs=3)
        with display.task("b", 3) as task:
            task.advance(2)
        display.table("c", [{"top1": 3.0}])
        display.note("d")
    assert not display.enabled


def test_a_note_that_is_to_be_said_once():
    display, file, _ = make(80)
    for _ in range(3):
        display.note("no locks", once=True)
        display.note("again")
    assert file.getvalue().count("no locks") == 1
    assert file.getvalue().count("again") == 3


def test_losses_are_asked_for_only_when_shown():
    display, _, clock = make(80)
    asked = []
    with display:
        display.start_run("kd", 1)
        display.start_epoch("kd", "main", 0, 1, 10_000)
        for step in range(10_000):  # ten seconds at 1000 steps/s
            clock.now += 0.001
            display.step(step, lambda: asked.append(1) or {"loss": 1.0}, 64, 0.0)
    assert 40 <= len(asked) <= 55


def test_rate_is_smooth_and_leaves_evaluation_out():
    display, file, clock = make(120)
    with display:
        display.start_run("kd", 2)
        for epoch in range(2):
            display.start_epoch("kd", "main", epoch, 2, 20)
            for step in range(20):
                clock.now += 0.5
                display.step(step, {}, 50 if step % 2 else 150, 0.0)
            clock.now += 1000.0  # evaluation
            display.end_epoch({}, {})
    rates = [float(rate) for rate in re.findall(r"([\d.]+) img/s", "".join(frames(file.getvalue())))]
    assert len(rates) > 30
    assert all(180 < rate < 220 for rate in rates[10:])  # single steps jump between 100 and 300


def test_resume_in_the_middle_of_the_main_phase_counts_all_phases():
    display, file, _ = make(120)
    with display:
        display.start_run("kd", 12)
        display.start_epoch("kd", "main", 4, 10, 100, first_step=50)
        assert "epoch 7/12" in frames(file.getvalue())[-2]


# --- in a log file


def test_log_file_gets_one_plain_flushed_line_per_epoch():
    class File(io.StringIO):
        flushed = ""

        def flush(self):
            self.flushed = self.getvalue()

    file, clock = File(), Clock()
    name = "kd of a teacher with a name that is longer than eighty columns would be willing to show [b]x[/b]"
    with Display(Console(file=file, width=80), clock=clock) as display:
        train(display, clock, name, epochs=30, hint=2)
        assert file.flushed == file.getvalue()
    lines = file.getvalue().splitlines()
    assert len(lines) == 32
    assert "\x1b" not in file.getvalue()
    assert "\r" not in file.getvalue()
    assert lines[1].startswith(f"{name}  fitnet.hint 2/2  loss 1.000")
    for part in ("epoch 30/30", "ce 0.017", "val 83.00%", "top-5 90.00%", "train 50.00%", "lr 0.05", "12,346 img/s"):
        assert part in lines[-1]
    assert "wait 3%" in lines[-1]


def test_log_file_gets_a_sign_of_life_in_long_epochs_and_tasks():
    display, file, clock = make(80, terminal=False)
    with display:
        display.start_run("kd", 1)
        display.start_epoch("kd", "main", 0, 1, 1000)
        for step in range(1000):
            clock.now += 1.0
            display.step(step, {"loss": 1.0}, 64, 0.0)
        assert [re.findall(r"step \d+", line) for line in file.getvalue().splitlines()] == [
            ["step 300"],
            ["step 600"],
            ["step 900"],
        ]
        with display.task("short", 10) as task:
            task.advance(10)
        with display.task("long", 1000) as task:
            for _ in range(1000):
                clock.now += 1.0
                task.advance()
    assert "short" not in file.getvalue()
    assert [line.split("  ")[1] for line in file.getvalue().splitlines() if "long" in line] == [
        "300/1,000",
        "600/1,000",
        "900/1,000",
        "1,000/1,000",
    ]


def test_disabled_display_is_silent():
    file, clock = io.StringIO(), Clock()
    with Display(Console(file=file, force_terminal=True), enabled=False, clock=clock) as display:
        display.headline("a")
        display.note("b")
        display.error("c")
        display.table("d", [{"e": 1}])
        train(display, clock)
        with display.task("f", 3) as task:
            task.advance(2)
        assert task.completed == 2
    assert file.getvalue() == ""


def test_a_file_of_narrow_encoding_does_not_end_the_run():
    raw = io.BytesIO()
    clock = Clock()
    with Display(Console(file=io.TextIOWrapper(raw, encoding="ascii")), clock=clock) as display:
        display.headline("größer …")
        train(display, clock, "größer", epochs=1)
        display.table("größer", [{"ü": "ä", "x": None}])
        display.console.file.flush()
    assert b"gr??er  epoch 1/1" in raw.getvalue()


# --- tables and numbers


def test_table_is_whole_in_a_log_file_and_folds_on_a_narrow_terminal():
    rows = [
        {"run": "x" * 150, "top1": 71.2, "params": 78042},
        {"run": "teacher", "top1": 75.125, "params": 278324, "note": "reused"},
        {"run": "broken", "top1": math.nan},
    ]
    display, file, _ = make(80, terminal=False)
    display.table("results", rows)
    lines = file.getvalue().splitlines()
    assert any("x" * 150 in line and "71.20" in line and "78,042" in line for line in lines)
    assert any("75.12" in line and "278,324" in line and "reused" in line for line in lines)
    assert any("broken" in line and "nan" in line for line in lines)
    display, file, _ = make(60)
    display.table("results", rows)
    assert max(map(cell_len, frames(file.getvalue()))) <= 60
    assert "278,324" in file.getvalue()


def test_best_top1_is_bold_and_nothing_else_in_the_body():
    display, file, _ = make(100)
    display.table("", [{"run": "a", "top1": 71.2, "top5": 99.0}, {"run": "b", "top1": 75.5, "top5": 98.0}])
    assert re.findall(r"\x1b\[1m *([\w.]+)", file.getvalue().split("─")[-1]) == ["75.50"]
