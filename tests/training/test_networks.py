"""Students and teachers as recipes describe them: the right weights, or one line that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdstream import recipe as settings
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.export import save_student
from kdstream.models.taps import Tapped
from kdstream.stream.normalize import standardise
from kdstream.training.networks import Converted, make_student, make_teacher, tapped, together

HERE = Path(__file__).stem


def small(num_classes, width=4):
    """Somebody's own network."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, width), nn.Linear(width, num_classes))


def same(one, two):
    return all(value.equal(two.state_dict()[key]) for key, value in one.state_dict().items())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same resnet8 of 10 classes as a plain state dict and as an export; and the weights of a network that nobody
    knows."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(1)
    network = build("resnet8", 10)
    torch.save(network.state_dict(), folder / "plain.pth")
    save_student(folder / "export", network, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    torch.save(small(10).state_dict(), folder / "odd.pth")
    places = {name: str(folder / name) for name in ("plain.pth", "export", "odd.pth")}
    return SimpleNamespace(network=network, **{name.removesuffix(".pth"): place for name, place in places.items()})


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def test_a_named_student_is_fresh_and_follows_the_seed():
    wanted = settings.Model(model="resnet8")
    torch.manual_seed(3)
    one = make_student(wanted, 7)
    torch.manual_seed(3)
    assert same(one, make_student(wanted, 7))
    assert not same(one, make_student(wanted, 7))
    assert one(torch.zeros(1, 3, 8, 8)).shape == (1, 7)


def test_options_reach_the_network(importable):
    network = make_student(settings.Model(model=f"{HERE}:small", options={"width": 9}), 5)
    assert network[2].out_features == 9


def test_weights_are_loaded_from_a_file_and_from_an_export(files):
    for wanted in (
        settings.Model(model="resnet8", weights=files.plain),
        settings.Model(weights=files.plain),
        settings.Model(weights=files.export),
        settings.Model(model="resnet8", weights=files.export),
        settings.Model(weights=f"{files.export}/student.json"),
        settings.Model(weights=f"{files.export}/student.safetensors"),
    ):
        assert same(make_student(wanted, 10), files.network)
        teacher = make_teacher(settings.Teacher(**wanted.model_dump()), 10)
        assert same(teacher.network, files.network)
        assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_a_teacher_brings_its_mean_and_deviation(files):
    exported = make_teacher(settings.Teacher(weights=files.export), 10)
    # tuples: they are compared with the data set's
    assert (exported.mean, exported.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    told = make_teacher(settings.Teacher(weights=files.export, mean=(0.7, 0.7, 0.7)), 10)
    assert (told.mean, told.std) == ((0.7, 0.7, 0.7), (0.4, 0.5, 0.6))
    plain = make_teacher(settings.Teacher(model="resnet8", weights=files.plain), 10)
    assert (plain.mean, plain.std) == (None, None)
    assert plain.hash == exported.hash


def test_several_teachers_answer_as_one(files):
    data = SimpleNamespace(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    paths = [files.export, files.plain]
    several = make_teacher(settings.Teacher.model_validate(paths), 10, data=data)
    images = torch.rand(4, 3, 16, 16)
    alone = [make_teacher(settings.Teacher(weights=path), 10) for path in paths]
    with torch.no_grad():
        found = several.network(standardise(images, several.mean, several.std))
        own = [(one.mean or data.mean, one.std or data.std) for one in alone]
        answers = [one.network(standardise(images, *stats)).softmax(1) for one, stats in zip(alone, own, strict=True)]
    torch.testing.assert_close(found.exp(), (answers[0] + answers[1]) / 2)
    assert several.hash not in [one.hash for one in alone]
    assert make_teacher(settings.Teacher.model_validate(paths[::-1]), 10, data=data).hash != several.hash
    assert make_teacher(settings.Teacher.model_validate(paths[:1]), 10).hash == alone[0].hash
    mapped = settings.Teacher.model_validate([{"weights": files.export, "taps": {"mine": "layer1"}}, files.plain])
    assert tapped(*_first_two(make_teacher(mapped, 10, data=data)))(images).features["mine"].shape[1] == 16
    with pytest.raises(UserError, match=r"nothing says a teacher's mean and std: give them, as teacher.mean"):
        together(alone, None)


def _first_two(teacher):
    return teacher.network, ["mine"], teacher.settings


def test_an_export_without_mean_has_none(tmp_path):
    save_student(tmp_path, build("resnet8", 10))
    teacher = make_teacher(settings.Teacher(weights=str(tmp_path)), 10)
    assert (teacher.mean, teacher.std) == (None, None)


def test_the_hash_is_of_the_weights(tmp_path, files):
    with torch.no_grad():
        other = build("resnet8", 10)
        other.load_state_dict(files.network.state_dict())
        next(other.parameters()).view(-1)[0] += 1e-6
    torch.save(other.state_dict(), tmp_path / "other.pth")
    teachers = [
        make_teacher(settings.Teacher(model="resnet8", weights=path), 10).hash
        for path in (files.plain, str(tmp_path / "other.pth"))
    ]
    assert teachers[0] != teachers[1]


def test_a_json_of_another_kind_beside_a_file_of_weights_is_no_export(files, tmp_path):
    (tmp_path / "net.pth").write_bytes(Path(files.plain).read_bytes())
    (tmp_path / "net.json").write_text("{}")
    wanted = settings.Model(model="resnet8", weights=str(tmp_path / "net.pth"))
    assert same(make_student(wanted, 10), files.network)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"weights": "EXPORT", "classes": 9}, r"^teacher: .*export is for 10 classes, the data has 9"),
        ({"model": "resnet8", "weights": "PLAIN", "classes": 9}, r"plain\.pth is for 10 classes, the data has 9"),
        ({"model": "resnet14", "weights": "EXPORT"}, r"^teacher: .*export is a resnet8, not a resnet14"),
        ({"model": "resnet14", "weights": "PLAIN"}, r"another architecture than resnet14: .*looks like resnet8"),
        ({"weights": "ODD"}, r"^teacher: .*odd\.pth does not say which network it is for .*: name the model"),
        ({"weights": "ftp://host/a.pth"}, r"^teacher\.weights: ftp://host/a\.pth: only http:// and https://"),
        ({}, r"^teacher: no weights: give a folder, a file or an address"),
        ({"model": "resnet8"}, r"teacher resnet8 has no weights: give teacher\.weights=FILE, or teacher\.train"),
        ({"weights": "runs/tpyo"}, r"^teacher\.weights: 'runs/tpyo': no such file or folder$"),
        ({"model": "resnet8", "weights": ""}, r"^teacher\.weights: '': no such file or folder$"),
    ],
)
def test_what_a_teacher_cannot_be(files, teacher, message):
    places = {"EXPORT": files.export, "PLAIN": files.plain, "ODD": files.odd}
    classes = teacher.get("classes", 10)
    wanted = {key: places.get(value, value) for key, value in teacher.items() if key != "classes"}
    with pytest.raises(UserError, match=message):
        make_teacher(settings.Teacher(**wanted), classes)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({}, r"student\.model is missing: name a network, such as student=resnet20"),
        ({"weights": "no/such.pth"}, r"^student\.weights: 'no/such\.pth': no such file or folder$"),
        ({"weights": "EXPORT", "model": "resnet20"}, r"^student: .*export is a resnet8, not a resnet20"),
    ],
)
def test_what_a_student_cannot_be(files, student, message):
    wanted = {key: files.export if value == "EXPORT" else value for key, value in student.items()}
    with pytest.raises(UserError, match=message):
        make_student(settings.Model(**wanted), 10)


