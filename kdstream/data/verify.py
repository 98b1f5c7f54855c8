"""Reading every byte of a data set: checksums, indices and, if asked, every image."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from PIL import UnidentifiedImageError
from rich.console import Console

from kdstream.addresses import is_url, public
from kdstream.bars import progress_bars, reading_progress
from kdstream.data.checksums import (
    Checksums,
    Stopped,
    in_threads,
    state_of,
)
from kdstream.data.dataset_info import (
    DATASET_FILE,
    WORK_FOLDER,
    load_dataset_info,
)
from kdstream.data.foreign import foreign_file, foreign_splits, place_of
from kdstream.data.image_file import open_image
from kdstream.data.index import IMAGE_EXTENSIONS, build_index
from kdstream.data.sealed_json import SEAL
from kdstream.data.shard_set import ShardSet
from kdstream.data.shards import open_shards, other_checksums, size_problem, stale, state_file
from kdstream.errors import UserError


@dataclass(frozen=True)
class Verified:
    """What :func:`verify` read and found in order; ``decoded`` images were decoded too."""

    splits: int
    shards: int
    samples: int
    bytes: int
    decoded: int


def verify(path: str | os.PathLike[str], decode: bool = False, console: Console | None = None) -> Verified:
    """Read every byte of a data set: its checksums, and that its indices point where the tars say.

    Of tars without dataset.json nobody knows the right checksums: their bytes are compared with those that the index
    was made from, and every image is decoded.

    Args:
        path: the data set folder (all its splits), or one split of foreign tars.
        decode: decode every image also where checksums tell that it is what it was.
        console: where progress is shown; None: nowhere.

    Raises:
        UserError: nothing that can be verified, or damaged; names the damaged shards or images.
    """
    if is_url(path):
        raise UserError(f"{public(path)} is an address: shards there are checked when they are fetched")
    folder = Path(os.path.abspath(os.path.expanduser(os.fspath(path))))
    if (folder / WORK_FOLDER).is_dir() and not (folder / DATASET_FILE).is_file():
        raise UserError(f"the shards in {path} are half-made: run the same make_shards command again to finish")
    if (folder / DATASET_FILE).is_file():
        info = load_dataset_info(folder)
        if info.changed:
            raise UserError(
                f"{folder / DATASET_FILE} has been changed since it was made: copy it again, or if it was you, delete "
                f"its line {SEAL!r}"
            )
        for part in info.splits.values():
            for shard in part.shards:
                if problem := size_problem(folder / shard.name, shard.bytes):
                    raise UserError(f"{problem}; copy or make the shards again")
        tars = {
            split: (folder / split, [folder / shard.name for shard in part.shards])
            for split, part in info.splits.items()
        }
        expected = {folder / shard.name: shard.sha256 for part in info.splits.values() for shard in part.shards}
        memories = {split: Checksums(folder, state_file(split)) for split in tars}
    else:
        tars, memories, expected = {}, {}, {}
        for target in foreign_splits(folder, os.fspath(path)):
            place = place_of(target, str(target))
            tars[str(target)] = (target, place.tars)
            memory = memories[str(target)] = Checksums(place.folder, foreign_file(place.split, "state"))
            expected |= {tar: known.sha256 for tar in place.tars if (known := memory.known(tar.name))}
        decode = True
    work = [(memories[split], one) for split, (_, paths) in tars.items() for one in paths]
    total = sum(state_of(one).size for _, one in work)
    with reading_progress(total, f"verifying {folder.name}", console or Console(quiet=True)) as advance:

        def differs(task: tuple[Checksums, Path], stop: threading.Event) -> bool:
            memory, one = task
            made = memory.read(one.name, advance, stop)
            return made.sha256 != expected.get(one, made.sha256)

        damaged = [one for (_, one), wrong in zip(work, in_threads(differs, work), strict=True) if wrong]
    if damaged:
        raise other_checksums(damaged, len(work))
    samples = decoded = 0
    for split, (target, paths) in tars.items():
        memories[split].save()
        shards = open_shards(target)
        if not shards._index.same_as(build_index(paths, "")):
            raise UserError(stale(shards.path))
        samples += len(shards)
        if decode:
            decoded += _decode_all(shards, console or Console(quiet=True))
    return Verified(len(tars), len(work), samples, total, decoded)


def _decode_all(shards: ShardSet, console: Console) -> int:
    """Decode every image of a split; returns how many there are.

    Raises:
        UserError: some cannot be; names the first.
    """
    with progress_bars(console) as progress:
        bar = progress.add_task(f"decoding {shards.split}", total=len(shards))

        def problem_of(number: int, stop: threading.Event) -> str | None:
            if stop.is_set():
                raise Stopped
            sample = shards.read(number)
            progress.advance(bar)
            for extension in IMAGE_EXTENSIONS:
                if extension in sample:
                    try:
                        with open_image(sample[extension]) as image:
                            image.load()
                    except Exception as error:  # Pillow raises many kinds for damaged files
                        reason = "no image" if isinstance(error, UnidentifiedImageError) else error
                        return f"sample {sample['__key__']!r} of {sample['__url__']} (.{extension}: {reason})"
            return None

        problems = [problem for problem in in_threads(problem_of, range(len(shards))) if problem]
    if problems:
        raise UserError(
            f"{len(problems):,} of the {len(shards):,} images of {shards.path} ({shards.split}) cannot be decoded, the "
            f"first in {problems[0]}; mend or remove them"
        )
    return len(shards)
