"""Draws: uniform, independent of each other, fixed for ever."""

from __future__ import annotations

import torch

from kdstream.batch import Batch
from kdstream.rng import keys, mix, sample_keys, uniform, words


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


def test_words_are_random_in_every_bit_and_what_uniform_numbers_come_from():
    key = sample_keys(0, 0, torch.arange(20_000))
    drawn = words(key, 2, "test")
    bits = (drawn[..., None] >> torch.arange(64)) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 0.02
    assert uniform(key, 2, "test").equal(((drawn >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24)


def test_the_key_of_a_sample_is_its_batchs_or_its_index():
    images, index = torch.zeros(2, 3, 1, 1), torch.tensor([4, 9])
    assert keys(Batch(images, index, index)).equal(index)
    assert keys(Batch(images, index, index, rng_key=index + 1)).equal(index + 1)


def test_a_draw_leaves_its_keys_alone():
    key = torch.arange(5)
    mix(key), words(key, 3, "x"), uniform(key, 3, "x"), sample_keys(0, 0, key)
    assert key.equal(torch.arange(5))


def test_draws_are_the_ones_that_they_always_were():
    key = sample_keys(7, 3, torch.arange(3))
    assert key.tolist() == [-7198147092911042799, 1173472824657711729, 668567293345086073]
    assert (uniform(key, 2, "augment") * 2**24).long().tolist() == [
        [12477452, 5077572],
        [10346929, 16603796],
        [1248030, 7736455],
    ]