def test_an_exports_own_code_is_run_only_where_the_recipe_names_it(tmp_path, importable):
    network = build(f"{HERE}:small", 10, width=6)
    save_student(tmp_path, network)
    named = settings.Teacher(model=f"{HERE}:small", options={"width": 6}, weights=str(tmp_path))
    assert same(make_teacher(named, 10).network, network)
    for refused in (
        settings.Teacher(weights=str(tmp_path)),
        settings.Teacher(model=f"{HERE}:other", weights=str(tmp_path)),
        settings.Teacher(model="resnet8", weights=str(tmp_path)),
    ):
        with pytest.raises(UserError, match=f"names code of its own.*{HERE}:small"):
            make_teacher(refused, 10)


def test_naming_a_network_does_not_let_other_code_in(tmp_path, importable):
    save_student(tmp_path, build(f"{HERE}:small", 10))
    description = tmp_path / "student.json"
    about = json.loads(description.read_text())
    about["spec"]["width"] = {"name": "os:system"}
    description.write_text(json.dumps(about))
    with pytest.raises(UserError, match="names code of its own"):
        make_teacher(settings.Teacher(model=f"{HERE}:small", weights=str(tmp_path)), 10)


def test_taps_by_the_networks_names_and_by_the_recipes(files):
    image = torch.zeros(2, 3, 8, 8)
    own = tapped(files.network, ["block1", "block1"], settings.Model(model="resnet8"))(image)
    assert list(own.features) == ["block1"]
    wanted = settings.Model(model="resnet8", taps={"early": "layer1", "block2": "layer1"})
    given_paths = tapped(files.network, ["early", "block1", "block2"], wanted)(image)
    assert list(given_paths.features) == ["early", "block1", "block2"]
    assert given_paths.features["early"].equal(given_paths.features["block2"]), "the recipe's path wins"


