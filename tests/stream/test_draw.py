"""Draws: uniform, independent of each other, fixed for ever."""

from __future__ import annotations

import torch

from kdstream.stream.draw import mix, sample_keys, uniform


def test_mix_is_splitmix64():
    # First outputs of SplitMix64 from state 0 (state advances by the golden gamma), as published with the algorithm.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    states = torch.tensor([0, 0x9E3779B97F4A7C15 - 2**64, (2 * 0x9E3779B97F4A7C15) % 2**64])
    assert [value % 2**64 for value in mix(states).tolist()] == expected


def test_uniform_numbers_are_uniform_and_independent():
    key = sample_keys(0, 0, torch.arange(20_000))
    draws = uniform(key, 4, "test").double()
    assert draws.min() >= 0
    assert draws.max() < 1
    assert (draws.mean(0) - 0.5).abs().max() < 0.01
    assert (draws.var(0) - 1 / 12).abs().max() < 0.003
    assert (torch.corrcoef(draws.T) - torch.eye(4)).abs().max() < 0.03
    others = uniform(key, 4, "another name").double()
    assert torch.corrcoef(torch.stack([draws[:, 0], others[:, 0]]))[0, 1].abs() < 0.03


def test_keys_differ_by_seed_epoch_and_index():
    keys = torch.cat([sample_keys(seed, epoch, torch.arange(500)) for seed in range(4) for epoch in range(4)])
    assert len(keys.unique()) == len(keys)


def test_a_sample_draws_the_same_alone_and_in_a_batch():
    key = sample_keys(3, 1, torch.arange(10))
    assert uniform(key, 5, "x")[7].equal(uniform(key[7:8], 5, "x")[0])
    assert uniform(key, 5, "x")[:, :2].equal(uniform(key, 2, "x"))
