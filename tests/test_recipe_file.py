"""Recipe files: names, files and the bases they build on, overrides; every mistake is one line that names the cure."""

from __future__ import annotations

import pytest

from kdstream.errors import UserError
from kdstream.recipe import make_recipe
from kdstream.recipe_file import find_recipe, is_table, known_recipes, lay, load_recipe, read_recipe, with_bases
from kdstream.stream.language import parse_calls


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_yaml_peculiarities(write):
    text = "data: {path: x}\nstudent: resnet8\nprecision: no\noptimizer: {lr: 1e-2}\nloss: kd\n"
    made = load_recipe(write(text))
    assert (made.precision, made.optimizer.lr, made.loss, made.name) == ("no", 0.01, {"kd": 1.0}, "mine")


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

    monkeypatch.setattr(Path, "open", refuse)  # permissions themselves do not bind root
    with pytest.raises(UserError, match=r"mine\.yaml: cannot be read: Permission denied$"):
        load_recipe(path)


def test_yaml_files_have_bounds_and_lines(write, tmp_path):
    base = "data: {path: x}\nstudent: resnet8\n"
    bomb = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 10)}]" for i in range(9))
    for text, message in (
        (base + bomb, "line 7: more than 100000 values, aliases written out"),
        (base + "epochs: 1\nepochs: 2\n", "line 4: 'epochs' stands there twice, first in line 3"),
        (base + "loss:\n  kd: {temperature: 0040}\n", "line 4: 0040 would be read in base 8"),
    ):
        with pytest.raises(UserError, match=f"mine.yaml: not readable as YAML: {message}"):
            load_recipe(write(text))
    with pytest.raises(UserError, match=r"is no regular file"):
        load_recipe(str(tmp_path))
    with pytest.raises(
        UserError, match=r"^'student\.options=.*: the value is not readable as YAML: line 5: more than 100000"
    ):
        load_recipe(write(base), ["student.options=" + bomb])


@pytest.mark.parametrize("name", ["quickstrat", "no/such.yaml", "x" * 5000, "a\0b", "."])
def test_an_unknown_recipe_proposes_a_known_one(name):
    with pytest.raises(UserError, match=r"no recipe .*neither a file nor one of kdstream's \(.*quickstart"):
        load_recipe(name)


def settings_of(name):
    return read_recipe(find_recipe(name))


@pytest.mark.parametrize("name", [name for name in known_recipes() if not is_table(settings_of(name))])
def test_every_recipe_of_kdstream_is_in_order(name):
    """Settings, of which recipes are made, with what they leave open."""
    from kdstream.training.checks import check
    from kdstream.training.job import teacher_recipe

    settings = with_bases(settings_of(name), find_recipe(name))
    if name.startswith("settings/"):
        coded = settings.pop("coded", None)
        settings = lay({"data": {"path": "x"}, "student": "resnet8", "teacher": {"model": "resnet14"}}, settings)
        assert coded is None or [call.name for call in parse_calls(coded)] == ["coded"]
    made = make_recipe({"name": name, **settings}, name)
    for run, over in (made.runs or {"": {}}).items():
        check(made.variant(over, run, name))
    teaching = teacher_recipe(made)
    if teaching is not None:
        check(teaching)


# --- bases


def test_bases_are_laid_over_each_other_and_the_recipe_comes_last(write, tmp_path):
    write(
        "epochs: 9\noptimizer: {lr: 1, momentum: 0.5}\ncoded: coded(hkl)\nloss: {ce: 1, kd: 2}\nname: first", "a.yaml"
    )
    (tmp_path / "deep").mkdir()
    write("base: ../a\nbatch_size: 7\nteacher: {train: {loss: ce}}\nstudent: {taps: {x: layer1}}", "deep/b.yaml")
    write("optimizer: {lr: 3}\nepochs: 8", "c.yaml")
    path = write("base: [deep/b, c.yaml]\ndata: {path: x}\nstudent: resnet8\nteacher: resnet14\nloss: kd")
    made = load_recipe(path, ["batch_size=6"])
    assert (made.epochs, made.optimizer.lr, made.optimizer.momentum, made.batch_size) == (8, 3, 0.5, 6)
    assert (made.loss, made.name) == ({"kd": 1.0}, "mine")
    assert (made.teacher.model, made.teacher.train) == (
        "resnet14",
        {"loss": "ce", "batch_size": 7},
    )  # as the file has it
    assert (made.student.model, made.student.taps) == ("resnet8", {"x": "layer1"})


