"""Chains as text: what is read, what is refused, and what the reader is told."""

from __future__ import annotations

import sys

import pytest

from kdstream.errors import UserError
from kdstream.stream.language import Call, parse_calls, parse_chain


@pytest.fixture
def own_stages(tmp_path, monkeypatch):
    (tmp_path / "own_stages.py").write_text(
        "import functools, os\n"
        "import webdataset\n"
        "import kdstream as kd\n"
        "@kd.stage\n"
        "def drop_tiny(samples, side=32):\n"
        "    for s in samples:\n"
        "        if min(s['image'].shape[-2:]) >= side:\n"
        "            yield s\n"
        "def plain(samples):\n"
        "    yield from samples\n"
        "def factory(n):\n"
        "    def stage(samples):\n"
        "        for i, s in enumerate(samples):\n"
        "            if i < n:\n"
        "                yield s\n"
        "    return stage\n"
        "twice = webdataset.filters.map(lambda s: s)\n"
        "part = functools.partial(factory(3))\n"
        "both = drop_tiny | plain\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_stages", None)


def test_calls():
    assert parse_calls("decode | augment(cifar, pad=2, flip=false) | a.b:c(p=-0.5, q=[1, 2], r='x y', s=none)") == [
        Call("decode"),
        Call("augment", ("cifar",), {"pad": 2, "flip": False}),
        Call("a.b:c", (), {"p": -0.5, "q": [1, 2], "r": "x y", "s": None}),
    ]
    assert parse_calls("coded(random(50, 100), delta=5)")[0].args == (Call("random", (50, 100)),)
    assert parse_calls("coded(my.mod:choose)")[0].args == ("my.mod:choose",)


@pytest.mark.parametrize(
    "text",
    [
        *["f(-'a')", "f(1j)", "f(b'x')", "f(...)", "f(1e999)", "f(*x)", "f(a=-true)", "f(x=f'{1}')", "\0", "f(\ud800)"],
        *[
            "f(a=1, a=2)",
            "a-b:c",
            "a:b:c",
            "f(" * 300,
            "f(" + "[" * 5000,
            "a|" * 20000 + "a",
            "f(-" + "-" * 5000 + "1)",
        ],
        f"f({'9' * 5000})",
        *[
            "",
            "decode |",
            "decode || augment",
            "decode, augment",
            "f(**x)",
            "1 | 2",
            "f(lambda: 0)",
            "f(a+b)",
            "f(x)(y)",
        ],
    ],
)
def test_what_is_no_chain(text):
    with pytest.raises(UserError, match=r"stream|twice") as error:
        parse_calls(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


def test_names_and_settings_are_checked():
    with pytest.raises(UserError, match="unknown stage 'augmnt': did you mean 'augment'"):
        parse_chain("decode | augmnt(cifar)")
    with pytest.raises(UserError, match="no such augmentation; known: cifar, inception, eval"):
        parse_chain("augment(imagenet)")
    with pytest.raises(UserError, match=r"augment\(cifar\): unknown setting .padding.: did you mean .pad."):
        parse_chain("augment(cifar, padding=3)")
    with pytest.raises(UserError, match="cannot import module 'nowhere'"):
        parse_chain("nowhere:stage")
    with pytest.raises(UserError, match="its settings: mean, std"):
        parse_chain("normalize(means=3)")
    with pytest.raises(UserError, match="unknown selector 'hlk': did you mean 'hkl'"):
        parse_chain("coded(hlk)")
    with pytest.raises(UserError, match="delta is 0"):
        parse_chain("coded(hkl, delta=0)")
    with pytest.raises(UserError, match="quality 101"):
        parse_chain("coded(fixed(101))")


def test_own_code_by_dotted_path(own_stages):
    chain = parse_chain("decode | own_stages:drop_tiny(side=8) | own_stages:plain | own_stages:factory(2)")
    assert [stage.scope for stage in chain.stages] == ["sample"] * 4
    assert chain.stages[1].settings == {"side": 8}
    with pytest.raises(UserError, match=r"own_stages has no 'drop_tyni'; did you mean 'drop_tiny'"):
        parse_chain("own_stages:drop_tyni")
    with pytest.raises(UserError, match=r"drop_tiny: .*unexpected.*; its settings: side"):
        parse_chain("own_stages:drop_tiny(size=3)")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("webdataset.filters:shuffle(100)", ["FilterFunction"]),
        ("webdataset:shuffle", ["FilterFunction"]),
        ("webdataset.filters:slice(3) | webdataset.filters:rename(image='jpg')", ["FilterFunction", "FilterFunction"]),
        ("kdstream.stream.augment:crop_flip(pad=2)", ["crop_flip"]),
        ("kdstream.stream.coded:coded(hkl) | coded(kdstream.stream.coded:hkl)", ["coded", "coded"]),
        ("own_stages:twice | own_stages:part | own_stages:both", ["FilterFunction", "partial", "drop_tiny", "plain"]),
    ],
)
def test_webdatasets_filters_and_ones_own_objects_by_name(own_stages, text, names):
    assert [stage.name for stage in parse_chain(text).stages] == names


def test_a_filter_of_webdatasets_runs():
    chain = parse_chain("webdataset.filters:slice(1, 3)")
    assert list(chain(iter([{"a": 0}, {"a": 1}, {"a": 2}, {"a": 3}]))) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    "text",
    [
        *["builtins:open('{}', 'w')", "os:system('touch {}')", "os:getcwd", "subprocess:Popen(['touch', '{}'])"],
        *["own_stages:os.system('touch {}')", "pathlib:Path.touch('{}')", "webdataset:WebDataset('pipe:touch {}')"],
        *["kdstream.atomic:write_atomic('{}', 'x')", "kdstream.convert.make_shards:make_shards('imagefolder:.', '{}')"],
        *["torch:load('{}')", "torch.hub:load('{}', 'x')", "webdataset.filters:decode('rgb')", "webdataset:xdecode"],
        *[
            "coded(os:system)",
            "coded(builtins:open('{}', 'w'))",
            "coded(torch:save)",
            "coded(kdstream.atomic:write_atomic)",
        ],
    ],
)
def test_what_is_no_stage_is_not_called(own_stages, tmp_path, text):
    trace = tmp_path / "called"
    with pytest.raises(UserError, match=r"(standard library|of that name|unpickles)"):
        parse_chain(text.replace("{}", str(trace)))
    assert not trace.exists()


def test_words_that_look_like_ours_inside_are_themselves():
    assert parse_calls("f(path_0_, a.b:c, 'path_1_')")[0].args == ("path_0_", "a.b:c", "path_1_")


def test_names_are_not_evaluated():
    assert parse_calls("f(__import__)")[0].args == ("__import__",)
    with pytest.raises(UserError, match="unknown stage '__import__'"):
        parse_chain("__import__(os)")


def test_a_call_as_text_is_the_call_again():
    text = "decode | a.b:c(-1, x='p:q', y=[1, true], z=none) | coded(random(50, 100), delta=5) | m:f(u='http://a.b:c')"
    calls = parse_calls(text)
    assert parse_calls(" | ".join(map(str, calls))) == calls
    assert calls[1].settings["x"] == "p:q"
    assert calls[3].settings["u"] == "http://a.b:c"
