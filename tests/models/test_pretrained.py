"""load_teacher: whatever others publish becomes the network it is, or one line says why not."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn

import kdstream as kd
from kdstream.errors import UserError
from kdstream.hashing import weights_hash
from kdstream.models import build
from kdstream.models.download import cached
from kdstream.models.export import save_student
from kdstream.models.taps import Tapped
from kdstream.recipe import Teacher
from kdstream.training.networks import make_teacher

HERE = Path(__file__).stem


def small(num_classes, width=4):
    """Somebody's own network."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, width), nn.Linear(width, num_classes))


def network(name: str, classes: int = 100) -> nn.Module:
    torch.manual_seed(0)
    return build(name, classes)


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def repdistiller(state):
    """RepDistiller's ckpt_epoch_240.pth, and its forks' (CKD, TTM)."""
    return {"epoch": 240, "model": state, "accuracy": torch.tensor(72.34), "optimizer": {"state": {}}}


def mdistiller(state):
    """mdistiller's student_best: what was in the distiller's DataParallel, without its prefix."""
    return {"model": state}


def akamaster(state):
    """akamaster's resnet20-12fca82f.th: from DataParallel, by a torch without num_batches_tracked."""
    kept = {f"module.{key}": value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    return {"state_dict": kept, "best_prec1": 91.7}


PUBLISHED = (
    ("resnet8x4", repdistiller),
    ("wrn_16_2", repdistiller),
    ("vgg8", mdistiller),
    ("ShuffleV1", mdistiller),
    ("ShuffleV2", mdistiller),
    ("MobileNetV2", mdistiller),
    ("ResNet50", repdistiller),
    ("akamaster_resnet20", akamaster),
    ("resnet18", dict),  # torchvision's: the state dict itself
)


@pytest.mark.parametrize(("name", "form"), PUBLISHED, ids=[name for name, _ in PUBLISHED])
def test_published_files_are_recognised_and_load(tmp_path, name, form):
    original = network(name)
    torch.save(form(original.state_dict()), tmp_path / "teacher.pth")
    teacher = kd.load_teacher(tmp_path / "teacher.pth")
    assert teacher.spec == {"name": name, "num_classes": 100}
    assert weights_hash(teacher) == weights_hash(original)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert (teacher.classes, teacher.about["mean"], teacher.about["std"]) == (None, None, None)
    named = kd.load_teacher(str(tmp_path / "teacher.pth"), 100, model=name)
    image = torch.randn(1, 3, 32, 32)
    outputs = Tapped(named, ["block1", "penultimate"])(image)
    assert torch.equal(outputs.logits, original.eval()(image))
    with pytest.raises(UserError, match=r"teacher\.pth is for 100 classes, the data has 10$"):
        kd.load_teacher(tmp_path / "teacher.pth", 10)


def test_timms_and_deits_files(tmp_path):
    pytest.importorskip("timm", reason="an extra")
    original = network("timm:deit3_small_patch16_224", 1000)
    state = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for key, value in original.state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "deit.pth")  # as DeiT's authors publish it
    teacher = kd.load_teacher(tmp_path / "deit.pth", 1000)
    assert teacher.spec["name"] == "timm:deit3_small_patch16_224"
    assert weights_hash(teacher) == weights_hash(original)
    torch.save(network("timm:resnet10t", 7).state_dict(), tmp_path / "timm.pth")
    assert kd.load_teacher(tmp_path / "timm.pth", model="timm:resnet10t").spec["num_classes"] == 7


def test_an_export_of_a_timm_network_needs_no_trust(tmp_path):
    pytest.importorskip("timm", reason="an extra")
    original = network("timm:resnet10t", 7)
    save_student(tmp_path, original)
    for teacher in (kd.load_teacher(tmp_path, 7), kd.load_teacher(tmp_path, model="timm:resnet10t")):
        assert weights_hash(teacher) == weights_hash(original)


