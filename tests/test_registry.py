"""Names become objects, and wrong names become one helpful line."""

from __future__ import annotations

import collections
import sys

import pytest

from kdstream.errors import UserError
from kdstream.registry import MOST_NAMES, Registry, import_named, import_object, nearest


def test_nearest_proposes_one_name_or_lists_all():
    assert nearest("resnet9", ["resnet8", "vgg"]) == "did you mean 'resnet8'?"
    assert nearest("zzz", {"beta": 1, "alpha": 2}) == "known: alpha, beta"
    assert nearest("zzz", []) == "known: none"


def test_nearest_does_not_flood_the_screen():
    text = nearest("zzz", [f"name{i:05}" for i in range(2000)])
    assert text.count(",") == MOST_NAMES
    assert text.endswith(f"name{MOST_NAMES - 1:05}, ...")


def test_import_object_follows_attributes():
    assert import_object("collections:OrderedDict", "thing") is collections.OrderedDict
    assert import_object("collections:OrderedDict.fromkeys", "thing") == collections.OrderedDict.fromkeys


@pytest.mark.parametrize(
    "path",
    [
        *[":x", "os:", "os", "", ":", ".a:x", "..a:x", ".:x", "a..b:x"],
        *["a-b:x", "1a:x", "a b:x", "a:b-c", "a:b:c", "a:b.", "a/b:x", "a:x y", "a:x()"],
    ],
)
def test_what_is_no_dotted_path_is_said_to_be_none(path):
    with pytest.raises(UserError, match=r"^stage '.*' is no dotted path: write package\.module:name$"):
        import_object(path, "stage")


def test_a_missing_module_names_the_cure():
    with pytest.raises(UserError, match=r"^model 'no_such_thing:x': cannot import module 'no_such_thing' .*run from"):
        import_object("no_such_thing:x", "model")


def test_a_module_that_lacks_a_package_says_which(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="no_such_package"):
        import_object("half_installed:x", "objective")


def test_a_missing_attribute_proposes_the_nearest():
    with pytest.raises(UserError, match=r"stage 'collections:OrderedDic': .*did you mean 'OrderedDict'\?"):
        import_object("collections:OrderedDic", "stage")
    with pytest.raises(UserError, match=r"has no 'OrderedDict.nothing_alike'"):
        import_object("collections:OrderedDict.nothing_alike", "stage")


