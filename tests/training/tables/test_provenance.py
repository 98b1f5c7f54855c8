"""Provenance: a clone says its commit and whether files differ from it."""

from __future__ import annotations

import subprocess

import kdstream
from kdstream.training.tables.provenance import version


def test_a_clone_names_its_commit_and_changes(tmp_path, monkeypatch):
    package = tmp_path / "kdstream"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(kdstream, "__file__", str(package / "__init__.py"))
    said = f"kdstream {kdstream.__version__}"
    assert version() == said

    def git(*what):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", tmp_path, *who, *what], check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")[:10]
    assert version() == f"{said}, commit {commit}"
    (package / "__init__.py").write_text("1")
    assert version() == f"{said}, commit {commit} and changes"
