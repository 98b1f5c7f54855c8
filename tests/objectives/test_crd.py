"""CRD: which samples it contrasts, what its banks hold, and that several processes do what one does."""

from __future__ import annotations

import operator
from pathlib import Path

import pytest
import torch
from builders import outputs
from processes import together
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.models.taps import Tapped
from kdstream.objectives import Task, WeightedTerm, crd
from kdstream.objectives.crd import CRD, similarities, weighted_rows
from kdstream.rng import sample_keys
from kdstream.training.distiller import Distiller

CLASSES = 4


def answer(count: int, width: int, seed: int = 0) -> Outputs:
    return outputs(seed, count, penultimate=(width,))


def labels_of(size: int, classes: int = CLASSES) -> Tensor:
    return torch.randint(classes, (size,), generator=torch.Generator().manual_seed(size))


def term_of(size: int = 60, **settings) -> CRD:
    torch.manual_seed(0)
    term = CRD(**{"feat_dim": 8, "nce_k": 16, **settings})
    term.setup(Task(CLASSES, size, 1, answer(2, 5), answer(2, 7), labels=labels_of(size)))
    return term


def batch_of(index: Tensor, epoch: int = 0, keyed: bool = True) -> Batch:
    key = sample_keys(0, epoch, index) if keyed else None
    return Batch(torch.zeros(len(index), 3, 4, 4), torch.zeros_like(index), index, rng_key=key)


def test_without_random_keys_the_index_is_the_key():
    term, index = term_of(), torch.tensor([3, 8, 40])
    assert term.contrast(batch_of(index, keyed=False)).equal(term.draw(index, index))


