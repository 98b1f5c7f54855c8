"""Two processes learn what one does: every objective's loss and gradients, from slices of different sizes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import maps
from distillers import stages
from processes import together
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdstream.objectives import OBJECTIVES
from kdstream.objectives.common.gather import gather

COUNT, CUT = 7, 3
"""Samples of a batch, and of them the first process's."""
SETTINGS: dict[str, dict[str, Any]] = {
    "bss": {"attack_size": 5},
    "tald": {"images": 4, "particles": 2, "sigma": 1.0, "eps": 3.0},  # particles that act on each other, and matter
}
RELATED = [name for name in OBJECTIVES if OBJECTIVES.find(name).over_batch and name != "cmkd"]
"""(Of ``cmkd``, whose weights only may differ, test_cmkd.py says it.)"""
Learnt = dict[str, dict[str, Tensor]]


def learnt(name: str, rank: int, world: int, relations: str = "global") -> Learnt:
    """Of every stage: the loss, with the slice's share of the batch, and the gradients that an optimizer would see.

    Batch normalisation uses its running statistics: those of a slice are others.
    """
    found = {}
    for stage, distiller, data in stages(name, 4, COUNT, world=world, relations=relations, **SETTINGS.get(name, {})):
        for module in distiller.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        if name == "bss":  # attacked is what both networks classify rightly
            data.label = distiller.student(data.image).logits.argmax(1)
            data.teacher.logits = 5.0 * nn.functional.one_hot(data.label, 4)
        own = slice(0, COUNT) if world == 1 else [slice(0, CUT), slice(CUT, COUNT)][rank]
        part = data.map_tensors(lambda values: values[own])  # noqa: B023 - called here and now
        trains = stage.trains != "nothing"
        module = DistributedDataParallel(distiller, find_unused_parameters=True) if world > 1 and trains else distiller
        loss, _, _ = module(part)
        if trains:
            (loss * len(part) * world / COUNT).backward()  # as kdstream.training.accumulation weights it
        gradients = {key: one.grad for key, one in distiller.named_parameters() if one.grad is not None}
        found[stage.name] = {"loss": loss.detach() * len(part) / COUNT, **gradients}
    return found


@functools.cache
def alone(name: str) -> Learnt:
    return learnt(name, 0, 1)


def gathered(rank: int) -> Tensor:
    """The gradient of two rows (rank 0) or one by a loss of all three, weighted as training weights it."""
    own = [maps(3, 2)[:2], maps(3, 2)[2:]][rank].requires_grad_()
    number = torch.arange(len(own)) + 10 * rank
    rows, numbers = gather(own, number)
    assert rows.equal(maps(3, 2))
    assert numbers.tolist() == [0, 1, 10]
    (rows.prod() * len(own) * 2 / 3).backward()
    return own.grad / 2  # the processes' mean


def of_two(folder: Path) -> None:
    """One of two processes."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    found = {"gathered": gathered(rank)}
    found |= {name: learnt(name, rank, 2) for name in OBJECTIVES}
    found |= {f"{name} local": learnt(name, rank, 2, "local") for name in RELATED}
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    together(2, of_two, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_alone_nothing_happens():
    rows, numbers = maps(3, 2).requires_grad_(), torch.arange(3)
    joined = gather(rows, numbers)
    assert joined[0] is rows
    assert joined[1] is numbers


def test_the_gradient_of_a_loss_of_all_rows(both):
    rows = maps(3, 2).requires_grad_()
    rows.prod().backward()
    torch.testing.assert_close(torch.cat([found["gathered"] for found in both]), rows.grad)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_learn_what_one_does(both, name):
    for stage, expected in alone(name).items():
        first, second = (found[name][stage] for found in both)
        assert first.keys() == second.keys() == expected.keys()
        torch.testing.assert_close(first["loss"] + second["loss"], expected["loss"], rtol=1e-5, atol=1e-6)
        gradients = {key: value for key, value in expected.items() if key != "loss"}
        largest = max((float(gradient.abs().max()) for gradient in gradients.values()), default=0.0)
        assert largest > 0 or stage == "kdpp.class_means"
        for key, gradient in gradients.items():
            assert first[key].equal(second[key]), "the gradients are those of both processes"
            torch.testing.assert_close(first[key], gradient, rtol=1e-3, atol=1e-4 * largest, msg=f"{stage}, {key}")


@pytest.mark.parametrize("name", RELATED)
def test_slices_by_themselves_are_another_objective(both, name):
    expected = alone(name)["main"]["loss"]
    found = sum(found[f"{name} local"]["main"]["loss"] for found in both)
    assert abs(found - expected) > 1e-4 * abs(expected)