def test_a_recipe_on_a_base_is_the_recipe_that_says_it_all(write):
    write("epochs: 3\nstudent: resnet8", "a.yaml")
    short = load_recipe(write("base: a\ndata: {path: x}", "short.yaml"))
    long = load_recipe(write("epochs: 3\nstudent: resnet8\ndata: {path: x}", "long.yaml"))
    assert short.fingerprint() == long.fingerprint()
    assert load_recipe(write("base: quickstart\nepochs: 1", "q.yaml")).teacher.model == "resnet14"


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nowhere", r"^mine\.yaml: base: no file 'nowhere' beside it, nor one of kdstream's \("),
        ("quickstrat", r"did you mean 'quickstart'\?\)$"),
        ("a", r"base goes round in a circle: a -> b -> a$"),
        ("mine", r"^mine\.yaml: base goes round in a circle: mine -> mine$"),
        ("t", r"base: 't' is a table, no recipe to build on$"),
        ("{a: 1}", r"base: it is a list of recipes, as"),
        ("[1]", r"base: it is a list of recipes, as"),
        ("list", r"list\.yaml: a recipe is a YAML mapping"),
    ],
)
def test_mistakes_in_bases(write, base, message):
    write("base: b", "a.yaml")
    write("base: [a]", "b.yaml")
    write("paper: ckd", "t.yaml")
    write("- 1", "list.yaml")
    with pytest.raises(UserError, match=message) as error:
        load_recipe(write(f"base: {base}\ndata: {{path: x}}\nstudent: resnet8"))
    assert "\n" not in str(error.value)


def test_neither_a_table_nor_the_keys_of_files_are_a_recipes(write):
    with pytest.raises(UserError, match=r"mine\.yaml' is a table of many recipes: `kdstream table"):
        load_recipe(write("paper: ckd\nplace: table 5"))
    with pytest.raises(UserError, match=r"unknown setting 'coded'"):
        load_recipe(write("data: {path: x}\nstudent: resnet8\ncoded: coded(hkl)"))
    with pytest.raises(UserError, match=r"unknown setting 'base'"):
        load_recipe(write("data: {path: x}\nstudent: resnet8"), ["base=quickstart"])


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
    assert made.teacher.train["epochs"] == 5


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