@pytest.mark.parametrize("negatives", [2, 40])  # rows gathered; the whole bank
def test_similarities_and_their_gradient(negatives, monkeypatch):
    monkeypatch.setitem(crd._ROWS, "cpu", 3 * 5 * 6)  # several pieces
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(100, 6, generator=generator, dtype=torch.float64)
    anchor = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    chosen = torch.randint(100, (5, negatives), generator=generator)
    weights = torch.randn(5, negatives, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(similarities(anchor, bank, chosen), (bank[chosen] * anchor[:, None]).sum(2))
    torch.testing.assert_close(weighted_rows(weights, bank, chosen), (bank[chosen] * weights[..., None]).sum(1))


@pytest.mark.parametrize("size", [60, 500])  # the whole bank; rows gathered
@pytest.mark.parametrize("mode", ["exact", "relax"])
def test_value_and_gradients_are_those_of_the_formula(mode, size):
    term = term_of(size, mode=mode).double()
    index = torch.tensor([0, 7, 11, 59])
    student, teacher = (answer(4, width).map(Tensor.double) for width in (5, 7))
    feature = student.features["penultimate"].requires_grad_()
    batch, chosen = batch_of(index), term.contrast(batch_of(index))
    anchors = term.embed_s(feature), term.embed_t(teacher.features["penultimate"])
    expected, constants = 0, []
    noise = 16 / size
    for anchor, bank in zip(anchors, (term.memory_v2.clone(), term.memory_v1.clone()), strict=True):
        score = ((bank[chosen] * anchor[:, None]).sum(2) / 0.07).exp()
        z = score.mean().detach() * size
        x = score / z
        expected = expected - (x[:, 0] / (x[:, 0] + noise + 1e-7)).log().mean()
        expected = expected - (noise / (x[:, 1:] + noise + 1e-7)).log().sum(1).mean()
        constants.append(z)
    parameters = [feature, *term.parameters()]
    wanted = torch.autograd.grad(expected, parameters)
    value = term(student, teacher, batch)
    torch.testing.assert_close(value, expected)
    for got, want in zip(torch.autograd.grad(value, parameters), wanted, strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close([term.Z_v1, term.Z_v2], constants)


def test_banks_move_in_the_rows_of_the_batch_alone_and_z_stays():
    term = term_of(nce_m=0.25)
    index = torch.tensor([50, 2, 9])
    before = term.memory_v1.clone(), term.memory_v2.clone()
    student, teacher = answer(3, 5), answer(3, 7)
    term(student, teacher, batch_of(index))
    embedded = term.embed_s(student.features["penultimate"]), term.embed_t(teacher.features["penultimate"])
    others = torch.ones(60, dtype=torch.bool)
    others[index] = False
    for bank, old, new in zip((term.memory_v1, term.memory_v2), before, embedded, strict=True):
        assert bank[others].equal(old[others])
        torch.testing.assert_close(bank[index], F.normalize(0.25 * old[index] + 0.75 * new, dim=1))
    z = term.Z_v1.clone(), term.Z_v2.clone()
    assert min(z) > 0
    term(answer(3, 5, seed=1), answer(3, 7, seed=1), batch_of(index, epoch=1))
    assert (term.Z_v1, term.Z_v2) == z


def test_the_probe_leaves_no_trace():
    torch.manual_seed(0)
    distiller, term = distiller_of(term_of())
    before = {name: buffer.clone() for name, buffer in term.named_buffers()}
    trained = distiller.begin(distiller.stages()[-1], global_batches()[0].map_tensors(lambda t: t[:2]))
    assert {id(p) for p in term.parameters()} <= {id(p) for p in trained}
    assert term.Z_v1 == 0
    assert all(buffer.equal(before[name]) for name, buffer in term.named_buffers())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_and_near(dtype):
    wanted, term = term_of(), term_of()
    student, teacher = answer(6, 5), answer(6, 7)
    expected = wanted(student, teacher, batch_of(torch.arange(6)))
    halves = [given.map(lambda t: t.to(dtype)) for given in (student, teacher)]
    halves[0].features["penultimate"].requires_grad_()
    with torch.autocast("cpu", dtype):
        value = term(*halves, batch_of(torch.arange(6)))
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.02, atol=0)
    assert halves[0].features["penultimate"].grad.isfinite().all()
    assert term.memory_v1.dtype == torch.float32


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that an operation returns, those ``given`` aside."""

    def __init__(self, *given: Tensor):
        super().__init__()
        self.elements = 0
        self.given = {value.untyped_storage().data_ptr() for value in given}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self.given:
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize(("size", "largest"), [(16 * 200, 8 * 16 * 200), (20_000, 8 * 204)])
def test_no_tensor_is_larger_than_said(size, largest, monkeypatch):
    monkeypatch.setitem(crd._ROWS, "cpu", 8 * 203)
    term = term_of(size, nce_k=200)
    student, teacher = answer(8, 5), answer(8, 7)
    student.features["penultimate"].requires_grad_()
    batch = batch_of(torch.arange(8))
    with Largest(*term.buffers()) as watch:
        term(student, teacher, batch).backward()
    assert 8 * 200 < watch.elements <= largest


SIZE, STEPS = 45, (5, 6, 5, 4)
"""Training samples, and those of each global batch: two processes have slices of different sizes in three of four."""


class Small(nn.Module):
    """A network of two layers."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.last = nn.Linear(48, width), nn.Linear(width, CLASSES)
        self.taps, self.classifier_path = {"penultimate": "last:input"}, "last"

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.first(images.flatten(1)).tanh())


def global_batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    teacher = Tapped(seeded(Small, 7), ["penultimate"])
    found = []
    for epoch, count in enumerate(STEPS):
        index = torch.randperm(SIZE, generator=generator)[:count]
        images = torch.randn(count, 3, 4, 4, generator=generator)
        batch = Batch(images, labels_of(SIZE)[index], index, rng_key=sample_keys(0, epoch, index))
        batch.teacher = teacher(images).detach()
        found.append(batch)
    return found


def seeded(make, *args, **kwargs):
    torch.manual_seed(11)
    return make(*args, **kwargs)


def distiller_of(term: CRD) -> tuple[Distiller, CRD]:
    return Distiller(Tapped(seeded(Small, 5), ["penultimate"]), [WeightedTerm("crd", 0.8, term)]), term


