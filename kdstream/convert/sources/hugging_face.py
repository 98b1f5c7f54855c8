"""hf: a data set of the Hugging Face hub, or a folder in its form: parquet files of images, or image folders."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from kdstream.convert.sources.image_folders import imagefolder
from kdstream.convert.split import Source, Split
from kdstream.convert.split_names import split_of
from kdstream.convert.spooled import Given, Spool
from kdstream.data.image_file import EXTENSIONS, format_of
from kdstream.errors import UserError

_PLACE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(#(?P<config>[\w.-]+))?", re.ASCII)
_CONVERTED = "refs/convert/parquet"
"""The branch on which the hub keeps data sets of other forms as parquet, a folder a configuration."""
_ROWS = 64
"""Rows of a parquet file that stand in memory together."""


def hugging_face(place: str, splits: Sequence[str] | None) -> Source:
    """Parquet files with a column of images and one of labels, as the hub has them; else image folders.

    Nothing of a data set is executed: no loading script, no pickle.

    Args:
        place: ``ORG/NAME``, ``ORG/NAME@REVISION`` (a branch, tag or commit), ``ORG/NAME#CONFIGURATION`` where there are
            several; or a folder that holds such files.
        splits: see :func:`kdstream.convert.open_source.open_source`.

    Raises:
        UserError: no such data set, or one of another form; pyarrow is not installed.
    """
    if not place:
        raise UserError("source 'hf' needs a data set: hf:ORG/NAME")
    config = place.rpartition("#")[2] if "#" in place else None
    local = Path(os.path.abspath(os.path.expanduser(place.partition("#")[0])))
    if local.is_dir():
        root, names = local, sorted(path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file())
        files = _parquet(names, config, place)
    elif found := _PLACE.fullmatch(place):
        root, names, files = _fetched(found["repo"], found["revision"], config, place, splits)
    else:
        raise UserError(f"hf:{place} is neither a folder nor a data set's name: write hf:ORG/NAME")
    name = f"hf:{place}"
    if not files:
        source = imagefolder(str(root), splits)
        return Source(name, source.classes, source.splits, source.notes, root)
    return _from_parquet(name, root, files, splits)


def _fetched(
    repo: str, revision: str | None, config: str | None, place: str, splits: Sequence[str] | None
) -> tuple[Path, list[str], dict[str, list[str]]]:
    """Downloads what is needed into the hub's own cache, with its progress bars; (folder, names, files by split)."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi()

    def listed(branch: str | None) -> list[str]:
        return sorted(api.list_repo_files(repo, repo_type="dataset", revision=branch))

    try:
        names = listed(revision)
        files = _parquet(names, config, place)
        images = any(PurePosixPath(name).suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") for name in names)
        if not files and not images and revision is None:
            revision = _CONVERTED
            names = listed(revision)
            files = _parquet(names, config, place)
        wanted = [n for split, some in files.items() if splits is None or split in splits for n in some]
        if files and not wanted:
            raise UserError(f"hf:{place} has no split {(splits or [''])[0]!r}: found {', '.join(files)}")
        root = snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=wanted or None)
    except RepositoryNotFoundError:
        raise UserError(f"the hub has no data set {repo!r}, or it is private: log in with `hf auth login`") from None
    except RevisionNotFoundError:
        what = f"no revision {revision!r}" if revision != _CONVERTED else "neither parquet files nor images"
        raise UserError(f"the data set {repo!r} of the hub has {what}") from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"cannot fetch hf:{place} ({' '.join(str(error).split())[:200]})") from error
    return Path(root), names, files


