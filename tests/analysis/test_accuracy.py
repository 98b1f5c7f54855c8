"""accuracy: the numbers against a computation by numpy that shares no code with kdstream's."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdstream.analysis.accuracy import BINS, Accuracy, accuracy, confusion_figure, reliability_figure
from kdstream.convert.make_shards import make_shards
from kdstream.data.shards import open_shards
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.stream.stream import Stream

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.3, 0.25)


@pytest.fixture(scope="module")
def val(digits):
    return open_shards(digits / "val")


@pytest.fixture(scope="module")
def answers(network, val):
    """Probabilities float64 [N,C] and labels of all images."""
    batch = next(iter(Stream(val, len(val), train=False) | "decode"))
    standard = (batch.image.numpy() / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    with torch.no_grad():
        logits = network(torch.tensor(standard, dtype=torch.float32)).double().numpy()
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True), batch.label.numpy()


@pytest.mark.parametrize("batch_size", [70, 1000])
def test_all_numbers_equal_an_independent_computation(network, val, answers, batch_size):
    p, labels = answers
    done = []
    result = accuracy(network, val, MEAN, STD, batch_size=batch_size, advance=done.append)
    assert result.samples == len(val) == sum(done) == len(labels)
    order = np.argsort(-p, axis=1)
    right = order[:, 0] == labels
    assert 0 < right.sum() < len(labels)
    assert result.top1 == pytest.approx(100 * right.mean())
    assert result.top5 == pytest.approx(100 * (order[:, :5] == labels[:, None]).any(1).mean())
    assert result.loss == pytest.approx(-np.log(p[np.arange(len(p)), labels]).mean(), rel=1e-5)
    matrix = np.zeros((10, 10), int)
    for label, answer in zip(labels, order[:, 0], strict=True):
        matrix[label, answer] += 1
    assert (result.confusion == matrix).all()
    for c, found in enumerate(result.per_class):
        assert found == pytest.approx(100 * right[labels == c].mean())
    confidence, error = p.max(1), 0.0
    for m, bin in enumerate(result.bins):
        low, high = m / BINS, (m + 1) / BINS
        inside = (confidence > low) & (confidence <= high)
        assert (bin.low, bin.high, bin.samples) == (low, high, inside.sum())
        if inside.any():
            assert bin.confidence == pytest.approx(confidence[inside].mean(), rel=1e-5)
            assert bin.accuracy == pytest.approx(100 * right[inside].mean())
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        else:
            assert (bin.confidence, bin.accuracy) == (None, None)
    assert sum(bin.samples for bin in result.bins) == len(labels)
    assert result.calibration_error == pytest.approx(100 * error, rel=1e-4)


def sure(p: float, right: bool):
    """A network that gives its answer, the image's class or the next one, the probability p."""

    def answer(images):
        label = (images[:, 0, 0, 0] * 255).round().long() // 20
        logits = torch.full((len(images), 10), float(np.log((1 - p) / 9)))
        return logits.scatter(1, ((label + (not right)) % 10)[:, None], float(np.log(p)))

    return answer


@pytest.fixture(scope="module")
def plain_images(tmp_path_factory):
    """Twenty images of 10 classes whose colour tells the class."""
    folder = tmp_path_factory.mktemp("plain")
    for i in range(20):
        place = folder / "in" / "train" / f"class{i % 10}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * (i % 10), i, 0)).save(place / f"{i}.png")
    make_shards(f"imagefolder:{folder / 'in'}", folder / "set", processes=1)
    return open_shards(folder / "set" / "train")


@settings(max_examples=20)
@given(p=st.floats(0.2, 0.999), right=st.booleans())
def test_calibration_error_is_the_distance_of_confidence_and_accuracy(plain_images, p, right):
    result = accuracy(sure(p, right), plain_images, (0,) * 3, (1,) * 3)
    assert result.top1 == 100 * right
    assert result.calibration_error == pytest.approx(100 * abs(right - p), abs=1e-3)
    assert [bin.samples for bin in result.bins if bin.samples] == [20]
    assert result.loss == pytest.approx(-np.log(p if right else (1 - p) / 9), rel=1e-4)
    expected = [] if right else [(c, (c + 1) % 10, 2) for c in range(10)]
    assert result.mistakes(99) == expected
    assert result.mistakes(3) == expected[:3]


def test_as_dict_is_plain_json(network, val):
    result = accuracy(network, val, MEAN, STD)
    plain = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    matrix = np.zeros((10, 10), int)
    for label, row in plain["confusion"].items():
        for answer, count in row.items():
            assert count > 0
            matrix[int(label), int(answer)] = count
    assert (matrix == result.confusion).all()
    assert [row["class"] for row in plain["per_class"]] == list(val.classes)
    assert [row["samples"] for row in plain["per_class"]] == matrix.sum(1).tolist()
    assert plain["top1"] == pytest.approx(100 * matrix.trace() / plain["samples"])


def test_limit_takes_exactly_so_many_of_all_classes(network, val):
    some = accuracy(network, val, MEAN, STD, limit=45, batch_size=20)
    assert some.samples == 45
    assert (some.confusion == accuracy(network, val, MEAN, STD, limit=45).confusion).all()
    assert (some.confusion.sum(1) > 0).sum() > 7
    one = accuracy(network, val, MEAN, STD, limit=1)
    assert one.per_class.count(None) == 9


def test_fewer_than_five_classes_and_images_of_different_sizes(uneven):
    with pytest.raises(UserError, match="differ in size"):
        accuracy(build("resnet8", 2), uneven, MEAN, STD)
    assert accuracy(build("resnet8", 2), uneven, MEAN, STD, size=16).top5 == 100


def test_networks_that_do_not_fit(network, val):
    with pytest.raises(UserError, match="is for 7 classes, the data has 10"):
        accuracy(build("resnet8", 7), val, MEAN, STD, limit=10)
    with pytest.raises(UserError, match="not all finite"):
        accuracy(lambda images: images[:, 0, 0, :10] / 0, val, MEAN, STD, limit=10)
    with pytest.raises(UserError, match="limit is 0"):
        accuracy(network, val, MEAN, STD, limit=0)


def made_up(classes: int) -> Accuracy:
    confusion = np.random.default_rng(0).integers(0, 3, (classes, classes)) + 90 * np.eye(classes, dtype=int)
    confusion[1] = 0  # a class without images
    return Accuracy(tuple(f"$the_ {i}th class, of a long name" for i in range(classes)), 90, 99, 0.5, 3, (), confusion)


@pytest.mark.parametrize("classes", [2, 100, 130])
def test_confusion_figures(classes):
    with Image.open(io.BytesIO(confusion_figure(made_up(classes), "a $title_ with a name"))) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    if classes <= 100:  # else several classes share a row
        assert (pixels == (0xDD, 0xDD, 0xDD)).all(-1).sum() > 1000  # the class without images
    assert (pixels == (0xD5, 0x5E, 0x00)).all(-1).sum() > 1000  # the bars


def test_figures_of_a_network_that_makes_no_mistakes(plain_images):
    result = accuracy(sure(0.9, True), plain_images, (0,) * 3, (1,) * 3)
    for figure in (confusion_figure, reliability_figure):
        with Image.open(io.BytesIO(figure(result, "right"))) as image:
            assert image.format == "PNG"


def test_reliability_figure_shows_accuracy(network, val):
    data = reliability_figure(accuracy(network, val, MEAN, STD), "a $title_")
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (pixels == (0x00, 0x72, 0xB2)).all(-1).sum() > 1000
