"""stanford_dogs: Stanford Dogs, as its archives unpack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdstream.convert.sources.listed import folder_of, named_files
from kdstream.convert.split import Source
from kdstream.errors import UserError

LISTS = {"train": "train_list.mat", "test": "test_list.mat"}


def stanford_dogs(place: str, splits: Sequence[str] | None) -> Source:
    """Dogs by the data set's own lists: MATLAB files of ``file_list`` (below ``Images/``) and ``labels`` (from 1).

    Args:
        place: the folder that holds ``train_list.mat``, ``test_list.mat`` and ``Images/``.
        splits: see :func:`kdstream.convert.open_source.open_source`.

    Raises:
        UserError: lists or images are missing, or are not what they should be.
    """
    folder = folder_of("stanford_dogs", place, ["StanfordDogs", "stanford_dogs"], [*LISTS.values(), "Images"])
    lists = {split: _list(folder / name) for split, name in LISTS.items()}
    names: dict[int, str] = {}
    for split, rows in lists.items():
        for path, label in rows:
            breed = path.partition("/")[0].partition("-")[2] or path.partition("/")[0]
            if names.setdefault(label, breed) != breed:
                raise UserError(f"{folder / LISTS[split]}: class {label} holds {names[label]!r} and {breed!r} ({path})")
    if sorted(names) != list(range(1, len(names) + 1)):
        raise UserError(f"{folder}: the lists name classes {min(names)} to {max(names)}, not all of them")
    classes = [names[label] for label in sorted(names)]
    made = {
        split: named_files(folder / "Images", [path for path, _ in rows], [label - 1 for _, label in rows], classes)
        for split, rows in lists.items()
    }
    return Source(f"stanford_dogs:{folder}", classes, dict(made), root=folder)


def _list(file: Path) -> list[tuple[str, int]]:
    """Paths and labels (from 1)."""
    from scipy.io import loadmat  # reads arrays; MATLAB's function handles come as opaque values and are not called

    try:
        content = loadmat(file, variable_names=["file_list", "labels"])
        paths = [str(cell[0]) for cell in content["file_list"].ravel()]
        labels = [int(label) for label in content["labels"].ravel()]
        if len(paths) != len(labels) or not paths or not all(isinstance(path, str) and path for path in paths):
            raise ValueError(f"{len(paths)} files and {len(labels)} labels")
    except Exception as error:  # SciPy raises many kinds for damaged files
        raise UserError(f"{file} is no list of Stanford Dogs ({' '.join(str(error).split())})") from error
    return list(zip(paths, labels, strict=True))