def test_a_registry_is_a_mapping_that_imports_on_demand(tmp_path, monkeypatch):
    (tmp_path / "imported_late.py").write_text("value = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("thing", {"late": "imported_late:value", "dict": "collections:OrderedDict"})
    assert dict(registry) == {"late": "imported_late:value", "dict": "collections:OrderedDict"}
    assert len(registry) == 2
    assert "imported_late" not in sys.modules
    assert registry.find("late") == 7
    assert registry.find("collections:OrderedDict") is registry.find("dict")
    with pytest.raises(UserError, match=r"^unknown thing 'latte': did you mean 'late'\?$"):
        registry.find("latte")


def test_a_registry_does_not_change_with_the_table_it_was_made_of():
    table = {"a": "collections:OrderedDict"}
    registry = Registry("thing", table)
    table["b"] = "collections:deque"
    assert list(registry) == ["a"]


# --- what a recipe may name


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of a user's that imports this and that, and a file that does not exist while nothing of it is called."""
    trace = tmp_path / "called"
    (tmp_path / "mine_for_registry.py").write_text(
        "import functools, os, subprocess\n"
        "from collections import deque\n"
        "from os import system\n"
        "from subprocess import Popen\n"
        "import torch\n"
        "from kdstream.atomic import write_atomic\n"
        "def make(n=1): return n\n"
        "class Maker:\n"
        "    def __call__(self): return 1\n"
        "    @classmethod\n"
        "    def other(cls): return cls()\n"
        "maker = Maker()\n"
        "part = functools.partial(make, 3)\n"
        "twice = functools.partial(functools.partial(make), 3)\n"
        "cached = functools.lru_cache(make)\n"
        "@functools.wraps(make)\n"
        "def wrapped(): return make()\n"
        "short = lambda: 1\n"
        f"touch = functools.partial(system, 'touch {trace}')\n"
        "touch_later = functools.partial(touch)\n"
        "append = [].append\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield trace
    sys.modules.pop("mine_for_registry", None)


def never(found):
    return False


@pytest.mark.parametrize(
    "name", ["make", "Maker", "Maker.other", "maker", "part", "twice", "cached", "wrapped", "short"]
)
def test_functions_classes_and_objects_of_ones_own_may_be_named(mine, name):
    found = import_named(f"mine_for_registry:{name}", "stage", never)
    assert found == import_object(f"mine_for_registry:{name}", "stage")


@pytest.mark.parametrize(
    "name",
    [
        *["system", "os.system", "subprocess.run", "Popen", "deque", "touch", "touch_later", "append", "functools"],
        *["functools.partial", "os.path.join"],
    ],
)
def test_what_ones_module_imports_of_the_standard_library_may_not(mine, name):
    with pytest.raises(
        UserError, match=r"^stage 'mine_for_registry:.*'(: Python's standard library has no stages| is not a function)"
    ):
        import_named(f"mine_for_registry:{name}", "stage", never)
    assert not mine.exists()


@pytest.mark.parametrize(
    "path", ["os:system", "builtins:open", "subprocess:Popen", "posix:system", "os.path:join", "runpy:run_path"]
)
def test_the_standard_library_is_not_even_imported(path):
    with pytest.raises(UserError, match=r"Python's standard library has no models: name one of a module of yours$"):
        import_named(path, "model", lambda found: True)


def test_modules_of_the_standard_library_do_nothing(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with pytest.raises(UserError):
        import_named("this:s", "model", never)
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "path",
    [
        *["torch:load", "torch.hub:load", "numpy:fromfile", "yaml:unsafe_load", "webdataset:WebDataset"],
        *["kdstream.atomic:write_atomic", "mine_for_registry:write_atomic", "mine_for_registry:torch.load"],
        "kdstream.models.pretrained:load_network",
    ],
)
def test_other_things_of_kdstream_and_of_tools_may_not_be_named(mine, path):
    with pytest.raises(UserError, match=r"^model '.*': \w+ has no model of that name$"):
        Registry("model", {}).find(path)


def test_what_is_of_the_right_kind_may_be_named_wherever_it_stands():
    from torch import nn

    from kdstream.models.zoo.wrn import WideResNet

    assert Registry("model", {}).find("torch.nn:Identity") is nn.Identity
    assert Registry("model", {}).find("kdstream.models.zoo.wrn:WideResNet") is WideResNet
    table = Registry("thing", {"dict": "collections:OrderedDict"})
    assert table.find("collections:OrderedDict") is collections.OrderedDict
    with pytest.raises(UserError, match="standard library"):
        table.find("collections:deque")


@pytest.mark.parametrize("name", ["number", "make.__code__", "Maker.__init__", "make.__globals__"])
def test_what_cannot_be_called_or_is_pythons_own_is_no_stage(mine, name):
    with pytest.raises(
        UserError,
        match=r"(is not a function or class, but of type int|what Python keeps under such a name is no stage)$",
    ):
        import_named(f"mine_for_registry:{name}", "stage", never)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(:", r"fails when it is imported \(SyntaxError: .*line 1"),
        ("raise RuntimeError('two\\nlines')", r"fails when it is imported \(RuntimeError: two lines\)$"),
        ("import sys; sys.exit(3)", r"fails when it is imported \(SystemExit: 3\)$"),
    ],
)
def test_a_module_that_fails_is_one_line(tmp_path, monkeypatch, code, message):
    (tmp_path / "broken_for_registry.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        import_object("broken_for_registry:x", "stage")
    assert "\n" not in str(error.value)


def test_a_name_that_is_no_misspelling_is_not_compared():
    assert nearest("resnet8" * 1000, ["resnet8"]) == "known: resnet8"
