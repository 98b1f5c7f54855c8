"""Recipes: YAML and overrides become checked settings, and every mistake is one line that names the cure."""

from __future__ import annotations

import contextlib

import hypothesis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdstream.errors import UserError
from kdstream.recipe import RECIPES, Recipe, load_recipe, make_recipe, merge, run_folder

BASE = {"data": {"path": "shards/x"}, "student": "resnet8"}


def recipe(**settings):
    return make_recipe({**BASE, **settings}, "test")


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


# --- shorthands and defaults


def test_data_and_student_are_all_a_recipe_needs():
    made = recipe()
    assert (made.student.model, made.student.weights) == ("resnet8", None)
    assert made.loss == {"ce": 1.0}
    assert made.folder().as_posix() == "runs/recipe"


@pytest.mark.parametrize(
    ("text", "model", "weights"),
    [
        ("resnet56", "resnet56", None),
        ("my_pkg.nets:small", "my_pkg.nets:small", None),
        ("timm:vit_tiny", "timm:vit_tiny", None),
        ("runs/teacher", None, "runs/teacher"),
        ("weights.pth", None, "weights.pth"),
        ("student.safetensors", None, "student.safetensors"),
        ("./resnet56", None, "./resnet56"),
        ("https://host/wrn_40_2.pth", None, "https://host/wrn_40_2.pth"),
        ("http://host:8000/file?id=7", None, "http://host:8000/file?id=7"),
    ],
)
def test_a_network_in_one_word_is_a_model_or_a_file(text, model, weights):
    made = recipe(teacher=text, student=text)
    for part in (made.teacher, made.student):
        assert (part.model, part.weights) == (model, weights)


def test_yaml_peculiarities(write):
    text = "data: {path: x}\nstudent: resnet8\nprecision: no\noptimizer: {lr: 1e-2}\nloss: kd\n"
    made = load_recipe(write(text))
    assert (made.precision, made.optimizer.lr, made.loss, made.name) == ("no", 0.01, {"kd": 1.0}, "mine")


def test_defaults_are_not_shared_between_recipes():
    recipe().loss["kd"] = 1.0
    recipe().student.options["x"] = 1
    assert recipe().loss == {"ce": 1.0}
    assert recipe().student.options == {}