def test_published_weights_say_their_network_and_keep_what_stands_in_for_them(write):
    path = write("data: {path: x}\nstudent: resnet8\nteacher: {model: a, options: {b: 1}, train: {epochs: 2}}")
    made = load_recipe(path, ["teacher=published:a@b"]).teacher
    assert (made.model, made.weights, made.options, made.train) == (None, "published:a@b", {}, {"epochs": 2})
    made = load_recipe(path, ["teacher=published:a@b", "teacher=resnet20"]).teacher
    assert (made.model, made.weights, made.train) == ("resnet20", None, {"epochs": 2})
    made = load_recipe(path, ["teacher=published:a@b", "teacher=t.pth"]).teacher
    assert (made.weights, made.train) == ("t.pth", None)
    made = load_recipe(path, ["student=published:a@b", "student.taps.c=d"]).student
    assert (made.weights, made.taps) == ("published:a@b", {"c": "d"})


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
        ("optimizer..lr=3", r"^'optimizer\.\.lr=3' is no override: a dot stands between two names"),
        (".lr=3", r"^'\.lr=3' is no override: a dot stands between"),
        ("optimizer.=3", r"^'optimizer\.=3' is no override: a dot stands between"),
        ("epochs=", r"^'epochs=' has no value: write epochs=null to clear it$"),
        ("loss.kd.weight=", r"^'loss\.kd\.weight=' has no value"),
        ("loss.kd=  ", r"^'loss\.kd=  ' has no value"),
        ("epochs=null", r"epochs: .*; it is None"),
        ("epochs=true", r"^mine\.yaml: epochs: input should be a number, not true or false; it is True$"),
        ("loss.kd.weight=.nan", r"^mine\.yaml: loss\.kd\.weight: nan is no finite number$"),
        ("loss={ce: 1, kd: -.inf}", r"^mine\.yaml: loss\.kd: -inf is no finite number$"),
        ("loss.kd.weight=1.0e+999", r"the value is not readable as YAML: the number 1\.0e\+999 is too large$"),
        ("optimizer.lr=1e999", r"^mine\.yaml: optimizer\.lr: .*finite.*; it is '1e999'$"),
        ("seed=0777", r"0777 would be read in base 8: quote it \('0777'\) or write it out$"),
        ("seed=1:30", r"1:30 would be read in base 60"),
        ("name=2024-01-01", r"2024-01-01 would be read as a date: quote it"),
        ("name=no", r"^mine\.yaml: name: .*; it is False: put it in quotes; YAML reads yes, no, on and off so$"),
        ("student.options={a: 1, a: 2}", r"'a' stands there twice, first in line 1$"),
        ("student.options.größe\x07=3", r"holds a control character"),
        ("data.path=\udcff", r"(cannot be written in UTF-8|is not allowed)$"),
        (f"{'a.' * 20000}b=1", r"^'(a\.)+\.\.[a.]+b=1' is no override"),
        (f"{'a' * 20000}=1", r"unknown setting"),
        (f"student.options.a={'9' * 20000}", r"the number 9+\.\.\. is too large$"),
        (f"student.options.a={'[' * 20000}", r"lists or groups in each other, more than 50 levels deep$"),
    ],
)
def test_bad_overrides_are_named(write, override, message):
    with pytest.raises(UserError, match=message) as error:
        load_recipe(write("data: {path: x}\nstudent: resnet8\nepochs: 2\nstream: decode"), [override])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_data_in_one_word_is_its_path(write):
    text = "student: resnet8\ndata: shards/birds\n"
    made = load_recipe(write(text), ["data.val=test"])
    assert (made.data.path, made.data.val) == ("shards/birds", "test")
    write(text, "birds.yaml")
    assert load_recipe(write("base: birds\ndata: {val: test}")).data == made.data


def test_an_export_says_which_network_the_teacher_is(write, tmp_path):
    path = write("data: x\nstudent: resnet8\nteacher: {model: resnet14, train: {epochs: 3}}")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "student.json").write_text("{}")
    for weights in (tmp_path / "kept", tmp_path / "kept" / "student.safetensors"):
        teacher = load_recipe(path, [f"teacher={weights}"]).teacher
        assert (teacher.weights, teacher.model) == (str(weights), None)
    assert load_recipe(path, [f"teacher={tmp_path}/other.pth"]).teacher.model == "resnet14"


def test_the_students_overrides_train_no_other_teacher(write):
    from kdstream.training.job import teacher_recipe

    text = (
        "data: x\nstudent: resnet8\nteacher: {model: resnet14, train: {optimizer: {lr: 0.1}}}\nloss: kd\nepochs: 9\n"
        "stream: decode | augment(cifar) | coded(hkl)\nschedule: {name: cosine, warmup: 1}\n"
    )

    path = write(text)

    def teacher(*overrides):
        return teacher_recipe(load_recipe(path, overrides)).fingerprint()

    plain = teacher()
    for override in ("student=resnet20", "optimizer.lr=0.01", "optimizer={name: adamw, lr: 0.01}", "batch_size=8"):
        assert teacher(override) == plain
    for override in ("epochs=2", "stream=decode", "loss={ce: 1, at: 100}", "schedule={name: step}", "ema=0.9"):
        assert teacher(override) == plain
    assert teacher("epochs=2", "accumulate=2", "seeds=3", "eval_stream=decode", "optimizer.clip=1") == plain
    for override in ("teacher=resnet20", "data.label_noise=0.1", "seed=3", "teacher.train.epochs=2", "precision=bf16"):
        assert teacher(override) != plain
    made = load_recipe(write(text), ["epochs=2", "teacher.train.epochs=5"])
    assert (made.epochs, teacher_recipe(made).epochs) == (2, 5)
    # The recipe in the results' folder trains the same teacher.
    again = load_recipe(write(load_recipe(write(text), ["epochs=2"]).to_yaml(), "job.yaml"))
    assert teacher_recipe(again).fingerprint() == plain


