"""Recipes: YAML and overrides become checked settings, and every mistake is one line that names the cure."""

from __future__ import annotations

import contextlib

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdstream.errors import UserError
from kdstream.recipe import Recipe, make_recipe, merge, run_folder
from kdstream.safe_yaml import parse_yaml

BASE = {"data": {"path": "shards/x"}, "student": "resnet8"}


def recipe(**settings):
    return make_recipe({**BASE, **settings}, "test")


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
        ("published:wrn_40_2@cifar100", None, "published:wrn_40_2@cifar100"),
    ],
)
def test_a_network_in_one_word_is_a_model_or_a_file(text, model, weights):
    made = recipe(teacher=text, student=text)
    for part in (made.teacher, made.student):
        assert (part.model, part.weights) == (model, weights)


def test_several_teachers_in_a_list():
    made = recipe(teacher=["a.pth", {"model": "resnet56", "train": {"epochs": 3}}, "published:wrn_40_2@cifar100"])
    each = made.teacher.each()
    assert [one.weights for one in each] == ["a.pth", None, "published:wrn_40_2@cifar100"]
    assert [one.others for one in each] == [None] * 3
    assert each[1].train == {"epochs": 3}
    assert make_recipe(parse_yaml(made.to_yaml(), "again"), "again").fingerprint() == made.fingerprint()
    one = recipe(teacher=["a.pth"])
    assert one.fingerprint() == recipe(teacher="a.pth").fingerprint() != made.fingerprint()
    tokens = [recipe(teacher=["a.pth", f"https://host/b.pth?token={one}"]).fingerprint() for one in "xy"]
    assert tokens[0] == tokens[1]
    with pytest.raises(UserError, match="teacher: the list of teachers is empty"):
        recipe(teacher=[])
    with pytest.raises(UserError, match=r"unknown setting 'teacher\.others\.0\.modle': did you mean 'model'"):
        recipe(teacher=["a.pth", {"modle": "resnet8"}])


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
                ([True, 1], "; True is neither .*in quotes"),
                ([0.0], "; 0.0 is neither"),
                ({"a": 1}, "as "),
            )
        ],
        (
            {"teacher": {"model": "a", "train": {}, "classes": [0]}},
            r"teacher: classes says which outputs of given weight",
        ),
        ({"teacher": {"model": "a", "seeds": 3}}, r"teacher: seeds says how many are trained to choose from"),
        ({"assistants": [{"model": "a", "classes": "same"}]}, r"assistants\.0: an assistant .*: leave classes out"),
        ({"optimizer": {"nesterov": True, "momentum": 0}}, r"^test: optimizer: nesterov needs a momentum above 0$"),
        ({"schedule": {"start_factor": 0.1}}, r"^test: schedule: start_factor is where a warm-up begins"),
        ({"schedule": {"end_factor": 0.1}}, r"^test: schedule: end_factor is where a cosine ends, .* is step$"),
        ({"ema": 1}, r"ema: .*less than 1; it is 1$"),
        ({"export_network": "ema"}, r"^test: export_network: there is no average of the weights: .* as ema: 0\.9999$"),
        ({1: 2}, r"^test: the key 1 is no text, put it in quotes$"),
        ({"runs": {"a/b": {}}}, r"'a/b' is no name for a run"),
        ({"runs": {"..": {}}}, r"'\.\.' is no name for a run"),
        ({"runs": {"": {}}}, r"'' is no name for a run"),
        ({"runs": {"a": {"epohcs": 3}}}, r"^test: runs\.a: unknown setting 'epohcs': did you mean 'epochs'\?$"),
        ({"runs": {"a b": {}, "a_b": {}}}, r"runs 'a b' and 'a_b' would share a folder"),
        *[
            ({"runs": {"a": {key: None}}}, rf"^test: runs\.a cannot have its own '{key}': it is one for the whole")
            for key in ("data", "teacher", "precision", "out", "name", "runs", "seeds")
        ],
        ({"seeds": 2, "runs": {"a": {"seed": 1}}}, r"^test: runs\.a cannot have its own 'seed': seeds gives all runs"),
        *[
            (
                {"seeds": value},
                r"^test: seeds: it is how many, as 5, or a list of whole numbers, as \[0, 1, 2\]; it is ",
            )
            for value in (0, True, [], [1.5], ["a"], "many")
        ],
        ({"seeds": [1, 1]}, r"^test: seeds: a seed stands there twice"),
        (
            {"teacher": {"model": "resnet8", "train": {"data": {"path": "y"}}}},
            r"teacher\.train cannot have its own 'data'",
        ),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(UserError, match=message) as error:
        make_recipe({**BASE, **settings}, "test")
    assert "\n" not in str(error.value)


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


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    data = {"path": "~/shards", "source": "imagefolder:~/birds"}
    made = make_recipe({"data": data, "student": "~/a.pth", "out": "~/runs"}, "test")
    assert (made.data.path, made.data.source) == ("/home/me/shards", "imagefolder:/home/me/birds")
    assert (made.student.weights, made.folder().as_posix()) == ("/home/me/a.pth", "/home/me/runs")