def test_an_export(tmp_path):
    original = network("resnet8", 3)
    save_student(tmp_path, original, classes=["a", "b", "c"], mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), image_size=16)
    for place in (tmp_path, tmp_path / "student.json", str(tmp_path / "student.safetensors")):
        teacher = kd.load_teacher(place)
        assert weights_hash(teacher) == weights_hash(original)
        assert (teacher.classes, teacher.mean, teacher.image_size) == (["a", "b", "c"], [0.1, 0.2, 0.3], 16)
        assert not teacher.training
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
    with pytest.raises(UserError, match=r"is for 3 classes, the data has 4$"):
        kd.load_teacher(tmp_path, 4)
    with pytest.raises(UserError, match=r"is a resnet8, not a resnet14$"):
        kd.load_teacher(tmp_path, model="resnet14")


def test_code_of_an_export_is_run_where_it_is_named_or_trusted(tmp_path, importable):
    save_student(tmp_path, build(f"{HERE}:small", 5, width=6))
    with pytest.raises(UserError, match="names code of its own"):
        kd.load_teacher(tmp_path)
    for told in ({"trust_code": True}, {"model": f"{HERE}:small", "options": {"width": 6}}):
        assert kd.load_teacher(tmp_path, **told).spec["num_classes"] == 5


def test_options_of_a_file(tmp_path, importable):
    torch.save(small(5, 6).state_dict(), tmp_path / "mine.pth")
    teacher = kd.load_teacher(tmp_path / "mine.pth", model=f"{HERE}:small", options={"width": 6})
    assert teacher.spec == {"name": f"{HERE}:small", "num_classes": 5, "width": 6}
    with pytest.raises(UserError, match=r"than test_pretrained:small: .* of another shape"):
        kd.load_teacher(tmp_path / "mine.pth", model=f"{HERE}:small")
    with pytest.raises(UserError, match=r"mine\.pth does not say which network it is for .*: name the model"):
        kd.load_teacher(tmp_path / "mine.pth")


