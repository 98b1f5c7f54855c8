from __future__ import annotations

import math
import os
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from kdstream.display.report import RunRecord, write_report


class Page(HTMLParser):
    """The page as a browser reads it: visible text, tags, attributes; complains about tags that do not match."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.words)


def record(name="kd", epochs=8, terms=("ce", "kd"), top1=90.0, hint=0, every=1, **result) -> RunRecord:
    rows = []
    for phase, length in (("fitnet.hint", hint), ("main", epochs)):
        for epoch in range(length):
            names = terms if phase == "main" else ("hint",)
            losses = {f"loss/{term}": (i + 1) / (epoch + 1) for i, term in enumerate(names)}
            row = {"kind": "epoch", "phase": phase, "epoch": epoch, "step": 10 * len(rows) + 10, "lr": 0.1}
            row |= {"loss": sum(losses.values()), **losses, "train/top1": 50.0 + epoch}
            if (epoch + 1) % every == 0:
                row |= {"val/loss": 1.0, "val/top1": top1 - 1 / (epoch + 1), "val/top5": 99.0}
            rows.append(row)
    speed = [{"images_per_s": 1000.0, "wait_share": 0.5, "seconds": 2.0}] * len(rows)
    return RunRecord(name, rows, speed, {"top1": top1, "params": 1234567, **result})


def written(tmp_path, *arguments, **options) -> tuple[str, Page]:
    path = write_report(tmp_path / "report.html", *arguments, **options)
    html = path.read_text(encoding="utf-8")
    for svg in re.findall(r"<svg role.*?</svg>", html, flags=re.S):
        ElementTree.fromstring(svg)  # well formed
    return html, Page(html)


def figures(html: str, caption: str) -> list[str]:
    return [f for f in re.findall(r"<figure>.*?</figure>", html, flags=re.S) if f"<figcaption>{caption}" in f]


def curve_points(figure: str, colour: str = "--c") -> list[int]:
    """Points of every curve in the chart, in order of drawing."""
    paths = re.findall(r'<path d="([^"]+)"[^>]*?style="fill: none;[^"]*?stroke: var\((--[\w]+)\)[^"]*"', figure)
    return [len(re.findall("[ML]", d)) for d, stroke in paths if stroke.startswith(colour)]


def test_table_has_the_teacher_first_marks_the_best_and_compares_with_labels_only(tmp_path):
    runs = [
        record("labels only", terms=("ce",), top1=90.0),
        record("KD", top1=91.25, images_per_s=2500.0, seconds=3700.0),
        record("worse", top1=89.5, top5=98.765),
    ]
    _, page = written(tmp_path, "digits", runs, record("big", terms=("ce",), top1=95.0))
    assert page.rows == [
        ["", "top-1 %", "over labels only", "top-5 %", "parameters", "images/s", "data wait", "time"],
        ["bigteacher", "95.00", "", "–", "1,234,567", "1,000", "50%", "16 s"],
        ["labels only", "90.00", "", "–", "1,234,567", "1,000", "50%", "16 s"],
        ["KDbest student, top-1", "91.25", "+1.25", "–", "1,234,567", "2,500", "50%", "1:01:40"],
        ["worse", "89.50", "−0.50", "98.77", "1,234,567", "1,000", "50%", "16 s"],
    ]


def test_without_a_labels_only_run_nothing_is_compared(tmp_path):
    _, page = written(tmp_path, "x", [record("a"), record("b", top1=91.0)])
    assert not any("over" in cell for cell in page.rows[0])
    _, page = written(tmp_path, "x", [record("a", baseline=True), record("b", top1=91.0)])
    assert page.rows[2][:3] == ["bbest student, top-1", "91.00", "+1.00"]


def test_a_run_without_result_is_judged_by_its_best_epoch(tmp_path):
    run = record("a", epochs=5)
    run.result = {}
    run.metrics[2]["val/top1"] = 97.5
    _, page = written(tmp_path, "x", [run])
    assert page.rows[1][1] == "97.50"


def test_page_loads_nothing_and_runs_nothing(tmp_path):
    html, page = written(tmp_path, "x", [record(qualities={-1: 3, 50: 4})], record("t"), {"a": "b"}, "a: 1")
    assert not {"script", "link", "img", "iframe", "object", "image", "foreignobject"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action"):
            assert value.startswith("#")
    assert "@import" not in html
    assert set(re.findall(r"url\(.", html)) == {"url(#"}
    assert "default-src 'none'" in html


def test_ids_are_unique_and_references_resolve(tmp_path):
    html, page = written(tmp_path, "x", [record("a"), record("b")])
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 20
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', html)) <= set(ids)


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", "a & b < c \" ' >", r"$\frac{1}{2}$ $", "_hidden", "</pre><b>", "x" * 500, ""]
)
def test_text_of_users_is_only_text(tmp_path, evil):
    run = record(evil, hint=2, qualities={-1: 1}, coded={"entropy": [1, 2]})
    run.metrics = [{key.replace("loss/kd", f"loss/{evil}"): value for key, value in row.items()} for row in run.metrics]
    _, page = written(tmp_path, evil, [run, record("b")], record(evil), {evil: evil}, evil)
    assert "script" not in page.tags
    assert "b" not in page.tags
    seen = page.text.count(evil.strip()) if evil else 99
    assert seen >= 9  # heading, title, table, legend, charts, facts, recipe


def test_every_run_has_its_curve_with_all_epochs(tmp_path):
    html, _ = written(tmp_path, "x", [record("a", epochs=7), record("b", epochs=9, every=3)], record("t", epochs=5))
    (accuracy,) = figures(html, "Validation top-1, %")  # too short for a chart of the last third
    assert curve_points(accuracy) == [7, 3]
    assert curve_points(accuracy, "--ink")[:1] == [5]
    assert curve_points(figures(html, "Training top-1")[0]) == [7, 9]


def test_the_last_third_is_drawn_once_more(tmp_path):
    html, _ = written(tmp_path, "x", [record("a", epochs=30), record("b", epochs=30)])
    whole, end = figures(html, "Validation top-1, %")
    assert curve_points(whole) == [30, 30]
    assert curve_points(end) == [11, 11]


def test_terms_have_a_chart_a_run_and_phases_are_shaded(tmp_path):
    html, page = written(tmp_path, "x", [record("alone", terms=("ce",)), record("hinted run", hint=3)])
    assert figures(html, "alone") == []
    (figure,) = figures(html, "hinted run")
    assert "shaded: fitnet.hint" in page.text
    assert "var(--shade)" in figure
    assert sorted(curve_points(figure)) == [3, 8, 8]
    assert "var(--shade)" not in "".join(figures(html, "Training loss"))
    assert curve_points(figures(html, "Training loss")[0]) == [8, 8]


def test_a_pretrained_teacher_is_a_line(tmp_path):
    html, page = written(tmp_path, "x", [record("a")], RunRecord("weights", result={"top1": 95.5}))
    assert "dotted: the teacher, 95.50 %" in page.text
    assert 2 in curve_points(figures(html, "Validation top-1")[0], "--ink")


def test_gaps_stay_gaps(tmp_path):
    run = record("a", epochs=30)
    for epoch in (10, 11, 12, 20):
        run.metrics[epoch] |= {"loss": None, "val/top1": math.nan, "loss/kd": math.inf}
    html, _ = written(tmp_path, "x", [run])
    (d,) = re.findall(
        r'<path d="([^"]+)"[^>]*style="fill: none; stroke: var\(--c0\)', figures(html, "Training loss")[0]
    )
    assert d.count("M") == 3
    assert len(re.findall("[ML]", d)) == 26


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [RunRecord("nothing")],
        [record("a", epochs=1)],
        [record("a", every=100)],
        [record("a", epochs=0, hint=3)],
        [RunRecord("a", [{"epoch": 0, "loss": None, "val/top1": None}], [{"seconds": None}], {"top1": math.nan})],
        [RunRecord("a", [{"loss": 0.0, "lr": 0.0}, {"loss": -1.0, "lr": 0.0}], [], {"qualities": {}})],
        [
            RunRecord("a", [], [], {"teacher": "a name"}),
            record("b", epochs=1, teacher={"entropy": []}, qualities={"0": 1}),
        ],
        [RunRecord("a", [{"loss": 1e30}, {"loss": 1e-30}], [], {"params": None, "plain": {}, "coded": None})],
    ],
    ids=["none", "empty", "one epoch", "never evaluated", "killed early", "nulls", "zeros", "odd results", "extremes"],
)
@pytest.mark.parametrize("teacher", [None, RunRecord("t")], ids=["alone", "with teacher"])
def test_poor_records_give_a_page(tmp_path, runs, teacher):
    html, page = written(tmp_path, "poor", runs, teacher)
    assert "poor" in page.text
    assert "Results" in page.text
    assert ">nan<" not in html.lower()


def test_qualities_and_flatness(tmp_path):
    coded = record(
        "coded",
        qualities={"-1": 30, "50": 10, 0: 60},
        plain={"entropy": [0.1, 0.02], "gt_probability": [0.9, 0.01]},
        coded={"entropy": [0.6, 0.3]},
    )
    plain = record("KD", teacher={"entropy": [0.2, 0.1], "gt_probability": [0.8, 0.1]})
    html, page = written(tmp_path, "x", [plain, coded])
    (figure,) = figures(html, "coded<span class='quiet'> 100 choices")
    labels = re.findall(r"<text[^>]*>([^<]+)</text>", figure)
    assert labels[:3] == ["0", "50", "orig."]
    assert page.rows[-3:] == [
        ["KD: plain teacher", "0.2000 ± 0.1000", "0.8000 ± 0.1000"],
        ["coded: plain teacher", "0.1000 ± 0.0200", "0.9000 ± 0.0100"],
        ["coded: coded teacher", "0.6000 ± 0.3000", "–"],
    ]


def test_a_big_job_stays_small_and_tells_its_runs_apart(tmp_path):
    runs = [record(f"run {i}", epochs=300, terms=("ce", "kd", "at", "crd"), top1=80.0 + i) for i in range(12)]
    html, _ = written(tmp_path, "big", runs, record("t", epochs=300))
    assert len(html) < 1_000_000
    swatches = re.findall(r"<li><svg class='swatch'.*?</svg>", html.split("Loss by term")[0])
    assert len(swatches) == len(set(swatches)) == 13
    assert "<details>" in html


def test_report_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = write_report(tmp_path / "new" / "report.html", "first", [])
    first = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, "second", [])
    assert path.read_bytes() == first
    assert os.listdir(path.parent) == ["report.html"]


def test_matplotlib_is_left_as_it_was(tmp_path):
    import matplotlib
    from matplotlib import _pylab_helpers

    before = dict(matplotlib.rcParams)
    html, _ = written(tmp_path, "x", [record("a")])
    assert "<figure>" in html
    assert dict(matplotlib.rcParams) == before
    assert not _pylab_helpers.Gcf.figs  # pyplot knows of no figure
