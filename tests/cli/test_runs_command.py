"""The verb runs: a line a run, then the commands that go on."""

from __future__ import annotations

from kdstream.cli.runs import main


def test_a_line_a_run_and_a_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert main([]) == 0
    assert capsys.readouterr().out == "runs holds no runs\n"
    for name in ("recipe.yaml", "job.yaml"):
        (tmp_path / "runs" / "mine" / name).write_text("epochs: 3")
    assert main(["runs"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["run", "state", "top-1", "%", "when"]
    assert said[2].split()[:4] == ["mine", "not", "begun", "–"]
    assert said[-1] == "to continue: kdstream train runs/mine/job.yaml out=runs/mine"
    assert main(["nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: no folder nowhere: ")