def test_merge_goes_deep_but_for_the_loss():
    base = {"a": {"x": 1, "y": {"z": 2}}, "loss": {"ce": 1}, "k": 1}
    over = {"a": {"y": {"w": 3}}, "loss": {"kd": 1}, "k": {"deep": 1}}
    assert merge(base, over) == {"a": {"x": 1, "y": {"z": 2, "w": 3}}, "loss": {"kd": 1}, "k": {"deep": 1}}
    assert base == {"a": {"x": 1, "y": {"z": 2}}, "loss": {"ce": 1}, "k": 1}


# --- fingerprint and YAML

UNDECIDING = {
    "name": "n",
    "out": "o",
    "workers": 7,
    "cache": "off",
    "eval_batch_size": 3,
    "checkpoint_gradients": True,
    "checkpoint_seconds": 9.0,
    "track": ["wandb"],
    "tensorboard": True,
}
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
    "eval_every": 2,
    "early_stop": {"patience": 3},
    "relations": "local",
    "sync_batchnorm": True,
    "precision": "bf16",
    "channels_last": True,
    "compile": True,
    "optimizer": {"lr": 9},
    "schedule": {"warmup": 9},
    "ema": 0.9,
    "export": "best",
    "export_network": "best",
    "export_all": True,
}


def test_fingerprints_are_those_of_the_versions_before():
    """Settings that came later change none at their defaults; what was trained before is found again."""
    base = {"data": {"path": "x"}, "student": "resnet8"}
    expected = {"no": "cd2d39e96d7009a0", "bf16": "f5fd49e808a98769"}
    assert {one: make_recipe({**base, "precision": one}, "t").fingerprint() for one in expected} == expected
    assert make_recipe(base, "t").fingerprint() == expected["no"]
    cohort = make_recipe({**base, "loss": {"dml": {}}, "export_all": True, "epochs": 3}, "t")
    assert cohort.fingerprint() == "602d33c3f3867a2b"


def test_the_fingerprint_changes_with_everything_that_decides_the_result():
    assert {*UNDECIDING, *DECIDING, "runs", "seeds"} == set(Recipe.model_fields), (
        "a new setting: does it decide the result?"
    )
    plain = recipe().fingerprint()
    assert all(recipe(**{key: value}).fingerprint() == plain for key, value in UNDECIDING.items())
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
        "precision": st.sampled_from([None, "no", "bf16", "fp16"]),
        "optimizer": st.fixed_dictionaries({"lr": st.floats(1e-6, 10), "clip": st.none() | st.floats(0.1, 9)}),
        "schedule": st.fixed_dictionaries({"milestones": st.lists(st.integers(1, 99), max_size=3)}),
        "runs": st.dictionaries(names, st.fixed_dictionaries({"loss": st.dictionaries(names, numbers, min_size=1)})),
        "out": names,
        "track": st.lists(st.sampled_from(["wandb", "my_pkg:Tracker"])),
        "tensorboard": st.booleans(),
    },
)


