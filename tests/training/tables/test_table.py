"""Tables: what a file says is read as it stands there, and every mistake is one line."""

from __future__ import annotations

import pytest
import yaml
from small_tables import TABLE, write_table

from kdstream.errors import UserError
from kdstream.training.tables.table import Printed, known_tables, load_table, make_table, split_cell


@pytest.fixture
def table(tmp_path):
    return load_table(str(write_table(tmp_path, tmp_path / "digits")))


def test_a_table_is_read_as_it_stands_there(table):
    assert (table.name, table.title) == ("small", "Digits by a small network that learns from a little larger one.")
    assert (table.measure, table.unit, table.printed, table.runs_averaged) == ("top1", "%", "best", 2)
    assert list(table.rows) == ["teacher", "student", "kd", "ckd", "search"]
    assert table.columns["resnet14-resnet8"].recipe["teacher"] == "resnet14"
    assert table.values["kd", "resnet14-resnet8"] == Printed("73.08±0.2", 73.08, 0.2)
    assert table.values["search", "resnet14-resnet8"].absent
    assert (table.rows["ckd"].coded, table.rows["search"].quoted, table.rows["teacher"].of) == (True, True, "teacher")
    assert table.doubts("kd", "resnet14-resnet8") == ["hardly so"]
    assert table.doubts("ckd", "resnet14-resnet8") == []
    assert not table.is_figure


@pytest.mark.parametrize(
    ("text", "value", "std"),
    [("72.340", 72.34, None), ("-0.5", -0.5, None), ("1,414", 1414, None), ("70±1.25", 70, 1.25), ("3e-4", 3e-4, None)]
    + [(word, None, None) for word in ("n/a", "-", "N/A", "step", "[0,1,0]", "1,2,3", "72.3±")],
)
def test_values_are_numbers_with_or_without_spread_or_words(text, value, std):
    assert Printed.read(text) == Printed(text, value, std)
    assert Printed.read(text).absent == (text.lower() in ("n/a", "-"))


