"""Vector instructions: the plain ones and those of this processor do what their names say, in every lane."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from kdstream.jpeg.vectors import Emitter, Machine

_, _, FEATURES = cpu_target.target_context.codegen().magic_tuple()
MACHINES = [Machine(4, "any"), Machine(16, "any")]
MACHINES += [
    machine
    for machine in (Machine(4, "ssse3"), Machine(8, "avx2"), Machine(16, "avx512bw"))
    if f"+{machine.name}" in FEATURES.split(",")
]


def limited(values, bits):
    return values.clip(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def chunks(values, dtype):
    """[chunks, elements of a chunk] of a vector seen as elements of a type."""
    return values.view(dtype).reshape(-1, 16 // np.dtype(dtype).itemsize)


def halves_in_turn(a, b, dtype):
    """What unpacking gives: from each chunk's lower (upper) half, a's and b's elements in turn."""
    a, b = chunks(a, dtype), chunks(b, dtype)
    both = np.stack([a, b], -1)
    half = a.shape[1] // 2
    return [part.reshape(-1).view(np.int32) for part in (both[:, :half].copy(), both[:, half:].copy())]


def joined(a, b, dtype, bits, narrow):
    parts = [limited(chunks(x, dtype), bits) for x in (a, b)]
    return np.concatenate(parts, 1).astype(narrow).reshape(-1).view(np.int32)


def expected(a, b):
    """What the methods of METHODS give for two vectors."""
    a16, b16 = a.view(np.int16).astype(np.int64), b.view(np.int16).astype(np.int64)
    sums = (a16 * b16).reshape(-1, 2).sum(1)

    def pairs(values):
        return values.astype(np.int16).view(np.int32)

    return {
        "add16": pairs(a16 + b16),
        "sub16": pairs(a16 - b16),
        "mul16": pairs(a16 * b16),
        "mulhi16": pairs((a16 * b16) >> 16),
        "mulhrs16": pairs((a16 * b16 + (1 << 14)) >> 15),
        "madd16": sums.astype(np.int32),
        "blend16": pairs(np.stack([a16[::2], b16[1::2]], -1).reshape(-1)),
        "unpack16": halves_in_turn(a, b, np.int16),
        "unpack8": halves_in_turn(a, b, np.int8),
        "pack32": joined(a, b, np.int32, 16, np.int16),
        "pack16": joined(a, b, np.int16, 8, np.int8),
    }


def made(machine, method, a, b):
    """What a method gives, compiled."""

    @intrinsic
    def run(typing_context, first, second, target):
        def generate(context, builder, signature, values):
            emitter = Emitter(builder, machine)
            result = getattr(emitter, method)(*(emitter.load(value) for value in values[:2]))
            for i, value in enumerate(result if isinstance(result, tuple) else (result,)):
                emitter.store(value, values[2], i * machine.bytes)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    result = np.zeros(2 * machine.lanes, np.int32)
    njit(lambda x, y, z: run(x, y, z))(a.ctypes.data, b.ctypes.data, result.ctypes.data)
    return result


@pytest.mark.parametrize("machine", MACHINES, ids=str)
def test_instructions(machine):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-(1 << 31), 1 << 31, machine.lanes).astype(np.int32) for _ in range(2))
    # Numbers near the limits; a few that need none; not two times -2**15, whose products sum up to 2**31.
    a[:2], b[:2] = (0x7FFF8001, -3), (0x7FFF7FFF, 200)
    for method, values in expected(a, b).items():
        values = np.concatenate(values) if isinstance(values, list) else values
        assert made(machine, method, a, b)[: len(values)].tolist() == values.tolist(), method


@pytest.mark.parametrize(
    ("triple", "features", "machine"),
    [
        ("x86_64-unknown-linux-gnu", "+avx2,+avx512bw,+avx512vl,+ssse3", Machine(16, "avx512bw")),
        ("x86_64-unknown-linux-gnu", "+avx2,+avx512bw,-avx512vl,+ssse3", Machine(8, "avx2")),
        ("x86_64-pc-windows-msvc", "-avx2,+ssse3", Machine(4, "ssse3")),
        ("x86_64-apple-darwin", "", Machine(4, "any")),
        ("arm64-apple-darwin", "+neon", Machine(4, "any")),
    ],
)
def test_machine_of_a_target(triple, features, machine):
    assert Machine.of(triple, features) == machine
    assert machine.bytes == 4 * machine.lanes
