"""Names become objects, and wrong names become one helpful line."""

from __future__ import annotations

import collections
import sys

import pytest

from kdstream.errors import UserError
from kdstream.registry import MOST_NAMES, Registry, import_object, nearest


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


@pytest.mark.parametrize("path", [":x", "os:", "os", "", ":", ".a:x", "..a:x", ".:x", "a..b:x"])
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
