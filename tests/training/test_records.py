"""What the folder of a finished training tells, and the networks that learnt beside the student."""

from __future__ import annotations

import pytest
from jobs import recipe_of, run

from kdstream.training.records import cohort, read_record, table_row


@pytest.mark.parametrize(("export", "names"), [("student", ["job", "job: peer"]), ("best", None)])
def test_a_cohort_has_a_record_for_every_network(digits, tmp_path, export, names):
    recipe = recipe_of(digits, tmp_path / "out", loss="dml", epochs=1, export_network=export)
    (result,) = run(recipe)
    records = cohort(read_record(tmp_path / "out"))
    assert len(records) == len(result["networks"])
    assert names is None or [record.name.rstrip("0123456789") for record in records] == names
    for record in records:
        (row,) = [row for row in record.metrics if row["kind"] == "epoch"]
        assert row["val/top1"] == record.result["top1"]
        assert table_row(record.name, record.result)["top-1 %"] == record.result["top1"]
