from __future__ import annotations

import io

import pytest
from rich.console import Console

from kdstream import bars
from kdstream.bars import conversion_progress, progress_bars, reading_progress

EVIL = "[red]x[/red]\x1b[31m\u202ey"
AS_IT_IS = "[red]x[/red]\\x1b[31m\\u202ey"


def screen(terminal: bool = True) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=120), file


def test_the_bar_of_a_conversion_shows_a_splits_name_as_it_is():
    console, file = screen()
    with conversion_progress(console, {EVIL: 3}, [0]) as (start, update):
        start()
        update([3])
    assert AS_IT_IS in file.getvalue()
    assert "3/3" in file.getvalue()


def test_what_was_there_before_counts():
    console, file = screen()
    with conversion_progress(console, {"train": 10, "val": 5}, [4, 0]) as (start, update):
        start()
        update([6, 0])
    assert "10/10" in file.getvalue()
    assert "0/5" in file.getvalue()


@pytest.mark.parametrize("of", ["images", "bytes"])
def test_a_bar_shows_a_name_as_it_is_and_nothing_outside_a_terminal(of):
    for terminal in (True, False):
        console, file = screen(terminal)
        with progress_bars(console, of) as progress:
            progress.add_task(EVIL, total=None)
        assert (AS_IT_IS in file.getvalue()) is terminal
        assert terminal or not file.getvalue()


@pytest.mark.parametrize(("patience", "seen"), [(0.0, True), (1e9, False)])
def test_reading_shows_a_bar_when_it_lasts(monkeypatch, patience, seen):
    monkeypatch.setattr(bars, "SHORT", patience)
    now = iter(range(10))
    monkeypatch.setattr(bars.time, "monotonic", lambda: float(next(now)))
    console, file = screen()
    with reading_progress(2_000_000, "indexing birds", console) as advance:
        advance(500_000)
        advance(1_500_000)
    assert ("indexing birds" in file.getvalue()) is seen
    assert ("2.0/2.0 MB" in file.getvalue()) is seen
