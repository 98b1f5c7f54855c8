"""Samples whose image cannot be decoded: which share of them is put up with, and the file that lists them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdstream.errors import UserError

FAULTS = "skipped.jsonl"
"""The list's name in a training's folder."""


class Undecodable(UserError):
    """A sample's image cannot be decoded; ``index`` is the sample's number where it is known, ``key`` and ``shard`` its
    place, ``reason`` what the decoder says."""

    def __init__(self, message: str, reason: str = "", index: int | None = None, key: str = "", shard: str = ""):
        super().__init__(message)
        self.reason, self.index, self.key, self.shard = reason or message, index, key, shard


def allowed_share(policy: str) -> float | None:
    """The share of a split's samples that may be skipped, 0..1; None = none: stop.

    Args:
        policy: ``stop``, ``skip``, ``skip(0.001)``.

    Raises:
        UserError: anything else.
    """
    found = re.fullmatch(r"stop|skip(?:\(\s*([0-9.eE-]+)\s*\))?", policy)
    try:
        share = float(found[1]) if found and found[1] else 1.0
    except ValueError:
        found = None
    if not found or not 0 < share <= 1:
        raise UserError("on_error is stop, skip, or skip(SHARE) with a share above 0 and up to 1, as skip(0.001)")
    return None if policy == "stop" else share


@dataclass(frozen=True)
class Faults:
    """The list, one JSON object a line, which all processes of a machine add to.

    Attributes:
        file: where it is written.
        share: of the samples that may stand in it.
        total: samples of the split; None = unknown: then any number may.
    """

    file: Path
    share: float
    total: int | None

    def add(self, fault: Undecodable) -> None:
        """List a sample, once.

        Raises:
            UserError: the list cannot be written, or has more samples now than it may.
        """
        listed = self.listed()
        if (fault.index, fault.shard, fault.key) not in {(one["index"], one["shard"], one["key"]) for one in listed}:
            line = {"index": fault.index, "key": fault.key, "shard": fault.shard, "reason": fault.reason}
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                try:
                    os.write(file, json.dumps(line).encode() + b"\n")  # at once: other processes write, too
                finally:
                    os.close(file)
            except OSError as error:
                raise UserError(
                    f"cannot list a skipped sample in {self.file}: {error.strerror or error} (it is: {fault})"
                ) from error
            listed = self.listed()
        if self.total is not None and len(listed) > self.share * self.total:
            raise UserError(
                f"{len(listed):,} of {self.total:,} samples cannot be decoded, more than on_error=skip({self.share:g}) "
                f"allows; {self.file} lists them, the last: {fault.reason}"
            )

    def listed(self) -> list[dict[str, Any]]:
        """The samples of the list, each once."""
        try:
            lines = self.file.read_bytes().splitlines()
        except OSError:
            return []
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for line in lines:
            try:
                one = json.loads(line)
                found.setdefault((one["index"], one["shard"], one["key"]), one)
            except (ValueError, KeyError, TypeError):  # half a line, of a process that was killed
                continue
        return list(found.values())
