from __future__ import annotations

from rich.text import Text

from kdstream.display.layout import Piece, cut, fit, join


def texts(pieces: list[Piece]) -> list[str]:
    return [piece.text for piece in pieces]


def test_the_least_important_pieces_go_first_and_of_equals_the_last():
    pieces = [Piece("run", 9), Piece("loss 1.0", 6), Piece("kd 0.5", 6), Piece("ETA 1:00", 4)]
    assert fit(pieces, 32) == pieces  # 3 + 8 + 6 + 8 cells and three gaps of two: 31
    assert texts(fit(pieces, 30)) == ["run", "loss 1.0", "kd 0.5"]
    assert texts(fit(pieces, 20)) == ["run", "loss 1.0"]
    assert texts(fit(pieces, 1)) == ["run"]  # the most important one stays, to be cut


def test_a_last_piece_that_does_not_fit_is_left_out_unless_it_is_a_name():
    assert fit([Piece("loss 1.0", 6)], 5) == []
    assert fit([], 5) == []


def test_wide_characters_count_twice():
    pieces = [Piece("日本", 9), Piece("ab", 1)]
    assert fit(pieces, 8) == pieces
    assert texts(fit(pieces, 7)) == ["日本"]


def test_a_cut_shows_that_something_is_missing():
    text = Text("a long name")
    assert cut(text, 6).plain == "a lon…"
    assert cut(text, 1).plain == "a"
    assert text.plain == "a long name"


def test_pieces_stand_two_cells_apart_in_their_styles():
    line = join([Piece("a", 1, "bold"), Piece("b", 1)], lambda text, style: Text(text, style=style))
    assert line.plain == "a  b"
    assert [(span.start, span.end, str(span.style)) for span in line.spans if str(span.style)] == [(0, 1, "bold")]