def _parquet(names: Sequence[str], config: str | None, place: str) -> dict[str, list[str]]:
    """Split -> parquet files of it, by their names: ``data/train-00000-of-00002.parquet``, ``plain/train/0.parquet``.

    Raises:
        UserError: several configurations of which none is chosen, or one that there is not.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        path = PurePosixPath(name)
        if path.suffix != ".parquet":
            continue
        word = re.sub(r"[-_.]?\d+(-of-\d+)?(-[0-9a-f]{8,})?$", "", path.stem)
        parents = [part for part in path.parts[:-1] if part != "data"]
        split = split_of(word) or word
        if not split or (parents and not split_of(word)):
            split = split_of(parents[-1]) or parents[-1] if parents else "train"
            parents = parents[:-1]
        found.setdefault("/".join(parents), {}).setdefault(split, []).append(name)
    if not found:
        return {}
    if config is None:
        config = next(iter(found)) if len(found) == 1 else "default" if "default" in found else ""
    if config not in found:
        some = ", ".join(filter(None, sorted(found))) or "none"
        raise UserError(f"hf:{place}: name one of its configurations, as hf:ORG/NAME#CONFIGURATION; found {some}")
    return found[config]


def _from_parquet(name: str, root: Path, files: dict[str, list[str]], splits: Sequence[str] | None) -> Source:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError('parquet files are read by pyarrow: pip install "kdstream[hf]"') from None
    spool, made, classes, notes = Spool(), dict[str, Split](), list[str](), list[str]()
    for split, some in files.items():
        if splits is not None and split not in splits:
            continue
        opened = []
        for one in some:
            try:
                opened.append(parquet.ParquetFile(root / one))
            except Exception as error:  # of a dozen kinds
                raise UserError(f"{root / one} is no parquet file, or damaged ({error})") from error
        image, label, names = _columns(opened[0].schema_arrow, root / some[0])
        if names is None:
            numbers = [v for file in opened for v in file.read([label])[label].to_pylist()]
            names = _names(numbers, root / some[0], label)
        if classes and classes != names:
            raise UserError(f"{name}: the splits name their classes differently ({split}): take one with --split")
        classes = names
        others = [field for field in opened[0].schema_arrow.names if field not in (image, label)]
        if others:
            notes.append(f"{split}: the columns {image!r} and {label!r} are taken; left out: {', '.join(others[:8])}")
        made[split] = spool.take(split, _images(opened, image, label, classes, f"{name}, {split}"))
    return Source(name, classes, made, notes, root)


def _columns(schema: Any, file: Path) -> tuple[str, str, list[str] | None]:
    """(column of images, of labels, names of the classes or None), by what ``datasets`` writes into the file; else by
    their types and names.

    Raises:
        UserError: no column, or several, that may be meant.
    """
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = told["info"]["features"]
    except (ValueError, KeyError, TypeError):
        features = {}
    known = {column: about for column, about in features.items() if column in schema.names and isinstance(about, dict)}
    images = [column for column, about in known.items() if about.get("_type") == "Image"]
    labels = [column for column, about in known.items() if about.get("_type") == "ClassLabel"]
    names = None
    if not images:
        images = [f.name for f in schema if str(f.type).startswith(("struct<bytes: binary", "binary", "large_binary"))]
    if len(labels) > 1:  # CIFAR-100 has coarse ones beside
        labels = [column for column in labels if column in ("label", "fine_label")] or labels
    if labels:
        names = [str(one) for one in known[labels[0]].get("names") or []] or None
    else:
        labels = [f.name for f in schema if f.name.lower() in ("label", "labels", "class", "target", "fine_label")]
    for what, found in (("images", images), ("labels", labels)):
        if len(found) != 1:
            which = f"several ({', '.join(found)})" if found else f"none (it has {', '.join(schema.names)})"
            raise UserError(f"{file}: a column of {what} is needed, found {which}: write a source of your own")
    return images[0], labels[0], names


def _names(values: Sequence[Any], file: Path, column: str) -> list[str]:
    """Class names where the file has none: those of a text column, or numbers."""
    if values and all(isinstance(value, str) for value in values):
        return sorted(set(values))
    if values and all(isinstance(value, int) and 0 <= value < 1_000_000 for value in values):
        return [str(number) for number in range(max(values) + 1)]
    raise UserError(f"{file}: the column {column!r} holds neither class numbers nor names for every image")


def _images(opened: Sequence[Any], image: str, label: str, classes: Sequence[str], what: str) -> Iterator[Given]:
    """All rows.

    Raises:
        UserError: a row without image or class, or with an unknown one.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    row = 0
    for file in opened:
        for batch in file.iter_batches(_ROWS, columns=[image, label]):
            columns = batch.to_pydict()
            for value, found in zip(columns[image], columns[label], strict=True):
                data = value.get("bytes") if isinstance(value, dict) else value
                number = numbers.get(found) if isinstance(found, str) else found
                if not isinstance(data, bytes) or not data:
                    raise UserError(f"{what}: row {row:,} holds no image")
                if not isinstance(number, int) or not 0 <= number < len(classes):
                    raise UserError(f"{what}: row {row:,} is of class {found!r}, which is none of its classes")
                try:
                    extension = EXTENSIONS[format_of(data)]
                except ValueError:  # whoever writes the shard says what it is
                    extension = "jpg"
                yield Given((classes[number], f"{row:08d}"), data, extension, number)
                row += 1