def train(mode: str, rank: int, world: int) -> dict[str, list[Tensor]]:
    """A few steps as the trainer takes them; what each leaves behind."""
    distiller, term = distiller_of(term_of(SIZE, mode=mode, nce_k=8))
    parameters = distiller.begin(distiller.stages()[-1], global_batches()[0].map_tensors(lambda t: t[:2]))
    wrapped = distiller if world == 1 else DistributedDataParallel(distiller, find_unused_parameters=True)
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9)
    found: dict[str, list[Tensor]] = {"loss": [], "gradient": [], "v1": [], "v2": [], "z": []}
    for batch in global_batches():
        total = len(batch)
        own = slice(total * rank // world, total * (rank + 1) // world)
        part = batch.map_tensors(operator.itemgetter(own))
        loss, _, _ = wrapped(part)
        share = len(part) * world / total
        optimizer.zero_grad()
        (loss * share).backward()
        mean = loss.detach() * share / world
        if world > 1:
            torch.distributed.all_reduce(mean)
        found["loss"].append(mean)
        found["gradient"].append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        found["v1"].append(term.memory_v1.clone())
        found["v2"].append(term.memory_v2.clone())
        found["z"].append(torch.stack([term.Z_v1, term.Z_v2]))
        optimizer.step()
    return found


def of_two(folder: Path) -> None:
    """One of two processes."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.save({mode: train(mode, rank, 2) for mode in ("exact", "relax")}, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict[str, dict[str, list[Tensor]]]]:
    folder = tmp_path_factory.mktemp("two")
    together(2, of_two, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("mode", ["exact", "relax"])
def test_two_processes_do_what_one_does(both, mode):
    alone = train(mode, 0, 1)
    assert len({float(value) for value in alone["loss"]}) == len(STEPS)
    for rank in range(2):
        for name, values in alone.items():
            torch.testing.assert_close(both[rank][mode][name], values, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["exact", "relax"])
def test_the_banks_of_both_processes_are_identical(both, mode):
    first, second = (found[mode] for found in both)
    for name in ("v1", "v2", "z"):
        assert all(ours.equal(theirs) for ours, theirs in zip(first[name], second[name], strict=True))
    moved = (first["v1"][-1] != term_of(SIZE, mode=mode, nce_k=8).memory_v1).any(dim=1)
    assert moved.nonzero().flatten().equal(torch.cat([batch.index for batch in global_batches()]).unique())


def test_banks_and_tables_are_not_sent_at_every_step():
    distiller, term = distiller_of(term_of())
    ignored = distiller._ddp_params_and_buffers_to_ignore
    assert set(ignored) == {f"terms.0.{name}" for name, _ in term.named_buffers()}
    assert {"terms.0.memory_v1", "terms.0.draw.order"} <= set(ignored)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feat_dim": 0}, "crd: feat_dim must be a whole number >= 2, got 0"),
        ({"nce_k": 2.5}, "crd: nce_k must be a whole number >= 1, got 2.5"),
        ({"nce_t": 0.01}, "crd: nce_t must be a finite number >= 0.02, got 0.01"),
        ({"nce_m": 1.5}, "crd: nce_m must be a finite number >= 0 and at most 1, got 1.5"),
        ({"eps": 0}, "crd: eps must be a finite number > 0, got 0"),
        ({"mode": "relaxed"}, "crd: mode must be exact or relax, got 'relaxed'"),
        ({"taps": ["block1", "block2"]}, "crd: taps must be one tap, got block1, block2"),
    ],
)
def test_mistakes_in_settings(settings, message):
    with pytest.raises(UserError) as caught:
        CRD(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_outputs": None}, "crd: needs a teacher, but the job has none; name one or drop crd from the loss"),
        ({"labels": None}, "crd: needs the class of every training sample, which this data set does not tell"),
        (
            {"labels": torch.full((60,), 2)},
            "crd: all training samples are of one class, so there is nothing to contrast them with",
        ),
    ],
)
def test_data_that_cannot_work(changes, message):
    given = {"student_outputs": answer(2, 5), "teacher_outputs": answer(2, 7), "labels": labels_of(60), **changes}
    with pytest.raises(UserError) as caught:
        CRD().setup(Task(CLASSES, 60, 1, **given))
    assert str(caught.value) == message
