"""kdstream analyse: every analysis writes its page and JSON and prints its table."""

from __future__ import annotations

import json

import pytest
from commands import refused


@pytest.mark.parametrize(
    ("kind", "options", "key"),
    [
        ("selection", ["--image", "3", "--delta", "50"], "images"),
        ("transfer", ["--limit", "6", "--steps", "1"], "shares"),
        ("logits", ["--limit", "12", "--teacher"], "students"),
        ("embedding", ["--limit", "12"], "networks"),
    ],
)
def test_page_json_and_table(run_verb, exported, digits, tmp_path, kind, options, key):
    options = [*options, exported] if options[-1] == "--teacher" else options
    common = ("--data", digits, "--device", "cpu")
    code, out, err = run_verb("analyse", kind, f"mine={exported}", *common, *options)
    assert (code, err) == (0, "")
    folder = tmp_path / "runs" / f"analyse-{kind}"
    assert key in json.loads((folder / f"{kind}.json").read_text())
    assert "<svg" in (folder / f"{kind}.html").read_text()
    assert "mine" in out
    assert max(map(len, out.splitlines())) <= 80


def test_what_is_wrong_is_said_in_a_line(run_verb, exported, digits):
    refused(run_verb("analyse", "selection", exported), "no images: name a data set folder by --data")
    refused(run_verb("analyse", "curves", exported), "holds no metrics.jsonl")
    refused(run_verb("analyse", "logits", exported, "--data", digits, "--device", "cpu"), "no teacher")
    refused(
        run_verb("analyse", "selection", exported, "--data", digits, "--image", "999", "--device", "cpu"), "--image 999"
    )
    refused(run_verb("analyse", "robustness", exported, "--severities", "0"), "--severities 0")