# --- mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epohcs": 3}, r"^test: unknown setting 'epohcs': did you mean 'epochs'\?$"),
        ({"optimizer": {"momentun": 0}}, r"unknown setting 'optimizer\.momentun': did you mean 'momentum'\?"),
        ({"teacher": {"modle": "resnet8"}}, r"unknown setting 'teacher\.modle': did you mean 'model'\?"),
        ({"data": {"path": "x", "trian": "t"}}, r"unknown setting 'data\.trian': did you mean 'train'\?"),
        ({"zzzzzz": 3}, r"unknown setting 'zzzzzz': known: accumulate, assistants, batch_size"),
        ({"epohcs": 3, "epochs": "x"}, "unknown setting 'epohcs'"),
        ({"data": {}}, r"^test: data\.path is missing$"),
        ({"epochs": 0}, r"epochs: input should be greater than or equal to 1; it is 0"),
        ({"epochs": "ten"}, r"epochs: .*; it is 'ten'"),
        ({"epochs": 2.5}, r"epochs: .*; it is 2\.5"),
        ({"optimizer": {"lr": 0}}, r"optimizer\.lr: .*greater than 0"),
        ({"optimizer": {"lr": float("nan")}}, r"optimizer\.lr: .*finite"),
        ({"optimizer": {"momentum": 1}}, r"optimizer\.momentum: .*less than 1"),
        ({"schedule": {"name": "linear"}}, r"schedule\.name: .*'step', 'cosine' or 'constant'; it is 'linear'"),
        ({"schedule": {"milestones": [0]}}, r"schedule\.milestones\.0: .*; it is 0"),
        ({"precision": "fp8"}, r"precision: .*'no', 'bf16' or 'fp16'"),
        ({"student": ["resnet8"]}, r"student: "),
        ({"loss": ["ce"]}, r"loss: input should be a valid dictionary"),
        ({"teacher": {"mean": [0.5, 0.5]}}, r"teacher\.mean"),
        (
            {"student": {"model": "resnet8", "options": {"num_classes": 3}}},
            r"^test: student\.options: leave num_classes out: the data says it, or data\.num_classes where",
        ),
        ({"student": {"model": "resnet8", "options": {"name": "x"}}}, r"options: leave name out: it is the model's$"),
        ({"data": {"path": "x", "num_classes": 1}}, r"data\.num_classes: .*greater than or equal to 2; it is 1"),
        ({"data": {"path": "x", "num_classes": 2.0}}, r"data\.num_classes: .*integer"),
        *[
            ({"teacher": {"weights": "a/b", "classes": value}}, rf"teacher\.classes: it is same, or a list .*{said}")
            for value, said in (
                ("all", "; it is 'all'"),
                ([], r"\[0, 3, 7\]; it is \[\]"),
                ([True, 1], "; true is neither .*in quotes"),
                ([0.0], "; 0.0 is neither"),
                ({"a": 1}, "as "),
            )
        ],
        (
            {"teacher": {"model": "a", "train": {}, "classes": [0]}},
            r"teacher: classes says which outputs of given weight",
        ),
        ({"assistants": [{"model": "a", "classes": "same"}]}, r"assistants\.0: an assistant .*: leave classes out"),
        ({"optimizer": {"nesterov": True, "momentum": 0}}, r"^test: optimizer: nesterov needs a momentum above 0$"),
        ({1: 2}, r"^test: 1: keys should be strings"),
        ({"runs": {"a/b": {}}}, r"'a/b' is no name for a run"),
        ({"runs": {"..": {}}}, r"'\.\.' is no name for a run"),
        ({"runs": {"": {}}}, r"'' is no name for a run"),
        ({"runs": {"a": {"epohcs": 3}}}, r"^test: runs\.a: unknown setting 'epohcs': did you mean 'epochs'\?$"),
        ({"runs": {"a b": {}, "a_b": {}}}, r"runs 'a b' and 'a_b' would share a folder"),
        *[
            ({"runs": {"a": {key: None}}}, rf"^test: runs\.a cannot have its own '{key}': it is one for the whole")
            for key in ("data", "teacher", "precision", "out", "name", "runs")
        ],
        ({"teacher": {"model": "resnet8", "train": {"data": {}}}}, r"teacher\.train cannot have its own 'data'"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(UserError, match=message) as error:
        make_recipe({**BASE, **settings}, "test")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["a: [", "- 1", "5", "", "x: 2024-13-45", "a: !!python/object/apply:os.system [x]", b"a: \xff", "\0", "a:\n\tb: 1"],
)
def test_what_is_no_recipe_at_all(write, text):
    path = write(text)
    with pytest.raises(UserError, match=r"mine\.yaml: (not readable as YAML|a recipe is a YAML mapping)") as error:
        load_recipe(path)
    assert "\n" not in str(error.value)


def test_a_recipe_that_may_not_be_read_is_said_so(write, monkeypatch):
    from pathlib import Path

    path = write("data: {path: x}\nstudent: resnet8")

    def refuse(self, *args, **settings):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)  # permissions themselves do not bind root
    with pytest.raises(UserError, match=r"mine\.yaml: cannot be read: Permission denied$"):
        load_recipe(path)


@pytest.mark.parametrize("name", ["quickstrat", "no/such.yaml", "x" * 5000, "a\0b", "."])
def test_an_unknown_recipe_proposes_a_known_one(name):
    with pytest.raises(UserError, match=r"no recipe .*neither a file nor one of kdstream's \(.*quickstart"):
        load_recipe(name)


# --- overrides


def test_overrides_replace_add_and_open_groups(write):
    path = write("data: {path: x}\nstudent: resnet8\nloss: {ce: 1, kd: 2}\nteacher: {model: resnet56, train: {}}")
    made = load_recipe(
        path,
        [
            "epochs=3",
            "optimizer.lr=0.5",
            "student.options.width=2",
            "loss.kd.temperature=3",
            "data.val=test",
            "schedule.milestones=[1, 2]",
            "teacher.train.epochs=5",
        ],
    )
    assert (made.epochs, made.optimizer.lr, made.optimizer.momentum) == (3, 0.5, 0.9)
    assert (made.student.model, made.student.options) == ("resnet8", {"width": 2})
    assert made.loss == {"ce": 1, "kd": {"weight": 2, "temperature": 3}}
    assert (made.data.path, made.data.val, made.schedule.milestones) == ("x", "test", [1, 2])
    assert made.teacher.train == {"epochs": 5}


def test_the_last_override_counts(write):
    path = write("data: {path: x}\nstudent: resnet8")
    assert load_recipe(path, ["epochs=3", "epochs=4"]).epochs == 4
    assert load_recipe(path, ["loss=kd", "loss.kd.temperature=2"]).loss == {"kd": {"weight": 1.0, "temperature": 2}}
    assert load_recipe(path, ["loss={my.mod:Term: 2}"]).loss == {"my.mod:Term": 2}
    assert load_recipe(path, ["stream=decode | a=b"]).stream == "decode | a=b"