# --- addresses


def test_what_gives_access_to_an_address_is_neither_kept_nor_shown():
    secret = "https://me:SECRET@host.org/a.pth?token=SECRET"
    made = recipe(teacher=secret, student={"model": "resnet8", "weights": secret}, runs={"a": {"student": secret}})
    assert made.teacher.weights == made.student.weights == secret
    assert "SECRET" not in made.to_yaml()
    assert made.shown()["teacher"]["weights"] == made.shown()["student"]["weights"] == "https://host.org/a.pth"
    assert made.runs["a"]["student"] == secret


def test_a_new_token_is_no_other_training_but_another_students_weights_are():
    def of(teacher, student="https://host/s.pth"):
        return recipe(teacher=teacher, student={"model": "resnet8", "weights": student}).fingerprint()

    plain = of("https://host/a.pth")
    assert plain == of("https://me:secret@host/a.pth?token=1") == of("https://host/a.pth?token=2")
    assert plain != of("https://host/b.pth")
    assert plain == of("https://host/a.pth", "https://me:secret@host/s.pth")
    assert len({plain, *(of("https://host/a.pth", f"https://host/s.pth?id={i}") for i in range(2))}) == 3


def test_data_behind_an_address_is_known_without_its_password_and_is_not_made():
    places = ["https://me:secret@host/birds?token=secret", "https://host/birds"]
    first, second = (recipe(data={"path": place}) for place in places)
    assert first.fingerprint() == second.fingerprint()
    assert "secret" not in first.to_yaml()
    with pytest.raises(UserError, match=r"data: path is an address \(s3://bucket/birds\), and shards are made in a"):
        recipe(data={"path": "s3://bucket/birds", "source": "digits"})
    with pytest.raises(UserError, match="order: sequential reads the shards as they are"):
        recipe(data={"path": "a", "order": "sequential", "label_noise": 0.1})
    with pytest.raises(UserError, match="on_error is stop, skip, or skip"):
        recipe(data={"path": "a", "on_error": "never"})
    skipping = recipe(data={"path": "a", "on_error": "skip"})
    assert skipping.fingerprint() == recipe(data={"path": "a"}).fingerprint()
    assert skipping.fingerprint() != recipe(data={"path": "a", "order": "sequential"}).fingerprint()


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
    again = make_recipe(parse_yaml(made.to_yaml(), "again:"), "again")
    assert again == made
    assert again.fingerprint() == made.fingerprint()


anything = st.recursive(
    st.none() | st.booleans() | numbers | st.text() | st.sampled_from([float("nan"), 10**30, (1, 2), {1}, b"x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(settings, anything, anything, anything)
def test_a_variant_without_changes_keeps_every_field(given_settings, options, of_term, over):
    """Whatever stands where anything may stand: it is kept to the letter, or refused."""
    given_settings = {
        **given_settings,
        "student": {"model": "a", "options": {"deep": options}},
        "loss": {"kd": of_term},
        "assistants": [{"model": "b", "train": {"loss": {"kd": of_term}}}],
        "runs": {"one": {"student": {"options": {"other": over}}}},
    }
    with contextlib.suppress(UserError):
        made = make_recipe(given_settings, "test")
        assert made.variant({}, made.name, "test") == made.model_copy(update={"runs": {}})
        again = make_recipe(parse_yaml(made.to_yaml(), "again:"), "again")
        assert again == made
        assert again.fingerprint() == made.fingerprint()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), True, "nan", "1e999"])
