"""The verb recipes: the list, one recipe, the schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdstream.cli.recipes import main
from kdstream.recipe_file import RECIPES, load_recipe


def test_the_list_has_every_recipe_and_no_table(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    assert "quickstart " in said
    assert "IJCKD), section 4.1" in said  # "et al." ends no sentence
    assert "ckd/table5 " not in said


def test_one_of_them_is_a_recipe_again_and_leads_an_editor_to_the_schema(tmp_path, capsys):
    assert main(["quickstart"]) == 0
    said = capsys.readouterr().out
    file = tmp_path / "quickstart.yaml"
    file.write_text(said)
    assert load_recipe(str(file)).fingerprint() == load_recipe("quickstart").fingerprint()
    assert Path(said.splitlines()[0].partition("$schema=")[2]).samefile(RECIPES / "recipe.schema.json")


def test_the_schema(capsys):
    assert main(["--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["epochs"]["minimum"] == 1


@pytest.mark.parametrize(("arguments", "says"), [(["quikstart"], "quickstart"), (["quickstart", "--schema"], "leave")])
def test_a_mistake_is_one_line(arguments, says, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert says in err
    assert err.count("\n") == 1