def test_a_file_that_shows_no_class_count(tmp_path):
    torch.save(network("squeezenet1_1", 5).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth does not show for how many classes squeezenet1_1 is: give num"):
        kd.load_teacher(tmp_path / "w.pth", model="squeezenet1_1")
    assert kd.load_teacher(tmp_path / "w.pth", 5, model="squeezenet1_1").spec["num_classes"] == 5


def test_a_file_of_another_architecture_says_what_is_missing_and_unexpected(tmp_path):
    torch.save({"model": network("resnet20").state_dict()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"than vgg8: .*keys are missing .*keys are unexpected .*like resnet20$"):
        kd.load_teacher(tmp_path / "w.pth", 100, model="vgg8")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's folder; with random weights where torchvision looks for those of ResNet-18."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    torch.save(network("resnet18", 1000).state_dict(), folder / url.rpartition("/")[2])
    return folder


def test_torchvisions_own_weights(hub):
    asked = {"model": "resnet18", "options": {"weights": "DEFAULT"}}
    teacher = kd.load_teacher(**asked)
    assert weights_hash(teacher) == weights_hash(network("resnet18", 1000))
    assert teacher.about["mean"] == list(teacher.mean) == [0.485, 0.456, 0.406]
    assert make_teacher(Teacher(**asked), 1000).mean == (0.485, 0.456, 0.406)
    with pytest.raises(UserError, match=r"^the weights of resnet18 are for 1000 classes, the data has 10$"):
        kd.load_teacher(num_classes=10, **asked)
    with pytest.raises(UserError, match=r"^teacher: the weights of resnet18 are for 1000 classes, the data has 10$"):
        make_teacher(Teacher(**asked), 10)


def test_a_files_weights_take_the_place_of_the_librarys(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    torch.save(network("resnet18", 5).state_dict(), tmp_path / "w.pth")
    teacher = kd.load_teacher(tmp_path / "w.pth", 5, model="resnet18", options={"weights": "DEFAULT"})
    assert teacher.about["mean"] is None
    assert not (tmp_path / "empty").exists()


def test_timms_own_weights(monkeypatch):
    timm = pytest.importorskip("timm", reason="an extra")
    create = timm.create_model

    def offline(name, pretrained=False, **settings):
        made = create(name, **settings)
        if pretrained:  # as if downloaded
            nn.init.constant_(made.fc.bias, 3.0)
        return made

    monkeypatch.setattr(timm, "create_model", offline)
    asked = {"model": "timm:resnet10t", "options": {"pretrained": True}}
    teacher = kd.load_teacher(**asked)
    assert (teacher.fc.bias == 3).all()
    assert (teacher.spec["num_classes"], len(teacher.about["mean"])) == (1000, 3)
    with pytest.raises(UserError, match=r"^the weights of timm:resnet10t are for 1000 classes, the data has 10$"):
        kd.load_teacher(num_classes=10, **asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, r"^no weights: give a folder, a file or an address, or a model whose library has weights$"),
        ({"model": "resnet56"}, r"^resnet56 has no weights: give a folder, a file or an address$"),
        ({"model": "resnet18"}, r"^resnet18 has no weights"),
        ({"model": "resnet18", "options": {"weights": "DEFALT"}}, r"has no weights 'DEFALT': did you mean 'DEFAULT'"),
        ({"weights": "no/such.pth"}, r"^no/such\.pth: no such file"),
        ({"weights": 3}, r"^weights are the name of a folder, a file or an address, .*; this is of type int$"),
        ({"weights": torch.nn.Linear(2, 2)}, r"^weights are the name of .*; this is of type Linear$"),
        ({"weights": "ftp://host/x.pth"}, r"^ftp://host/x\.pth: only http:// and https://"),
        ({"weights": "http://host/"}, r"^http://host/ names no file"),
    ],
)
def test_what_cannot_be_loaded(asked, message):
    with pytest.raises(UserError, match=message) as caught:
        kd.load_teacher(num_classes=10, **asked)
    assert "\n" not in str(caught.value)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Nothing: it is a test."""

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()


@pytest.fixture
def server(tmp_path, hub):
    """Files of a folder at a local address; ``asked`` are the paths of all requests."""
    folder = tmp_path / "published"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield SimpleNamespace(folder=folder, url=f"http://127.0.0.1:{server.server_port}", asked=server.asked)
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_address_is_downloaded_once(server):
    original = network("resnet8")
    torch.save(repdistiller(original.state_dict()), server.folder / "ckpt_epoch_240.pth")
    url = f"{server.url}/ckpt_epoch_240.pth"
    for _ in range(2):
        teacher = kd.load_teacher(url, num_classes=100)
        assert weights_hash(teacher) == weights_hash(original)
    assert server.asked == ["/ckpt_epoch_240.pth"]
    assert cached(url).is_file()
    in_a_recipe = make_teacher(Teacher.model_validate(url), 100)
    assert in_a_recipe.hash == weights_hash(original)
    with pytest.raises(UserError, match=rf"^teacher: {url} is for 100 classes, the data has 10$"):
        make_teacher(Teacher(weights=url), 10)
    assert len(server.asked) == 1


def test_files_of_one_name_at_two_addresses_are_kept_apart(server):
    for name in ("resnet8", "resnet14"):
        (server.folder / name).mkdir()
        torch.save({"model": network(name).state_dict()}, server.folder / name / "best.pth")
    for name in ("resnet8", "resnet14"):
        assert kd.load_teacher(f"{server.url}/{name}/best.pth").spec["name"] == name


class Hostile:
    """Unpickling it would make a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_what_an_address_must_not_give(server, tmp_path):
    mark = tmp_path / "executed"
    torch.save({"model": network("resnet8").state_dict(), "opt": Hostile(str(mark))}, server.folder / "hostile.pth")
    (server.folder / "page.pth").write_text("<!DOCTYPE html><html>Sign in</html>")
    for name, message in (
        ("hostile.pth", r"hostile\.pth carries a pickled object \(\w+\.mkdir\), which could run code: refused"),
        ("page.pth", r"page\.pth is a web page"),
        ("absent.pth", r"absent\.pth cannot be downloaded: .*404"),
    ):
        url = f"{server.url}/{name}"
        with pytest.raises(UserError, match=rf"^{server.url}/{message}"):
            kd.load_teacher(url, 100)
        assert not cached(url).exists(), "what was refused is not kept"
    assert not mark.exists()


def test_no_server(hub):
    with pytest.raises(UserError, match=r"^http://127\.0\.0\.1:9/a\.pth cannot be downloaded: "):
        kd.load_teacher("http://127.0.0.1:9/a.pth", 100)
