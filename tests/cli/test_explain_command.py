"""The verb explain: everything that a recipe names has something said of it."""

from __future__ import annotations

import pytest

from kdstream.cli.explain import main
from kdstream.objectives import OBJECTIVES
from kdstream.recipe import Recipe
from kdstream.stream.coded import SELECTORS
from kdstream.stream.language import STAGES


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("coded", ["a stage of the stream", "delta=10", "selector"]),
        ("normalize", ["normalize()"]),  # what the stream fills in is nobody's to set
        ("fixed", ["a selector of coded", "fixed(quality)"]),
        ("kd", ["kd(temperature=4.0)", "Presets: "]),
        ("loss.kd.temperature", ["kd(temperature=4.0)"]),
        ("optimizer.no_decay", ["a list of norm | bias | embedding | null; default: None"]),
        ("milestones", ["schedule.milestones", "a list of whole number"]),
        ("teacher", ["a stage of the stream", "teacher: a setting of recipes"]),
        ("precision", ["no | bf16 | fp16 | null"]),
    ],
)
def test_it_says_what_it_is(name, says, capsys):
    assert main([name]) == 0
    said = capsys.readouterr().out
    for words in says:
        assert words in said


def test_all_names_have_something_said(capsys):
    names = [*STAGES, *SELECTORS, *OBJECTIVES, *Recipe.model_fields]
    assert main(names) == 0
    assert len(capsys.readouterr().out) > 100 * len(names)


def test_an_unknown_name_is_one_line(capsys):
    assert main(["milestone"]) == 2
    assert capsys.readouterr().err == "error: nothing in a recipe is called 'milestone': did you mean 'milestones'?\n"
