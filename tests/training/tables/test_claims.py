"""Claims: judged by the rule, whole pairs first, the kept ones well formed and of shared trainings."""

from __future__ import annotations

import itertools

import pytest
from small_tables import TABLE, finish, write_table

from kdstream.errors import UserError
from kdstream.training.tables.cells import expand
from kdstream.training.tables.claims import as_json, by_verdict, cells_of, in_rounds, judge, load_claim
from kdstream.training.tables.finished import Finished
from kdstream.training.tables.passes import Passes, without_bar
from kdstream.training.tables.table import known_claims, known_tables
from kdstream.training.tables.work import left_to_do

CLAIM = TABLE[: TABLE.index("values:")] + "claims:\n  - {order: ckd > kd, printed: much}\n"


@pytest.fixture
def claim(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return load_claim(str(write_table(tmp_path, tmp_path / "digits", CLAIM)))


def judged(table, seeds=4):
    finished = Finished()
    return judge(table, cells_of([table], [])[table.name], seeds, finished, Passes(finished, without_bar, look=False))


@pytest.mark.parametrize(
    ("coded", "verdict"),
    [
        ([71, 72.1, 71.2, 71], "holds"),
        ([69, 69.1, 68.8, 69], "reversed"),
        ([75, 65, 71, 69], "does not show"),
        ([75, 76], "not decided yet"),
    ],
)
def test_the_interval_decides(claim, coded, verdict):
    cells = {cell.row: cell for cell in cells_of([claim], [])[claim.name]}
    assert judged(claim).verdict == "not decided yet"
    for seed in range(4):
        finish(cells["kd"].with_seed(seed), [70.0 + (seed == 1)])
    for seed, top in enumerate(coded):
        finish(cells["ckd"].with_seed(seed), [top])
    found = judged(claim)
    (line,) = found.lines
    assert (found.verdict, line.difference.pairs, line.lacking) == (verdict, len(coded), 4 - len(coded))
    assert line.difference.mean == pytest.approx(sum(coded) / len(coded) - (281 / 4 if len(coded) == 4 else 70.5))
    (told,) = as_json(found)["lines"]
    assert told["values"]["ckd"] == {str(seed): top for seed, top in enumerate(coded)}
    assert (told["printed"], told["verdict"]) == ("much", verdict)
    other = judged(load_claim(claim.called))
    assert [one.verdict for one in by_verdict([found, other])] == [verdict, verdict]


def test_what_a_training_does_not_tell_is_said(claim, tmp_path):
    text = CLAIM.replace("printed: much", "measure: entropy")
    table = load_claim(str(write_table(tmp_path, tmp_path / "nowhere", text, "flat.yaml")))
    for cell in cells_of([table], [])[table.name]:
        if cell.row in ("kd", "ckd"):
            finish(cell.recipe, [70.0])
    (line,) = judged(table, 1).lines
    assert (line.unit, line.verdict, line.lacking) == ("nat", "not decided yet", 0)
    assert line.why_not.startswith("needs the images: ")


def test_what_is_interrupted_has_whole_pairs_and_a_teacher_comes_when_it_is_needed(claim):
    cells = cells_of([claim], [])[claim.name]
    tasks = in_rounds(left_to_do(cells, 3, [], Finished()))
    assert [(task.gives is not None, task.recipe.seed, task.cell.row) for task in tasks if task.gives is None] == [
        (False, seed, row) for seed, row in itertools.product(range(3), ("student", "kd", "ckd"))
    ]
    (teacher,) = (i for i, task in enumerate(tasks) if task.gives is not None)
    assert [task.cell.row for task in tasks[teacher - 1 : teacher + 2]] == ["student", "teacher", "kd"]


def test_every_claim_of_kdstreams_expands_to_trainings_that_claims_share():
    names = known_claims()
    assert not set(names) & set(known_tables())
    tables = [load_claim(name) for name in names]
    for table in tables:
        assert table.title.endswith(".")
        assert {row for order in table.claims for row in order.weights} <= set(table.rows)
    cells = [cell for own in cells_of(tables, []).values() for cell in own]
    different = {cell.recipe.fingerprint() for cell in cells}
    assert len(different) < len(cells) - 10
    assert all(cell.recipe.data.per_class == 200 or cell.recipe.data.imbalance for cell in cells)
    assert {cell.teaching().data.per_class for cell in cells if cell.teaching()} == {None, 1000}


def test_a_given_teacher_is_not_for_claims_whose_own_learns_from_other_labels():
    given = ["teacher.weights=/somewhere/t.pth"]
    for name, own in (("ckd", False), ("beyond-noise", True), ("beyond-imbalance", True)):
        (cell,) = {cell.column: cell for cell in expand(load_claim(name), given) if cell.row == "kd"}.popitem()[1:]
        assert (cell.recipe.teacher.weights is None, cell.teaching() is not None) == (own, own)


def test_what_claims_nothing_or_another_measure(tmp_path):
    with pytest.raises(UserError, match=r"claims nothing: it has no claims: with an order"):
        load_claim(str(write_table(tmp_path, tmp_path / "digits")))
    with pytest.raises(UserError, match=r"measure 'beauty' is unknown"):
        load_claim(str(write_table(tmp_path, tmp_path / "digits", CLAIM.replace("printed: much", "measure: beauty"))))
    with pytest.raises(UserError, match=r"no row 'ckdd'"):
        expand(load_claim(str(write_table(tmp_path, tmp_path / "digits", CLAIM.replace("order: ckd", "order: ckdd")))))
    with pytest.raises(UserError, match=r"no recipe 'claims/nothing'"):
        load_claim("nothing")
