"""Cells: a table becomes ordinary recipes; equal ones share a folder, all share their teachers."""

from __future__ import annotations

import pytest
from small_tables import TABLE, write_table

from kdstream.errors import UserError
from kdstream.training.tables.cells import choose, expand, folder, pick, with_coded_stage
from kdstream.training.tables.table import load_table

PAIR = "resnet14-resnet8"
LOSS = "loss: {ce: 0.1, kd: {weight: 0.9, temperature: 4}}"
OF_KD = "kd: {label: KD, recipe: {"


@pytest.fixture
def write(tmp_path):
    def write(text=TABLE, name="small.yaml"):
        return load_table(str(write_table(tmp_path, tmp_path / "digits", text, name)))

    return write


def cells(table, *overrides):
    return {cell.row: cell for cell in expand(table, overrides)}


def test_a_cells_recipe_is_settings_column_row_and_cell_in_that_order(write):
    text = TABLE.replace("values: |", "cells:\n  kd: {resnet14-resnet8: {batch_size: 60, loss: kd}}\nvalues: |")
    text = text.replace(
        "kd: {label: KD, recipe: {", "kd: {label: KD, recipe: {batch_size: 30, optimizer: {momentum: 0.5}, "
    )
    recipe = cells(write(text))["kd"].recipe
    assert (recipe.batch_size, recipe.loss, recipe.epochs) == (60, {"kd": 1.0}, 1)
    assert (recipe.optimizer.lr, recipe.optimizer.momentum) == (0.01, 0.5)


def test_teacher_and_student_alone_and_what_is_not_run(write):
    found = cells(write())
    assert (found["student"].recipe.teacher, found["student"].recipe.loss) == (None, {"ce": 1.0})
    assert found["teacher"].of_teacher
    assert found["teacher"].network() == "resnet14"
    assert (found["search"].recipe, found["search"].why_not) == (None, "quoted")


def test_a_column_may_be_of_the_student_alone_whatever_its_rows_learn(write):
    column = "  alone: {of: student, teacher: resnet14, student: resnet8, optimizer: {lr: 0.01}}\n"
    text = TABLE.replace("rows:", f"{column}rows:")
    for line in (".        resnet14-resnet8", "81.5", "70.66", "73.08±0.2", "74.0", "n/a"):
        text = text.replace(f"{line}\n", f"{line} {'alone' if line[0] == '.' else '70'}\n")
    found = {(cell.row, cell.column): cell for cell in expand(write(text))}
    assert found["kd", "alone"].recipe.fingerprint() == found["student", PAIR].recipe.fingerprint()


def test_all_cells_share_one_teacher_that_the_settings_train(write):
    """Neither the column's learning rate, nor a row's epochs, seeds or stages are the teacher's."""
    text = TABLE.replace(OF_KD, f"{OF_KD}epochs: 7, batch_size: 30, ")
    found = cells(write(text))
    assert len({found[row].teaching().fingerprint() for row in ("teacher", "kd", "ckd")}) == 1
    assert found["kd"].with_seed(5).teacher.train["seed"] == 0
    teaching = found["ckd"].teaching()
    assert (teaching.optimizer.lr, teaching.epochs, teaching.batch_size, teaching.seed) == (0.05, 1, 120, 0)
    assert "coded" not in teaching.stream
    assert found["kd"].recipe.epochs == 7


def test_the_coded_stage_of_the_settings_stands_before_the_augmentation(write):
    assert cells(write())["ckd"].recipe.stream.startswith("decode | coded(fixed(50)) | augment(")
    assert "coded" not in cells(write())["kd"].recipe.stream
    assert with_coded_stage("decode | a.b:c", "coded(hkl)") == "decode | a.b:c | coded('hkl')"
    assert with_coded_stage("decode | coded(hkl) | teacher", "coded(fixed(3))") == "decode | coded(hkl) | teacher"


def test_overrides_are_for_all_cells_and_their_teachers(write):
    found = cells(write(), "epochs=3", "data.path=elsewhere/digits")
    for cell in (found["teacher"], found["kd"], found["student"]):
        assert cell.recipe.data.path == "elsewhere/digits"
    assert found["kd"].teaching().epochs == found["kd"].recipe.epochs == 3
    with pytest.raises(UserError, match=r"^table small: seed= is not for tables: --seeds says"):
        cells(write(), "seed=3")


def test_equal_recipes_share_a_folder_whichever_table_asked(write):
    one = cells(write())
    other = cells(
        write(TABLE.replace("paper: small", "paper: other").replace("label: KD", "label: Hinton"), "other.yaml")
    )
    for row in ("student", "kd", "ckd"):
        assert one[row].recipe.out == other[row].recipe.out
    folders = {one[row].with_seed(seed).out for row in ("student", "kd", "ckd") for seed in (0, 1)}
    assert len(folders) == 6
    assert one["kd"].recipe.out.startswith("runs/cells/digits_resnet14_resnet8_ce_kd-")
    assert one["kd"].with_seed(4).out == one["kd"].recipe.out.replace("seed0", "seed4")
    changed = cells(write(), "epochs=2")["kd"].recipe
    assert folder(changed).name.partition("-")[2] != folder(one["kd"].recipe).name.partition("-")[2]


