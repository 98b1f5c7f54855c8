"""dataset.json: what a data set's folder says of itself, validated."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from kdstream.atomic import write_atomic
from kdstream.data.sealed_json import SEAL, seal_fits, sealed
from kdstream.errors import UserError

SCHEMA = 1
DATASET_FILE = "dataset.json"
WORK_FOLDER = ".making"
"""Where a conversion keeps what it has not finished; a folder that has it without dataset.json is half-made."""

Length = Annotated[int, Field(ge=1)]
Size = tuple[Length, Length]
Level = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Channels = tuple[Level, Level, Level]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class ShardInfo(_Strict):
    """One tar file."""

    name: str = Field(pattern=r"^[^/\x00]+\.tar$")
    count: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class SkippedInfo(_Strict):
    """A source file that could not be read as an image and was left out."""

    file: str
    error: str


class ImageSizes(_Strict):
    """(height, width), each the least and the greatest over the split's images."""

    min: Size
    max: Size


class SplitInfo(_Strict):
    """One split: its shards and what was measured over its images; ``adjusted`` as in ImageStats."""

    count: int = Field(ge=0)
    index: str = Field(pattern=r"^[^/\x00]+\.npz$")
    fingerprint: str
    image_size: ImageSizes
    mean: Channels
    std: Channels
    shards: list[ShardInfo] = Field(min_length=1)
    skipped: list[SkippedInfo] = []
    adjusted: dict[str, int] = {}


class DatasetInfo(_Strict):
    """The whole file.

    ``sha256`` is its own checksum, see :mod:`~kdstream.data.sealed_json`; None in older ones. ``changed`` tells of a
    file that was read whether it has been changed by somebody else since it was made.
    """

    schema_version: int = Field(alias="schema")
    classes: list[str] = Field(min_length=1)
    splits: dict[Annotated[str, Field(pattern=r"^[^/\x00]+$")], SplitInfo] = Field(min_length=1)
    source: str
    made: dict[str, Any]
    sha256: str | None = None
    _changed: bool = PrivateAttr(False)

    @property
    def changed(self) -> bool:
        """Whether the file that this was read from is not as it was written."""
        return self._changed

    def save(self, folder: Path) -> None:
        """Write atomically: temporary file, fsync, rename."""
        data = sealed(json.loads(self.model_dump_json(by_alias=True)))
        write_atomic(folder / DATASET_FILE, json.dumps(data, indent=1, ensure_ascii=False).encode() + b"\n")


def load_dataset_info(folder: Path) -> DatasetInfo:
    """Read and check ``folder/dataset.json``.

    Raises:
        UserError: unreadable, not JSON, of a newer schema, or fields that do not fit.
    """
    path = folder / DATASET_FILE
    hint = "make the shards again with kdstream shards --force"
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: no valid JSON ({error}); {hint}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise UserError(f"{path} has schema {schema}, this kdstream reads up to {SCHEMA}: update kdstream")
    try:
        info = DatasetInfo.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path} is damaged: {where}: {first['msg']}; {hint}") from error
    for name, part in info.splits.items():
        if part.fingerprint != fingerprint(part.shards) or part.count != sum(shard.count for shard in part.shards):
            raise UserError(
                f"{path} is damaged: the shards of {name} are not those of its fingerprint and count; {hint}"
            )
    info._changed = SEAL in data and not seal_fits(data)
    return info


def fingerprint(shards: list[ShardInfo]) -> str:
    """A hex hash that changes whenever the contents of the shards do (and not when they are renamed or moved)."""
    return hashlib.sha256(json.dumps([[s.count, s.bytes, s.sha256] for s in shards]).encode()).hexdigest()[:32]