@pytest.mark.parametrize(
    ("group", "key"),
    [
        *[("optimizer", key) for key in ("lr", "momentum", "weight_decay", "clip")],
        *[("schedule", key) for key in ("gamma", "warmup", "milestones")],
        *[(group, key) for group in ("data", "teacher") for key in ("mean", "std")],
        *[("", key) for key in ("epochs", "batch_size", "seed", "accumulate", "workers", "eval_batch_size")],
        ("", "checkpoint_seconds"),
    ],
)
def test_numbers_are_finite_and_no_switches(group, key, bad):
    value = [0.5, bad, 0.5] if key in ("mean", "std") else [1, bad] if key == "milestones" else bad
    rest = {"data": {"path": "x"}, "teacher": {"model": "resnet8"}}.get(group, {})
    settings = {group: {**rest, key: value}} if group else {key: value}
    with pytest.raises(UserError, match=rf"^test: {f'{group}.{key}'.strip('.')}"):
        make_recipe({**BASE, **settings}, "test")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "path",
    [
        "loss.kd",
        "loss.kd.weight",
        "loss.kd.temperature",
        "student.options.width.0.deep",
        "teacher.train.loss.kd",
        "teacher.train.optimizer.lr",
        "assistants.0.train.loss.kd.weight",
        "runs.a.loss.kd",
        "runs.a.optimizer.lr",
        "runs.a.student.options.drop",
    ],
)
def test_what_is_no_finite_number_is_refused_with_its_place(path, bad):
    settings = {**BASE, "student": {"model": "a"}, "teacher": {"model": "b"}, "assistants": [{"model": "c"}]}
    inner = settings
    *way, last = path.split(".")
    for key, after in zip(way, [*way[1:], last], strict=True):
        if isinstance(inner, list):
            inner = inner[0]
            continue
        inner = inner.setdefault(key, [{}] if after.isdigit() else {})
    if isinstance(inner, list):
        inner = inner[0]
    inner[last] = bad
    with pytest.raises(UserError, match=rf"^test: {path}: {bad} is no finite number$"):
        make_recipe(settings, "test")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"data": {"path": "x", "mean": [125.3, 122.9, 113.9]}},
            r"^test: data\.mean\.0: .*less than or equal to 1; it is 125\.3$",
        ),
        ({"data": {"path": "x", "std": [0, 0.2, 0.2]}}, r"^test: data\.std\.0: .*greater than 0; it is 0$"),
        ({"seed": 2**64}, r"^test: seed: the number is too large"),
        ({"epochs": 2**40}, r"^test: epochs: .*less than or equal to 2147483647"),
        ({"name": "a\x1b[31m"}, r"^test: name: the text 'a\\x1b\[31m' holds a control character$"),
        ({"data": {"path": "a\0b"}}, r"^test: data\.path: .* holds a control character$"),
        ({"student": {"model": "a", "options": {"k": {1: 2}}}}, r"^test: student\.options\.k: the key 1 is no text"),
        (
            {"loss": {True: 1}},
            r"^test: loss: the key True is no text, put it in quotes: YAML reads yes, no, on and off so$",
        ),
        ({"loss": {"MyTerm": 3}, "schedule": {"name": "Cosine"}}, r"schedule\.name: .*it is 'Cosine'"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        make_recipe({**BASE, **settings}, "test")


@given(st.recursive(st.none() | st.booleans() | numbers | names, lambda c: st.lists(c) | st.dictionaries(names, c)))
@hypothesis.example({"data": {"path": "x"}, "student": "a", "runs": {"a": {"student": {"taps": None}}}})
@hypothesis.example({"data": {"path": "x"}, "student": "a", "teacher": {"train": {"loss": 3}}})
def test_whatever_stands_in_a_file_it_is_a_recipe_or_a_users_error(content):
    for key in ("", *Recipe.model_fields):
        given_settings = {key: content} if key else content if isinstance(content, dict) else {}
        with contextlib.suppress(UserError):
            make_recipe({**BASE, **given_settings}, "x")