def test_another_network_keeps_the_rest_of_its_group(write):
    path = write(
        "data: {path: x}\nstudent: {model: resnet8, taps: {a: layer1}}\nteacher: {model: a, train: {epochs: 2}}"
    )
    made = load_recipe(path, ["student=resnet20", "teacher=resnet56"])
    assert (made.student.model, made.student.taps) == ("resnet20", {"a": "layer1"})
    assert (made.teacher.model, made.teacher.train) == ("resnet56", {"epochs": 2})
    loaded = load_recipe(path, ["teacher=t.pth"]).teacher
    assert (loaded.model, loaded.weights, loaded.train) == ("a", "t.pth", None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", r"^'epochs' is no override: write key=value"),
        ("=3", r"^'=3' is no override"),
        ("epochs=[", r"^'epochs=\[': the value is not readable as YAML"),
        ("epochs=2024-13-45", r"^'epochs=2024-13-45': the value is not readable as YAML"),
        ("epohcs=3", r"^mine\.yaml: unknown setting 'epohcs': did you mean 'epochs'\?"),
        ("epochs.x=3", r"^'epochs\.x=3': epochs is not a group of settings"),
        ("stream.x=3", r"^'stream\.x=3': stream is not a group of settings"),
        ("optimizer..lr=3", r"unknown setting 'optimizer\.'"),
        ("epochs=", r"epochs: .*; it is None"),
    ],
)
def test_bad_overrides_are_named(write, override, message):
    with pytest.raises(UserError, match=message) as error:
        load_recipe(write("data: {path: x}\nstudent: resnet8\nepochs: 2\nstream: decode"), [override])
    assert "\n" not in str(error.value)


def test_what_is_changed_gets_a_folder_of_its_own(write):
    path = write("data: {path: x}\nstudent: resnet8")

    def folder(*overrides):
        return load_recipe(path, overrides).folder().as_posix()

    assert folder() == "runs/mine"
    assert folder("workers=0", "tensorboard=false", "checkpoint_seconds=3", "eval_batch_size=7") == "runs/mine"
    assert folder("epochs=3") == "runs/mine,epochs=3"
    assert folder("loss=kd", "epochs=3") == folder("epochs=3", "loss=kd") == "runs/mine,epochs=3_loss=kd"
    assert folder("epochs=3", "out=here") == "here"
    assert folder("name=other") == "runs/other"
    assert folder("data.path=/a/../b").count("/") == 1
    long = [f"student.options.a{i}=1" for i in range(40)]
    assert len(folder(*long)) < 60
    assert folder(*long) != folder(*long[1:])


# --- runs and variants


def test_runs_replace_settings_of_the_recipe():
    made = recipe(
        loss={"ce": 1, "kd": 2},
        optimizer={"lr": 0.5},
        runs={"alone": {"loss": "ce"}, "slow": {"optimizer": {"lr": 0.1}}},
    )
    alone = made.variant(made.runs["alone"], "alone", "test")
    slow = made.variant(made.runs["slow"], "slow", "test")
    assert (alone.name, alone.loss, alone.optimizer.lr, alone.runs) == ("alone", {"ce": 1.0}, 0.5, {})
    assert (slow.loss, slow.optimizer.lr, slow.optimizer.momentum) == ({"ce": 1, "kd": 2}, 0.1, 0.9)
    assert (
        made.variant({}, "x", "test").fingerprint()
        == recipe(loss={"ce": 1, "kd": 2}, optimizer={"lr": 0.5}).fingerprint()
    )


def test_a_run_keeps_its_place_in_the_output_folder():
    assert run_folder("labels only") == "labels_only"


def test_merge_goes_deep_but_for_the_loss():
    base = {"a": {"x": 1, "y": {"z": 2}}, "loss": {"ce": 1}, "k": 1}
    over = {"a": {"y": {"w": 3}}, "loss": {"kd": 1}, "k": {"deep": 1}}
    assert merge(base, over) == {"a": {"x": 1, "y": {"z": 2, "w": 3}}, "loss": {"kd": 1}, "k": {"deep": 1}}
    assert base == {"a": {"x": 1, "y": {"z": 2}}, "loss": {"ce": 1}, "k": 1}


# --- fingerprint and YAML

