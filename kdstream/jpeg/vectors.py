"""Vector instructions for numba kernels: groups of 16-bit pairs, written out as LLVM code.

Compilers do not find 16-bit multiply-and-add in plain loops; here it is asked for by name. On x86-64 most methods below
are one machine instruction (SSSE3, AVX2 or AVX-512); on other processors LLVM translates plain vector code, with the
same results.

A vector has ``lanes`` lanes of 32 bits. Many methods see each lane as a pair of signed 16-bit numbers, (low half,
high half): their names end in 16.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from llvmlite import ir
from numba.core import cgutils

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_CHUNK = 4
"""Lanes in 128 bits: on every processor the cheap shuffles stay inside of such chunks."""


@dataclass(frozen=True)
class Machine:
    """What the compiler may use.

    Attributes:
        lanes: 32-bit lanes of a vector: the registers' width.
        name: "avx512bw", "avx2", "ssse3", or "any" for plain LLVM vector code.
    """

    lanes: int
    name: str

    @staticmethod
    def of(triple: str, features: str) -> Machine:
        """The machine for LLVM's target triple and feature string ("+avx2,-avx512bw,...")."""
        given = set(features.split(","))
        if triple.startswith(("x86_64", "i686", "i386")):
            if {"+avx512bw", "+avx512vl"} <= given:
                return Machine(16, "avx512bw")
            if "+avx2" in given:
                return Machine(8, "avx2")
            if "+ssse3" in given:
                return Machine(4, "ssse3")
        return Machine(4, "any")

    @property
    def bytes(self) -> int:
        """Bytes of one vector."""
        return 4 * self.lanes


_X86_NAMES = {
    "madd": {"ssse3": "sse2.pmadd.wd", "avx2": "avx2.pmadd.wd", "avx512bw": "avx512.pmaddw.d.512"},
    "mulhrs": {"ssse3": "ssse3.pmul.hr.sw.128", "avx2": "avx2.pmul.hr.sw", "avx512bw": "avx512.pmul.hr.sw.512"},
    "mulhi": {"ssse3": "sse2.pmulh.w", "avx2": "avx2.pmulh.w", "avx512bw": "avx512.pmulh.w.512"},
    "pack32": {"ssse3": "sse2.packssdw.128", "avx2": "avx2.packssdw", "avx512bw": "avx512.packssdw.512"},
    "pack16": {"ssse3": "sse2.packsswb.128", "avx2": "avx2.packsswb", "avx512bw": "avx512.packsswb.512"},
}