def test_students_that_ask_no_teacher_are_the_same_whatever_stands_beside_them(write):
    text = TABLE.replace(
        "kd: {label: KD, recipe: {loss: {ce: 0.1, kd: {weight: 0.9, temperature: 4}}}}", "kd: {recipe: {loss: ce}}"
    )
    found = cells(write(text))
    assert found["kd"].recipe.fingerprint() == found["student"].recipe.fingerprint()


def test_a_trained_teacher_is_not_trained_anew(write):
    text = TABLE.replace("{teacher: resnet14,", "{teacher: {model: resnet18, options: {weights: IMAGENET1K_V1}},")
    found = cells(write(text))
    assert found["kd"].teaching() is None
    assert found["kd"].recipe.teacher.train is None


def test_a_figures_cell_is_trained_though_no_value_is_printed(write):
    text = TABLE.replace("73.08±0.2", ".").replace("74.0", "n/a")
    assert {row: cell.why_not for row, cell in cells(write(text)).items() if cell.recipe is None} == {
        "kd": "not in the paper", "ckd": "no value in the paper", "search": "quoted"
    }  # fmt: skip
    figure = cells(write(text.replace("place: table 1", "place: figure 1")))
    assert figure["kd"].recipe is not None
    assert figure["ckd"].recipe is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "recipe: {loss: {ce: 0.1, kd: {weight: 0.9, temperature: 4}}}}\n  ckd",
            "recipe: {}}\n  ckd",
            "no loss: give it by",
        ),
        ("optimizer: {lr: 0.01}", "optimzier: {lr: 0.01}", r"unknown setting 'optimzier': did you mean 'optimizer'\?"),
        ("teacher: resnet14, ", "", "of: teacher, and no teacher"),
        ("base: settings", "base: setings", "base: no file 'setings' beside it"),
        ("optimizer: {lr: 0.01}", "seeds: 3", "seeds is not for tables"),
        ("{ce: 0.1, kd:", "{ce: 0.1, kdd:", "loss: unknown objective 'kdd'"),
    ],
)
def test_mistakes_in_recipes_name_the_cell(write, old, new, message):
    assert old in TABLE
    with pytest.raises(UserError, match=rf"^table small: {PAIR}:\w+: {message}") as error:
        cells(write(TABLE.replace(old, new, 1)))
    assert "\n" not in str(error.value)


def test_choosing_cells(write):
    found = expand(write())
    assert [cell.row for cell in choose(found, methods="ckd,kd")] == ["kd", "ckd"]
    assert [cell.key for cell in choose(found, cell=f"{PAIR}:kd")] == [f"{PAIR}:kd"]
    assert len(choose(found, pairs=PAIR)) == 5
    for settings, message in (
        ({"cell": "a:b"}, r"^--cell: no cell 'a:b'"),
        ({"methods": "kd,cdk"}, r"^--methods: no 'cdk': did you mean 'ckd'"),
        ({"pairs": "resnet14-resnet9"}, r"^--pairs: no 'resnet14-resnet9': did you mean 'resnet14-resnet8'"),
    ):
        with pytest.raises(UserError, match=message):
            choose(found, **settings)


def test_one_cell_is_picked_by_networks_and_row(write):
    table = write()
    cell, recipe = pick(table, ["teacher=resnet14", "student=resnet8", "loss=ckd", "seed=3", "workers=1"])
    assert (cell.row, recipe.seed, recipe.workers) == ("ckd", 3, 1)
    assert recipe.out == cells(table)["ckd"].with_seed(3).out
    assert recipe.teacher.train["seed"] == 0
    assert pick(table, [f"cell={PAIR}:teacher"])[0].of_teacher
    assert pick(table, ["loss=CKD", "out=here"])[1].out == "here"
    other = pick(table, [f"cell={PAIR}:ckd", "student=resnet20"])[1]  # named already: the rest are settings
    assert (other.student.model, other.loss) == ("resnet20", recipe.loss)
    for overrides, found in ((["loss=kdd"], "no cells"), ([], "4 cells"), (["teacher=resnet20"], "no cells")):
        with pytest.raises(UserError, match=rf"is a table, and this names {found} of it: pick one by cell=") as error:
            pick(table, overrides)
        assert "\n" not in str(error.value)


def test_published_teachers_stand_where_there_are_some(tmp_path):
    def teachers(text, *overrides, data="cifar100"):
        path = write_table(tmp_path, tmp_path / data, text)
        return cells(load_table(str(path)), *overrides)["kd"].recipe.teacher

    known = TABLE.replace("resnet14", "resnet56")
    found = teachers(known, "teachers=published")
    assert (found.weights, found.model) == ("published:resnet56@cifar100", "resnet56")
    assert found.train["epochs"] == 1  # where it cannot be had
    assert teachers(known).weights is None
    assert teachers(TABLE, "teachers=published").weights is None  # there is no such network
    assert teachers(known, "teachers=published", data="digits").weights is None
    (tmp_path / "mine.yaml").write_text("teachers: published\n")
    mine = known.replace("base: settings", "base: [settings, mine]")
    assert teachers(mine).weights == "published:resnet56@cifar100"
    assert teachers(mine, "teachers=trained").weights is None
    with pytest.raises(UserError, match="teachers: they are trained or published; it is 'bought'"):
        teachers(known, "teachers=bought")


def test_what_is_made_of_other_cells_is_not_trained(write):
    text = TABLE.replace("  search: {label: Searched, quoted: true,", "  search: {label: Gain, less: [ckd, kd],")
    found = cells(write(text))["search"]
    assert (found.recipe, found.why_not) == (None, "made of others")