FREE = {"name": "n", "out": "o", "workers": 7, "eval_batch_size": 3, "checkpoint_seconds": 9.0, "tensorboard": False}
DECIDING = {
    "data": {"path": "other"},
    "teacher": "resnet56",
    "assistants": "resnet14",
    "student": "resnet20",
    "stream": "decode",
    "eval_stream": "decode",
    "loss": "kd",
    "epochs": 9,
    "batch_size": 9,
    "seed": 9,
    "accumulate": 2,
    "precision": "bf16",
    "channels_last": True,
    "compile": True,
    "optimizer": {"lr": 9},
    "schedule": {"warmup": 9},
    "export": "best",
    "export_all": True,
}


def test_the_fingerprint_changes_with_everything_that_decides_the_result():
    assert {*FREE, *DECIDING, "runs"} == set(Recipe.model_fields), "a new setting: does it decide the result?"
    plain = recipe().fingerprint()
    assert all(recipe(**{key: value}).fingerprint() == plain for key, value in FREE.items())
    assert len({plain, *(recipe(**{key: value}).fingerprint() for key, value in DECIDING.items())}) == 1 + len(DECIDING)
    assert len(plain) == 16


names = st.text("abcdefgh_", min_size=1, max_size=6)
numbers = st.floats(0, 100) | st.integers(0, 100)
settings = st.fixed_dictionaries(
    {"student": names, "data": st.fixed_dictionaries({"path": names})},
    optional={
        "teacher": st.fixed_dictionaries({"model": names}, optional={"mean": st.tuples(*[st.floats(0, 1)] * 3)}),
        "loss": st.dictionaries(names, numbers | st.none() | st.dictionaries(names, numbers, max_size=2), min_size=1),
        "epochs": st.integers(1, 300),
        "precision": st.sampled_from(["no", "bf16", "fp16"]),
        "optimizer": st.fixed_dictionaries({"lr": st.floats(1e-6, 10), "clip": st.none() | st.floats(0.1, 9)}),
        "schedule": st.fixed_dictionaries({"milestones": st.lists(st.integers(1, 99), max_size=3)}),
        "runs": st.dictionaries(names, st.fixed_dictionaries({"loss": st.dictionaries(names, numbers, min_size=1)})),
        "out": names,
        "tensorboard": st.booleans(),
    },
)


def test_settings_that_came_later_leave_fingerprints_as_they_were():
    base = {"data": {"path": "shards/digits"}, "student": "resnet8"}
    teacher = {"teacher": {"model": "resnet14", "train": {"epochs": 3}}, "assistants": ["resnet8"], "loss": {"kd": 1}}
    assert make_recipe(base, "t").fingerprint() == "fa141c2fa61dd176"
    assert make_recipe({**base, **teacher}, "t").fingerprint() == "0825109f046dafe1"
    loaded = {"teacher": {"weights": "a/b"}, "loss": {"kd": 1}}
    wanted = [
        {**base, **loaded},
        {**base, **loaded, "teacher": {"weights": "a/b", "classes": "same"}},
        {**base, **loaded, "teacher": {"weights": "a/b", "classes": [1, 0]}},
        {**base, **loaded, "data": {"path": "shards/digits", "num_classes": 12}},
    ]
    assert len({make_recipe(one, "t").fingerprint() for one in wanted}) == len(wanted)


@given(settings)
def test_a_recipe_as_yaml_is_the_same_recipe(given_settings):
    made = make_recipe(given_settings, "test")
    again = make_recipe(yaml.safe_load(made.to_yaml()), "again")
    assert again == made
    assert again.fingerprint() == made.fingerprint()


@given(st.recursive(st.none() | st.booleans() | numbers | names, lambda c: st.lists(c) | st.dictionaries(names, c)))
@hypothesis.example({"data": {"path": "x"}, "student": "a", "runs": {"a": {"student": {"taps": None}}}})
@hypothesis.example({"data": {"path": "x"}, "student": "a", "teacher": {"train": {"loss": 3}}})
def test_whatever_stands_in_a_file_it_is_a_recipe_or_a_users_error(content):
    for key in ("", *Recipe.model_fields):
        given_settings = {key: content} if key else content if isinstance(content, dict) else {}
        with contextlib.suppress(UserError):
            make_recipe({**BASE, **given_settings}, "x")


@pytest.mark.parametrize("name", [str(p.relative_to(RECIPES).with_suffix("")) for p in sorted(RECIPES.rglob("*.yaml"))])
def test_every_recipe_of_kdstream_is_in_order(name):
    from kdstream.training.job import Job, check

    made = load_recipe(name)
    assert made.name == name
    for run, over in (made.runs or {"": {}}).items():
        check(made.variant(over, run, name))
    teaching = Job(made, None, None)._teacher_recipe()
    if teaching is not None:
        check(teaching)