class Emitter:
    """Writes vector instructions at an LLVM builder's position. Vectors are LLVM values of type <lanes x i32>."""

    def __init__(self, builder: ir.IRBuilder, machine: Machine) -> None:
        self.builder, self.machine, self.lanes = builder, machine, machine.lanes

    @cached_property
    def v32(self) -> ir.VectorType:
        """<lanes x i32>"""
        return ir.VectorType(I32, self.lanes)

    @cached_property
    def v16(self) -> ir.VectorType:
        """<2 lanes x i16>"""
        return ir.VectorType(I16, 2 * self.lanes)

    @cached_property
    def v8(self) -> ir.VectorType:
        """<4 lanes x i8>"""
        return ir.VectorType(I8, 4 * self.lanes)

    # Memory and constants

    def pointer(self, address: ir.Value, offset: int, kind: ir.Type) -> ir.Value:
        """An address (an integer) plus a number of bytes, as a pointer."""
        place = self.builder.add(address, ir.Constant(I64, offset))
        return self.builder.inttoptr(place, kind.as_pointer())

    def load(self, address: ir.Value, offset: int = 0) -> ir.Value:
        """The vector at an address, which needs no alignment."""
        return self.builder.load(self.pointer(address, offset, self.v32), align=1)

    def store(self, value: ir.Value, address: ir.Value, offset: int = 0) -> None:
        """Write a vector."""
        self.builder.store(value, self.pointer(address, offset, self.v32), align=1)

    def load_splat(self, address: ir.Value, offset: int = 0) -> ir.Value:
        """The 32 bits at an address, in every lane."""
        one = self.builder.load(self.pointer(address, offset, I32), align=4)
        first = self.builder.insert_element(ir.Constant(self.v32, ir.Undefined), one, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, first, zeros)

    def constant(self, value: int) -> ir.Constant:
        """A 32-bit number in every lane."""
        return ir.Constant(self.v32, [value] * self.lanes)

    def pair(self, low: int, high: int) -> ir.Constant:
        """A pair of 16-bit numbers in every lane."""
        word = (low & 0xFFFF) | (high & 0xFFFF) << 16
        return self.constant(word - (1 << 32) if word >> 31 else word)

    # 32-bit lanes

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """a + b"""
        return self.builder.add(a, b)

    def sub(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """a - b"""
        return self.builder.sub(a, b)

    def bits_and(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """a & b"""
        return self.builder.and_(a, b)

    def bits_or(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """a | b"""
        return self.builder.or_(a, b)

    def bits_xor(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """a ^ b"""
        return self.builder.xor(a, b)

    def left(self, a: ir.Value, bits: int) -> ir.Value:
        """a << bits"""
        return self.builder.shl(a, self.constant(bits))

    def right(self, a: ir.Value, bits: int) -> ir.Value:
        """a >> bits, the sign kept"""
        return self.builder.ashr(a, self.constant(bits))

    def right_unsigned(self, a: ir.Value, bits: int) -> ir.Value:
        """a >> bits, zeros moved in"""
        return self.builder.lshr(a, self.constant(bits))

    # Pairs of 16 bits

    def add16(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """a + b, without carry from half to half"""
        return self._as32(self.builder.add(self._as16(a), self._as16(b)))

    def sub16(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """a - b, without borrow"""
        return self._as32(self.builder.sub(self._as16(a), self._as16(b)))

    def right16(self, a: ir.Value, bits: int) -> ir.Value:
        """a >> bits, the signs kept"""
        count = ir.Constant(self.v16, [bits] * (2 * self.lanes))
        return self._as32(self.builder.ashr(self._as16(a), count))

    def mul16(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The low 16 bits of a * b"""
        return self._as32(self.builder.mul(self._as16(a), self._as16(b)))

    def mulhi16(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """floor(a * b / 2**16)"""
        return self._call16("mulhi", a, b) or self._scaled16(a, b, 16, half=False)

    def mulhrs16(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """floor(a * b / 2**15 + 1/2)"""
        return self._call16("mulhrs", a, b) or self._scaled16(a, b, 15, half=True)

    def madd16(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Low half of a * low half of b + high half of a * high half of b, as 32 bits"""
        name = _X86_NAMES["madd"].get(self.machine.name)
        if name:
            return self._intrinsic(name, self.v32, self._as16(a), self._as16(b))
        low = self.builder.mul(self.right(self.left(a, 16), 16), self.right(self.left(b, 16), 16))
        return self.builder.add(low, self.builder.mul(self.right(a, 16), self.right(b, 16)))

    def blend16(self, low: ir.Value, high: ir.Value) -> ir.Value:
        """The low halves of one vector with the high halves of another"""
        size = 2 * self.lanes
        picks = [i if i % 2 == 0 else size + i for i in range(size)]
        return self._as32(self._shuffle(self._as16(low), self._as16(high), picks))

    def swap16(self, a: ir.Value) -> ir.Value:
        """(high half, low half)"""
        return self.bits_or(self.left(a, 16), self.right_unsigned(a, 16))

    # Between chunks' elements

    def unpack16(self, a: ir.Value, b: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Pairs (one 16-bit number of a, one of b): those of each chunk's lower half of numbers, and of its upper."""
        return self._unpacked(self._as16(a), self._as16(b), 2 * _CHUNK)

    def unpack8(self, a: ir.Value, b: ir.Value) -> tuple[ir.Value, ir.Value]:
        """16-bit numbers (low byte a's, high byte b's): of each chunk's lower half of bytes, and of its upper."""
        return self._unpacked(self.builder.bitcast(a, self.v8), self.builder.bitcast(b, self.v8), 4 * _CHUNK)

    def pack32(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """32-bit numbers limited to 16 bits: in each chunk, a's then b's. Undoes :meth:`unpack16`."""
        name = _X86_NAMES["pack32"].get(self.machine.name)
        if name:
            return self._as32(self._intrinsic(name, self.v16, a, b))
        a, b = (self.builder.trunc(self._limited(x, self.v32, 16), ir.VectorType(I16, self.lanes)) for x in (a, b))
        return self._as32(self._shuffle(a, b, self._chunks_in_turn(self.lanes, _CHUNK)))

    def pack16(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """16-bit numbers limited to 8 bits: in each chunk, a's then b's."""
        name = _X86_NAMES["pack16"].get(self.machine.name)
        if name:
            return self._as32(self._intrinsic(name, self.v8, self._as16(a), self._as16(b)))
        half = ir.VectorType(I8, 2 * self.lanes)
        a, b = (self.builder.trunc(self._limited(self._as16(x), self.v16, 8), half) for x in (a, b))
        return self._as32(self._shuffle(a, b, self._chunks_in_turn(2 * self.lanes, 2 * _CHUNK)))

    def transpose8(self, a: ir.Value) -> ir.Value:
        """Each chunk as a 4x4 matrix of bytes, transposed."""
        picks = [first + 4 * (i % 4) + i // 4 for first in range(0, 4 * self.lanes, 16) for i in range(16)]
        wide = self.builder.bitcast(a, self.v8)
        return self._as32(self._shuffle(wide, wide, picks))

    def shuffle32(self, a: ir.Value, b: ir.Value, picks: Sequence[int]) -> ir.Value:
        """In each chunk, 4 of the 8 lanes: 0..3 are a's, 4..7 are b's."""
        all_picks = [
            first + pick if pick < _CHUNK else self.lanes + first + pick - _CHUNK
            for first in range(0, self.lanes, _CHUNK)
            for pick in picks
        ]
        return self._shuffle(a, b, all_picks)

    def select(self, where: Sequence[int], limit: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """a in the lanes whose constant of ``where`` is at least ``limit`` (an i32), b in the others."""
        first = self.builder.insert_element(ir.Constant(self.v32, ir.Undefined), limit, ir.Constant(I32, 0))
        limits = self._shuffle(first, first, [0] * self.lanes)
        return self.builder.select(self.builder.icmp_signed(">=", ir.Constant(self.v32, list(where)), limits), a, b)

    # Inside

    def _as16(self, value: ir.Value) -> ir.Value:
        return self.builder.bitcast(value, self.v16)

    def _as32(self, value: ir.Value) -> ir.Value:
        return self.builder.bitcast(value, self.v32)

    def _shuffle(self, a: ir.Value, b: ir.Value, picks: Iterable[int]) -> ir.Value:
        picks = list(picks)
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(picks)), picks))

    def _unpacked(self, a: ir.Value, b: ir.Value, chunk: int) -> tuple[ir.Value, ir.Value]:
        """In each chunk of so many elements a's and b's in turn, from the first half and from the second."""
        low, high = (
            [
                side + first + i
                for first in range(0, a.type.count, chunk)
                for i in range(start, start + chunk // 2)
                for side in (0, a.type.count)
            ]
            for start in (0, chunk // 2)
        )
        return self._as32(self._shuffle(a, b, low)), self._as32(self._shuffle(a, b, high))

    @staticmethod
    def _chunks_in_turn(size: int, chunk: int) -> list[int]:
        """Picks that put the chunks of two vectors beside each other."""
        return [side + first + i for first in range(0, size, chunk) for side in (0, size) for i in range(chunk)]

    def _intrinsic(self, name: str, result: ir.Type, *given: ir.Value) -> ir.Value:
        kind = ir.FunctionType(result, [value.type for value in given])
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.x86.{name}")
        return self.builder.call(function, given)

    def _call16(self, what: str, a: ir.Value, b: ir.Value) -> ir.Value | None:
        name = _X86_NAMES[what].get(self.machine.name)
        return name and self._as32(self._intrinsic(name, self.v16, self._as16(a), self._as16(b)))

    def _scaled16(self, a: ir.Value, b: ir.Value, bits: int, half: bool) -> ir.Value:
        wide = ir.VectorType(I32, 2 * self.lanes)
        product = self.builder.mul(*(self.builder.sext(self._as16(x), wide) for x in (a, b)))
        if half:
            product = self.builder.add(product, ir.Constant(wide, [1 << (bits - 1)] * (2 * self.lanes)))
        shifted = self.builder.ashr(product, ir.Constant(wide, [bits] * (2 * self.lanes)))
        return self._as32(self.builder.trunc(shifted, self.v16))

    def _limited(self, value: ir.Value, kind: ir.VectorType, bits: int) -> ir.Value:
        """Numbers limited to what ``bits`` bits with sign hold."""
        for bound, worse in ((-(1 << (bits - 1)), "<"), ((1 << (bits - 1)) - 1, ">")):
            limit = ir.Constant(kind, [bound] * kind.count)
            value = self.builder.select(self.builder.icmp_signed(worse, value, limit), limit, value)
        return value
