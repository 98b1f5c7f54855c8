"""peakiness: the numbers against a computation by numpy and Pillow that shares no code with kdstream's."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from kdstream.analysis.peakiness import BINS, Moments, figure, peakiness
from kdstream.batch import Outputs
from kdstream.data.shards import open_shards
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.stream.coded import fixed, random

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.3, 0.25)
QUALITIES = range(0, 101, 10)


@pytest.fixture(scope="module")
def train(digits):
    return open_shards(digits / "train")


@pytest.fixture(scope="module")
def raw(digits) -> tuple[np.ndarray, np.ndarray]:
    """All images uint8 [N,H,W,3] and labels, as plain tar files give them."""
    images, labels = [], []
    for path in sorted(digits.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.endswith(".cls"):
                    labels.append(int(data))
                elif member.name.endswith(".png"):
                    images.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    return np.stack(images), np.array(labels)


def pillow(image: np.ndarray, quality: int, subsampling: int = 0) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(buffer))


@torch.no_grad()
def probabilities(network: nn.Module, images: np.ndarray) -> np.ndarray:
    standard = (images / 255.0 - np.array(MEAN)) / np.array(STD)
    logits = network(torch.tensor(standard, dtype=torch.float32).permute(0, 3, 1, 2)).double().numpy()
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def choose(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The paper's equations (3) and (4), one image at a time; p [N,1+V,C]."""
    chosen = []
    for answers, label in zip(p, labels, strict=True):
        best, largest = 0, -1.0
        for version, q in enumerate(answers):
            divergence = float((answers[0] * np.log(answers[0] / q)).sum())
            if q.argmax() == label and divergence > largest:
                best, largest = version, divergence
        chosen.append(best)
    return np.array(chosen)


def check(found, p: np.ndarray, labels: np.ndarray) -> None:
    entropy = -(p * np.log(p)).sum(1)
    truth = p[np.arange(len(p)), labels]
    covariance = np.cov(p, rowvar=False)
    assert found.entropy_mean == pytest.approx(entropy.mean(), rel=1e-5)
    assert found.entropy_std == pytest.approx(entropy.std(ddof=1), rel=1e-5)
    assert found.probability_mean == pytest.approx(truth.mean(), rel=1e-5)
    assert found.probability_std == pytest.approx(truth.std(ddof=1), rel=1e-5)
    assert found.top1 == pytest.approx(100 * (p.argmax(1) == labels).mean())
    assert found.covariance == pytest.approx(np.abs(covariance).mean(), rel=1e-5)
    assert found.mean_probability_std == pytest.approx(np.sqrt(np.diag(covariance) / 320).mean(), rel=1e-5)
    assert list(found.entropy_histogram) == np.histogram(entropy, BINS, (0, np.log(10)))[0].tolist()
    assert list(found.probability_histogram) == np.histogram(truth, BINS, (0, 1))[0].tolist()


def test_all_numbers_equal_an_independent_computation(network, train, raw):
    images, labels = raw
    versions = np.stack([images, *(np.stack([pillow(image, q) for image in images]) for q in QUALITIES)], axis=1)
    p = probabilities(network, versions.reshape(-1, *images.shape[1:])).reshape(len(images), -1, 10)
    chosen = choose(p, labels)
    done = []
    result = peakiness(Tapped(network), train, MEAN, STD, batch_size=70, advance=done.append)
    assert result.samples == len(images) == sum(done)
    check(result.original, p[:, 0], labels)
    check(result.coded, p[np.arange(len(p)), chosen], labels)
    names = np.array([-1, *QUALITIES])[chosen]
    assert result.qualities == {int(q): int((names == q).sum()) for q in np.unique(names)}
    assert len(result.qualities) > 3  # this teacher puts the selector to the test


def test_fixed_selector_compares_one_version_with_the_original(network, train, raw):
    images, labels = raw
    result = peakiness(Tapped(network), train, MEAN, STD, selector=fixed(15), subsampling="4:2:0")
    check(result.original, probabilities(network, images), labels)
    check(result.coded, probabilities(network, np.stack([pillow(image, 15, 2) for image in images])), labels)
    assert result.qualities == {15: len(images)}


def test_random_selector_and_own_rule(network, train):
    drawn = peakiness(Tapped(network), train, MEAN, STD, selector=random(20, 29))
    assert set(drawn.qualities) <= set(range(20, 30))
    assert len(drawn.qualities) > 5
    kept = peakiness(Tapped(network), train, MEAN, STD, selector=lambda logits, label: torch.zeros_like(label))
    assert kept.original == kept.coded
    assert kept.qualities == {-1: kept.samples}


def test_one_pass_over_the_original_and_its_versions(network, train):
    seen = 0

    def counting(images):
        nonlocal seen
        seen += len(images)
        return Outputs(network(images))

    peakiness(counting, train, MEAN, STD, delta=50)
    assert seen == 4 * len(train)  # the original and qualities 0, 50, 100


def test_limit_takes_exactly_so_many_of_all_classes(network, train):
    once = peakiness(Tapped(network), train, MEAN, STD, delta=100, limit=45, batch_size=20)
    again = peakiness(Tapped(network), train, MEAN, STD, delta=100, limit=45, batch_size=45)
    assert once.samples == sum(once.qualities.values()) == sum(once.original.entropy_histogram) == 45
    assert once.original.entropy_mean == pytest.approx(again.original.entropy_mean, rel=1e-6)
    assert once.qualities == again.qualities


def test_size_for_photographs_of_different_sizes(uneven):
    teacher = Tapped(build("resnet8", 2))
    with pytest.raises(UserError, match="differ in size"):
        peakiness(teacher, uneven, MEAN, STD)
    result = peakiness(teacher, uneven, MEAN, STD, size=16)
    assert result.samples == len(uneven)


def test_teachers_that_do_not_fit(network, train):
    with pytest.raises(UserError, match="is for 7 classes, the data has 10"):
        peakiness(Tapped(build("resnet8", 7)), train, MEAN, STD, limit=10)
    with pytest.raises(UserError, match="not all finite"):
        peakiness(lambda images: Outputs(images[:, 0, 0, :10] / 0), train, MEAN, STD, limit=10)
    with pytest.raises(UserError, match="2 images or more"):
        peakiness(Tapped(network), train, MEAN, STD, limit=1)


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1),
    st.integers(1, 5),
    st.integers(0, 1000),
)
def test_moments_do_not_depend_on_how_the_vectors_are_split(sizes, width, seed):
    """Far from 0 compared to their spread, where sums of squares would lose all digits."""
    values = 1e6 + 1e-3 * np.random.default_rng(seed).standard_normal((sum(sizes), width))
    moments, start = Moments(width), 0
    for size in sizes:
        moments.add(torch.from_numpy(values[start : start + size]))
        start += size
    assert moments.count == sum(sizes)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-14)
    expected = np.cov(values, rowvar=False).reshape(width, width)
    np.testing.assert_allclose(moments.covariance(), expected, rtol=1e-4, atol=1e-11)


@pytest.mark.parametrize("selector", ["hkl", fixed(50), random(0, 100)])
def test_figure_is_a_png(network, train, selector):
    result = peakiness(Tapped(network), train, MEAN, STD, selector=selector, delta=50, limit=30)
    with Image.open(io.BytesIO(figure(result, "a $teacher_ with a name"))) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] > 1200
    assert (pixels == (0xD5, 0x5E, 0x00)).all(-1).sum() > 1000  # the bars
