"""The members of a tar, read from its headers alone: bounded time and memory whatever the headers claim.

tarfile trusts what a header says of sizes: a negative one sends it backwards for ever (CVE-2025-8194), a large one
makes it reserve as much memory, other damage ends in a dozen kinds of exceptions or is taken for the archive's end.
Where samples lie is all that is needed here, which is a page of code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from kdstream.errors import UserError
from kdstream.terminal import quoted

BLOCK = 512
MOST_EXTENDED = 1 << 20
"""Bytes of a long name or of a pax header, at most; paths have 4,096 where files are made."""
FILES, HARD_LINK, SYMBOLIC_LINK, FOLDER = (b"0", b"\0", b"7"), b"1", b"2", b"5"
SPARSE = b"S"
_LONG_NAME, _LONG_TARGET, _PAX, _PAX_GLOBAL = b"L", b"K", (b"x", b"X"), b"g"
_WITHOUT_DATA = (HARD_LINK, SYMBOLIC_LINK, b"3", b"4", FOLDER, b"6")
_EXTENDED = {_LONG_NAME: "long name", _LONG_TARGET: "long link target"} | dict.fromkeys(
    (*_PAX, _PAX_GLOBAL), "pax header"
)
# fmt: off
_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip"), (b"BZh", "bzip2", "bunzip2"), (b"\xfd7zXZ\0", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"), (b"\x04\x22\x4d\x18", "lz4", "unlz4"), (b"\x5d\0\0", "lzma", "unlzma"),
    (b"LZIP", "lzip", "lzip -d"), (b"PK\3\4", "zip", "unzip and tar"), (b"7z\xbc\xaf", "7-Zip", "7z and tar"),
)
# fmt: on


class Member(NamedTuple):
    """What a header says of a member.

    Attributes:
        name: as tarfile gives it: UTF-8, other bytes as surrogate escapes.
        type: the header's type flag.
        offset: where its bytes begin in the file.
        size: how many they are; 0 for what has none (links, folders, devices).
        target: of a link, else "".
        sparse: the bytes are not the file's but parts of it.
        archive: 0 for the first archive of the file, 1 for one joined to its end, and so on.
    """

    name: str
    type: bytes
    offset: int
    size: int
    target: str
    sparse: bool
    archive: int


def members(path: Any, file: int, length: int) -> Iterator[Member]:
    """The members of an uncompressed tar, in order: ustar, GNU and pax formats, and old ones without a magic.

    Archives joined end to end (``cat a.tar b.tar``) are read one after the other, as by ``tar --ignore-zeros``.

    Args:
        path: names the file in messages.
        file: its descriptor; the position is neither used nor moved.
        length: its size in bytes.

    Raises:
        UserError: compressed, truncated, damaged or no tar at all.
    """
    position = begin = archive = 0  # of this header, of the archive that it stands in, and that one's number
    local: dict[str, Any] = {}  # what extended headers say of the next member
    everywhere: dict[str, Any] = {}  # what global ones say of all that follow
    while True:
        header = os.pread(file, BLOCK, position)
        if header.count(0) == BLOCK:
            if local:
                raise _damaged(path, position, "an extended header without its member")
            position = begin = _behind_end_mark(file, position)
            archive, everywhere = archive + 1, {}
            if position >= length:
                return
            continue
        size = _size(header)
        if size is None:
            raise _no_header(path, header, position, begin, length)
        if size < 0:
            raise _damaged(path, position, f"a member of {size} bytes")
        kind = header[156:157]
        if kind in _EXTENDED:
            if size > MOST_EXTENDED:
                what = f"a {_EXTENDED[kind]} of {size:,} bytes"
                raise _damaged(path, position, what)
            data = _pread(path, file, size, position + BLOCK, length)
            if kind == _LONG_NAME:
                local.setdefault("path", _text(data))
            elif kind == _LONG_TARGET:
                local.setdefault("linkpath", _text(data))
            else:
                said = _pax(path, data, position)
                if kind == _PAX_GLOBAL:
                    everywhere.update(said)
                else:
                    local = {**said, **local}
            position += BLOCK + _blocks(size)
            continue
        said = {**everywhere, **local} if everywhere else local
        local = {}
        name = said.get("path") or _name(header, kind)
        if kind == b"\0" and name.endswith("/"):
            kind = FOLDER  # so old archives say it
        size = 0 if kind in _WITHOUT_DATA else said.get("size", size)
        offset = position + BLOCK
        sparse = kind == SPARSE or "sparse" in said
        if kind == SPARSE and header[482]:
            offset = _behind_sparse_map(path, file, offset, length)
        if offset + size > length:
            raise UserError(f"shard {path} is truncated: {quoted(name)} runs past its end ({length} bytes)")
        target = ""
        if kind in (HARD_LINK, SYMBOLIC_LINK):
            target = said.get("linkpath") or _text(header[157:257])
        if kind == FOLDER:
            name = name.rstrip("/")
        yield Member(said.get("sparse name") or name, kind, offset, size, target, sparse, archive)
        position = offset + _blocks(size)


def _size(header: bytes) -> int | None:
    """The size field; None for what is no header: too short, another checksum, no numbers."""
    if len(header) < BLOCK:
        return None
    try:
        total, stated = sum(header) - sum(header[148:156]) + 8 * 0x20, _number(header[148:156])
        if stated != total:  # some old programs summed signed bytes
            high = sum(byte > 127 for byte in header[:148] + header[156:])
            if stated != total - 256 * high:
                return None
        return _number(header[124:136])
    except ValueError:
        return None


def _no_header(path: Any, found: bytes, position: int, begin: int, length: int) -> UserError:
    """What to say of ``found``, which stands at ``position`` and is no header; its archive begins at ``begin``."""
    if position > begin:
        if len(found) < BLOCK:
            return UserError(f"shard {path} is truncated: it ends at byte {length} without the tar end mark")
        return UserError(f"shard {path} is damaged: no tar header at byte {position}; copy or make it again")
    if begin > 0:
        return UserError(
            f"shard {path} is damaged: behind its end mark stands something that is no tar; if it may go, cut it off: "
            f"truncate -s {position} {path}"
        )
    for magic, name, command in _COMPRESSED:
        if found.startswith(magic):
            return UserError(
                f"shard {path} is compressed ({name}): unpack it with {command}, samples are read at random positions"
            )
    if not found:
        return UserError(f"shard {path} is no tar file or truncated: it is empty")
    what = "truncated" if len(found) < BLOCK else "damaged"
    return UserError(f"shard {path} is no tar file or {what}: no tar header at its beginning")


def _number(field: bytes) -> int:
    """Octal digits, or base 256 where the first byte says so (negative numbers too).

    Raises:
        ValueError: neither.
    """
    if field[0] in (0x80, 0xFF):
        value = int.from_bytes(field[1:], "big")
        return value - (1 << 8 * (len(field) - 1)) if field[0] == 0xFF else value
    digits = field.partition(b"\0")[0].strip()
    if digits.strip(b"01234567"):
        raise ValueError
    return int(digits or b"0", 8)


def _name(header: bytes, kind: bytes) -> str:
    name = _text(header[:100])
    # Where GNU's own format keeps times, POSIX has the name's beginning.
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" and kind != SPARSE else ""
    return f"{prefix}/{name}" if prefix else name


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _pread(path: Any, file: int, size: int, offset: int, length: int) -> bytes:
    data = os.pread(file, size, offset)
    if len(data) < size:
        raise UserError(f"shard {path} is truncated: a header runs past its end ({length} bytes)")
    return data


def _pax(path: Any, data: bytes, position: int) -> dict[str, Any]:
    """What a pax header says of name, link target, size and sparseness; the rest is not needed here."""
    found: dict[str, Any] = {}
    at = 0
    while at < len(data) and data[at]:
        record = re.compile(rb"([0-9]{1,7}) ([^=\n]*)=").match(data, at)
        end = at + int(record[1]) if record else 0
        if record is None or not record.end() < end <= len(data) or data[end - 1] != 0x0A:
            raise _damaged(path, position, "a pax header with a broken record")
        keyword, value = record[2], data[record.end() : end - 1]
        at = end
        if keyword == b"path":
            found["path"] = value.decode("utf-8", "surrogateescape").rstrip("/")
        elif keyword == b"linkpath":
            found["linkpath"] = value.decode("utf-8", "surrogateescape")
        elif keyword == b"size":
            if not re.fullmatch(rb"[0-9]{1,20}", value):
                raise _damaged(path, position, "a pax header whose size is no number")
            found["size"] = int(value)
        elif keyword.startswith(b"GNU.sparse."):
            found["sparse"] = True
            if keyword == b"GNU.sparse.name":
                found["sparse name"] = value.decode("utf-8", "surrogateescape")
    return found


def _behind_sparse_map(path: Any, file: int, offset: int, length: int) -> int:
    """Where a sparse member's bytes begin: each block of its map says whether another follows."""
    more = 1
    while more:
        more = _pread(path, file, BLOCK, offset, length)[504]
        offset += BLOCK
    return offset


def _behind_end_mark(file: int, position: int) -> int:
    """The first block behind ``position`` that is not all zeros, or the end of the file."""
    while block := os.pread(file, 1 << 16, position):
        rest = block.lstrip(b"\0")
        if rest:
            return position + (len(block) - len(rest)) // BLOCK * BLOCK
        position += len(block)
    return position


def _damaged(path: Any, position: int, what: str) -> UserError:
    return UserError(f"shard {path} is damaged: {what} at byte {position}; copy or make the shard again")