MISTAKES = [
    ("title: x", r"unknown key 'title': "),
    ("paper: null", r"paper is missing"),
    ("measure: 3", r"measure is missing: it is a text"),
    ("printed: sometimes", r"printed: it is best, last or unsaid; it is 'sometimes'"),
    ("runs_averaged: 0", r"runs_averaged: it is a whole number from 1 on; it is 0"),
    ("runs_averaged: true", r"runs_averaged: it is a whole"),
    ("columns: {}", r"it needs columns and rows"),
    ("rows: [a]", r"rows: it is a group"),
    ("rows: {kd: KD}", r"rows\.kd: it is a group; it is 'KD'"),
    ("rows: {kd: {recipies: {}}}", r"rows\.kd: unknown key 'recipies': did you mean 'recipe'\?"),
    ("rows: {kd: {of: pupil}}", r"rows\.kd: of: it is teacher or student; it is 'pupil'"),
    ("rows: {kd: {coded: 3}}", r"rows\.kd: coded: it is true, or the text of a coded stage"),
    ("rows: {kd: {quoted: maybe}}", r"rows\.kd: quoted: it is true or false"),
    ("rows: {a b: {}}", r"rows\.a b: a key has no blanks"),
    ("cells: {kdd: {}}", r"cells: row 'kdd' is unknown: did you mean 'kd'\?"),
    ("cells: {kd: {resnet8: {}}}", r"cells\.kd: column 'resnet8' is unknown: did you mean 'resnet14-resnet8'\?"),
    ("cells: {kd: {resnet14-resnet8: 3}}", r"cells\.kd\.resnet14-resnet8: it is a part of a recipe"),
    ("values: 'kd 3'", r"values: the first line is '\.' and the columns' keys"),
    ("values: '. resnet'", r"values: column 'resnet' is unknown: did you mean 'resnet14-resnet8'\?"),
    ("values: '.'", r"values: first line: resnet14-resnet8 is missing"),
    ('values: ". resnet14-resnet8\\nkdd 3"', r"values: row 'kdd' is unknown: did you mean 'kd'\?"),
    ('values: ". resnet14-resnet8\\nkd 3 4"', r"values: row kd has 2 values for 1 columns"),
    ('values: ". resnet14-resnet8\\nkd 3\\nkd 4"', r"values: row kd stands there twice"),
    ('values: ". resnet14-resnet8\\nkd 3"', r"values: row teacher is missing"),
    ("suspect: [{cell: 'kd:x', says: why}]", r"suspect: no cell 'kd:x': "),
    ("suspect: [{cell: kd}]", r"suspect: says is missing"),
    ("suspect: [kd]", r"suspect: it is a list of groups with cell and says"),
    ("rows: {kd: {less: [kd, at, ckd]}}", r"rows\.kd: less: it names two cells, as \[cmkd, kd\]"),
    ("rows: {kd: {less: kd}}", r"rows\.kd: less: it is a list of keys of rows and columns"),
    ("rows: {kd: {}, gain: {less: [kd, kdd]}}", r"gain: no cell 'kdd'"),
    ("rows: {kd: {}, gain: {mean: [kd, gain]}}", r"gain: its values cannot be made of themselves"),
    ("repeats: [nowhere]", r"repeats: no recipe 'nowhere'"),
    ("repeats: [ttm/table11]", r"repeats: 'ttm/table11' repeats others: name those"),
    (
        'values: ". resnet14-resnet8\\nteacher =\\nstudent 1\\nkd 2\\nckd 3\\nsearch 4"',
        r"values: = at resnet14-resnet8:teacher, and no table that it repeats has that value",
    ),
    ("images: test", r"images: it is train or val; it is 'test'"),
    ("notes: {a: 1}", r"notes: it is a list of texts"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_mistakes_are_one_line(tmp_path, change, message):
    settings = {**yaml.safe_load(TABLE), **yaml.safe_load(change)}
    with pytest.raises(UserError, match=rf"^table small: {message}") as error:
        make_table(settings, "small", tmp_path / "small.yaml")
    assert "\n" not in str(error.value)


def test_a_table_that_repeats_others_has_their_cells_and_prints_the_spread_besides():
    first, second, again = (load_table(f"ttm/table{n}") for n in (1, 2, 11))
    assert set(again.values) == again.repeated
    assert again.values["fitnet", "vgg13-vgg8"] == Printed("71.02±0.31", 71.02, 0.31)
    assert again.values["dkd", "vgg13-vgg8"] == first.values["dkd", "vgg13-vgg8"]
    assert again.values["wttm+itrd", "vgg13-vgg8"].value == second.values["wttm+itrd", "vgg13-vgg8"].value
    assert again.cells["wttm", "vgg13-vgg8"] == first.cells["wttm", "vgg13-vgg8"]
    assert set(second.rows) - set(again.rows) == {"itrd"}
    assert (again.runs_averaged, again.base, first.repeated) == (5, first.base, frozenset())


def test_a_recipe_is_no_table():
    with pytest.raises(UserError, match=r"^'quickstart' is a recipe, no table: kdstream train runs it"):
        load_table("quickstart")


def test_a_cell_is_named_either_way_and_a_column_may_hold_a_colon():
    rows, columns = ["kd", "at"], ["a-b:top1", "a-b:top5", "c"]
    for text in ("a-b:top5:kd", "kd:a-b:top5"):
        assert split_cell(text, rows, columns, "x") == ("kd", "a-b:top5")
    assert split_cell("a-b:top1", rows, columns, "x", part=True) == (None, "a-b:top1")
    assert split_cell("at", rows, columns, "x", part=True) == ("at", None)
    with pytest.raises(UserError, match=r"^x: no cell 'at'"):
        split_cell("at", rows, columns, "x")


@pytest.mark.parametrize("name", known_tables())
def test_every_table_of_kdstream_is_in_order(name):
    """Each of its cells makes a recipe; loss, chains and networks are there, as far as a recipe alone can tell."""
    from kdstream.training.checks import check
    from kdstream.training.tables.cells import expand

    table = load_table(name)
    assert table.title
    trained = [cell for cell in expand(table) if cell.recipe is not None]
    for cell in trained:  # as a row and a column with the same key would not be
        assert split_cell(cell.key, table.rows, table.columns, name) == (cell.row, cell.column)
    for cell in trained[:: max(len(trained) // 2, 1)]:  # test_every_cell.py sets all of them up
        for recipe in filter(None, (cell.recipe, cell.teaching())):
            check(recipe)
