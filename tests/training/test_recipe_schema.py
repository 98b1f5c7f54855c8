"""Recipe schema: the file that comes with kdstream is of this version, holds for our recipes, and finds mistakes."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator

from kdstream.recipe import Recipe
from kdstream.recipe_file import RECIPES, is_table, known_recipes, read_recipe
from kdstream.training.recipe_schema import described, recipe_schema


@pytest.fixture(scope="module")
def schema():
    return recipe_schema()


@pytest.fixture(scope="module")
def validator(schema):
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_file_is_of_this_version(schema):
    kept = json.loads((RECIPES / "recipe.schema.json").read_text())
    assert kept == schema, (
        "write kdstream/recipes/recipe.schema.json anew: python -c 'import json; from kdstream.training.recipe_schema "
        "import recipe_schema; print(json.dumps(recipe_schema(), indent=1))' > kdstream/recipes/recipe.schema.json"
    )


def test_it_holds_for_every_recipe_that_comes_with_kdstream(validator):
    settings = {name: read_recipe(RECIPES / f"{name}.yaml") for name in known_recipes()}
    recipes = {name: one for name, one in settings.items() if not is_table(one)}
    assert len(recipes) > 10
    wrong = {name: [error.message for error in validator.iter_errors(one)] for name, one in recipes.items()}
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize(
    "settings",
    [
        {"epoch": 3},
        {"epochs": 0},
        {"optimizer": {"lr": -1}},
        {"data": {"path": "shards/digits", "sauce": "digits"}},
        {"student": {"models": "resnet8"}},
        {"loss": {"kd": {"temprature": 4}}},
        {"runs": {"kd": {"epoch": 3}}},
        {"teacher": {"train": {"epoch": 3}}},
    ],
)
def test_it_finds_mistakes(validator, settings):
    assert list(validator.iter_errors(settings))


def test_every_setting_is_described(schema):
    for name, group in {"Recipe": schema, **schema["$defs"]}.items():
        for key, setting in group["properties"].items():
            assert setting.get("description"), f"{name}.{key}: say in the class's docstring what it is"
    assert described(Recipe)["epochs"].startswith("batch_size counts all processes")
