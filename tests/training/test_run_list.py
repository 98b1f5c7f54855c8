"""What lies in a folder of runs: finished, left at an epoch, not begun; and the command that goes on."""

from __future__ import annotations

import json
import os

import pytest

from kdstream.errors import UserError
from kdstream.training import folder, job, run_list
from kdstream.training.run_list import find_runs


def test_files_are_called_as_those_who_write_them_do():
    assert (run_list.RECIPE, run_list.RESULT, run_list.LAST) == (folder.RECIPE, folder.RESULT, folder.LAST)
    assert (run_list.PEERS, run_list.JOB) == (folder.PEERS, job.MARK)


def test_runs_are_listed_the_latest_first(tmp_path):
    def lay(name, when, **files):
        place = tmp_path / "runs" / name
        place.mkdir(parents=True)
        for file, text in {"recipe.yaml": "epochs: 60", **files}.items():
            path = place / file.replace("_", ".")
            path.write_text(text)
            os.utime(path, (when, when))
        return place

    rows = "".join(
        json.dumps({"kind": "epoch", "phase": phase, "epoch": i, "val/top1": 10.0 + i}) + "\n"
        for i, phase in enumerate(("fitnet.hint", "main", "main"), 1)
    )
    done = lay("a", 1_000, result_json='{"top1": 71.5}', job_yaml="epochs: 60", metrics_jsonl=rows)
    left = lay("b c", 3_000, metrics_jsonl=rows, job_yaml="epochs: 60", last_pt="")
    lay("teachers/digits-resnet8-0", 2_000, result_json="{")  # half of it
    lay("a/peers/one", 4_000)

    runs = find_runs(tmp_path / "runs")
    assert [(run.name, run.state, run.top1) for run in runs] == [
        ("b c", "epoch 2/60", 13.0),
        ("teachers/digits-resnet8-0", "not begun", None),
        ("a", "finished", 71.5),
    ]
    assert [run.command for run in runs] == [f"kdstream train '{left}/job.yaml' 'out={left}'", None, None]
    assert find_runs(done)[0].name == "a"
    with pytest.raises(UserError, match=r"^no folder .*nowhere: runs lie where"):
        find_runs(tmp_path / "nowhere")
