"""What a folder or a table calls a split: train, val and test under their many names."""

from __future__ import annotations

import re
from collections.abc import Sequence

# fmt: off
_WORDS = {
    "train": ("train", "training", "trn", "trainset", "trainingset"),
    "val": (
        "val", "valid", "validation", "validate", "valset", "validset", "validationset", "dev", "devel", "devset",
        "eval", "evaluation",
    ),
    "test": ("test", "testing", "tst", "testset", "testingset"),
}
# fmt: on
_SPLITS = {word: split for split, words in _WORDS.items() for word in words}
_PADDING = {"set", "seg", "data", "dataset", "split", "subset", "image", "images", "img", "imgs", "folder", "samples"}


def split_of(name: str) -> str | None:
    """ "train", "val" or "test" where a name says one of them: ``Training``, ``seg_train``, ``valid``, ``val2017``."""
    words = [word for word in _words(name) if word not in _PADDING]
    return _SPLITS.get(words[0]) if len(words) == 1 else None


def splits_of(names: Sequence[str]) -> dict[str, str]:
    """The names that say a split, with it; also names that differ in nothing else: ``birds_train``, ``birds_test``."""
    found = {name: split for name in names if (split := split_of(name)) is not None}
    if found:
        return found
    rests = set()
    for name in names:
        words = _words(name)
        said = [word for word in words if word in _SPLITS]
        if len(said) != 1:
            return {}
        found[name] = _SPLITS[said[0]]
        rests.add(tuple(word for word in words if word not in _SPLITS))
    return found if len(rests) == 1 and len(set(found.values())) > 1 else {}


def _words(name: str) -> list[str]:
    """Lower case, cut at anything but letters and digits and before capitals; years at the end of a word go."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [re.sub(r"(?<=[a-z])(?:19|20)\d\d$", "", word) for word in re.findall(r"[^\W_]+", words.lower())]
