"""Where a training stands, in a checkpoint and back; and what each process finds of itself there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdstream.errors import UserError
from kdstream.training.state import State, for_what_is_trained, of_every_process, restore_process
from kdstream.training.sums import Sums

CPU = torch.device("cpu")


@given(
    st.builds(State, *[st.integers(0)] * 4, st.floats(0, 1e9), st.integers(0), st.dictionaries(st.text(), st.floats()))
)
def test_a_state_comes_back_whatever_else_the_checkpoint_holds(state):
    saved = state.state_dict()
    assert (saved["global_step"], saved["global_epoch"]) == (state.step, state.epoch)
    assert vars(State.from_state_dict({**saved, "model": {}, "version": 3})) == vars(state)


def process(rank: int, world: int) -> SimpleNamespace:
    return SimpleNamespace(device=CPU, process_index=rank, num_processes=world)


def sums(value: float) -> Sums:
    made = Sums(["ce"], CPU)
    made.values += value
    return made


@pytest.mark.parametrize("world", [1, 2, 3])
def test_sums_of_processes_that_are_no_more_go_to_the_first(world):
    """Two processes saved; as many, fewer or more continue."""
    saved = {**of_every_process(process(0, 1), sums(1)), "stream": {"step": 4}}
    saved["others"] = [of_every_process(process(0, 1), sums(10))]
    found, told = [], set()
    for rank in range(world):
        here = sums(0)
        told.add(restore_process(process(rank, world), here, saved))
        found.append(here.values[0].item())
    assert found == {1: [11], 2: [1, 10], 3: [1, 10, 0]}[world]
    (note,) = told
    assert (note is None) == (world == 2)
    assert note is None or note.startswith(
        f"{world} process(es) continue from the state of 2: random numbers will differ"
    )


def test_random_numbers_go_on_and_sums_begin_anew_between_epochs():
    torch.manual_seed(5)
    saved = {**of_every_process(process(0, 1), sums(1)), "stream": {"step": 0}}
    expected = torch.rand(3)
    torch.manual_seed(6)
    here = sums(0)
    assert restore_process(process(0, 1), here, saved) is None
    assert torch.rand(3).equal(expected)
    assert not here.values.any()


def test_an_optimizers_state_moves_to_what_is_trained_or_is_refused():
    """An earlier version left out what its first images did not reach: here the second of three tensors."""
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4, bias=False))
    groups, reached = [list(network.named_parameters()), []], {"0.weight", "1.weight"}
    momentum = {0: {"momentum_buffer": torch.ones(3, 2)}, 1: {"momentum_buffer": torch.ones(4, 3)}}
    old = {"state": momentum, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    found = for_what_is_trained(old, groups, reached, Path("last.pt"))
    assert found["param_groups"] == [{"lr": 0.1, "params": [0, 1, 2]}]
    assert found["state"] == {0: momentum[0], 2: momentum[1]}
    assert for_what_is_trained(found, groups, reached, Path("last.pt")) == found
    reached = {"0.weight", "0.bias"}
    with pytest.raises(UserError, match=r"^last\.pt trains 2 tensors, this recipe 3: an earlier version left out"):
        for_what_is_trained(old, groups, reached, Path("last.pt"))