@pytest.mark.parametrize("taps", [{}, {"mine": "layer1"}])
def test_an_unknown_tap_is_named(files, taps):
    with pytest.raises(UserError, match=r"unknown tap 'blcok1': .*block1"):
        tapped(files.network, ["blcok1"], settings.Model(model="resnet8", taps=taps))


channel = st.tuples(*[st.floats(0.05, 0.95)] * 3)


@given(ours=st.tuples(channel, channel), theirs=st.tuples(channel, channel))
def test_a_converted_teacher_sees_images_standardised_its_own_way(ours, theirs):
    network = build("resnet8", 4).eval()
    data = SimpleNamespace(mean=ours[0], std=ours[1])
    image = torch.rand(2, 3, 8, 8)
    converted = Converted(Tapped(network, ["block1"]), data, *theirs)
    with torch.no_grad():
        answer = converted(standardise(image, *ours))
        expected = Tapped(network, ["block1"])(standardise(image, *theirs))
    torch.testing.assert_close(answer.logits, expected.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(answer.features["block1"], expected.features["block1"], rtol=1e-3, atol=1e-3)


def test_a_converted_teacher_lets_gradients_through_and_shows_its_parts():
    network = build("resnet8", 4).eval().requires_grad_(False)
    data = SimpleNamespace(mean=(0.5,) * 3, std=(0.2,) * 3)
    converted = Converted(Tapped(network), data, (0.1,) * 3, (0.4,) * 3)
    assert converted.module is network
    assert converted.classifier is network.fc
    image = torch.randn(2, 3, 8, 8, requires_grad=True)
    converted(image).logits.sum().backward()
    assert image.grad.abs().sum() > 0


def test_a_deviation_of_zero_makes_no_infinities():
    network = build("resnet8", 4).eval()
    data = SimpleNamespace(mean=(0.5,) * 3, std=(0.0, 0.2, 0.2))
    converted = Converted(Tapped(network), data, (0.5,) * 3, (0.2, 0.0, 0.2))
    image = standardise(torch.full((1, 3, 8, 8), 0.5), data.mean, data.std)
    assert converted(image).logits.isfinite().all()