def test_of_several_teachers_each_is_trained_as_written(write):
    from kdstream.training.job import teacher_recipe

    text = "data: x\nstudent: resnet8\nloss: kd\nepochs: 9\nteacher: [a.pth, {model: resnet14, train: {seed: 3}}]\n"
    for path in (write(text), write(load_recipe(write(text)).to_yaml(), "job.yaml")):
        _, trained = load_recipe(path, ["epochs=2"]).teacher.each()
        assert trained.train["epochs"] == 9
        assert trained.train["seed"] == 3
        made = load_recipe(path, ["epochs=2"])
        assert teacher_recipe(made.model_copy(update={"teacher": trained})).epochs == 9


def test_what_is_changed_gets_a_folder_of_its_own(write):
    path = write("data: {path: x}\nstudent: resnet8")

    def folder(*overrides):
        return load_recipe(path, overrides).folder().as_posix()

    assert folder() == "runs/mine"
    assert folder("workers=0", "track=[wandb]", "checkpoint_seconds=3", "eval_batch_size=7") == "runs/mine"
    assert folder("cache=off") == "runs/mine"
    assert folder("epochs=3") == "runs/mine,epochs=3"
    assert folder("loss=kd", "epochs=3") == folder("epochs=3", "loss=kd") == "runs/mine,epochs=3_loss=kd"
    assert folder("epochs=3", "out=here") == "here"
    assert folder("name=other") == "runs/other"
    assert folder("data.path=/a/../b").count("/") == 1
    long = [f"student.options.a{i}=1" for i in range(40)]
    assert len(folder(*long)) < 60
    assert folder(*long) != folder(*long[1:])
    assert folder(*long).startswith("runs/mine,a0=1,a10=1,a11=1,")  # what was changed first, as far as there is room


@pytest.mark.parametrize(
    "overrides",
    [
        ["teacher=https://host/a.pth?SECRET", "student=resnet8"],
        ["https://me:SECRET@host/a.pth"],
        ["teacher=[https://host/?SECRET"],
        ["epochs=https://host/?SECRET"],
        ["epochs.a.b=https://host/?SECRET"],
    ],
)
def test_secrets_in_overrides(overrides):
    try:
        made = load_recipe("quickstart", overrides)
        assert "SECRET" not in str(made.folder())
        assert "host_a.pth" in str(made.folder())
    except UserError as error:
        assert "SECRET" not in str(error)  # noqa: PT017


def test_a_wrong_setting_of_a_file_has_its_line_and_one_of_an_override_none(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("data: shards\nstudent: resnet8\nloss: ce\n\noptimizer:\n  lr: 0.1\n  momentun: 0.9\n")
    with pytest.raises(UserError, match=r"^r.yaml: line 7: unknown setting 'optimizer.momentun': did you mean 'mome"):
        load_recipe(str(path))
    path.write_text(
        "data: shards\nstudent: resnet8\nloss: ce\nepochs: many\nassistants:\n  - {model: a}\n  - {mode: b}\n"
    )
    with pytest.raises(UserError, match=r"^r.yaml: line 7: unknown setting 'assistants.1.mode'"):
        load_recipe(str(path))
    with pytest.raises(UserError, match=r"^r.yaml: epochs: input should be a valid integer"):
        load_recipe(str(path), ["epochs=few", "assistants=[]"])


def test_what_a_base_says_has_no_line_of_the_file_that_builds_on_it(tmp_path):
    (tmp_path / "base.yaml").write_text("\n\nepochs: many\n")
    path = tmp_path / "r.yaml"
    path.write_text("base: base\ndata: shards\nstudent: resnet8\nloss: ce\n")
    with pytest.raises(UserError, match=r"^r.yaml: epochs: input"):
        load_recipe(str(path))
