"""Words that say a split, and those that only look so."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kdstream.convert.split_names import split_of, splits_of

WORDS = {"train": "train", "Training": "train", "VALID": "val", "dev": "val", "test": "test", "Testing": "test"}


@given(
    word=st.sampled_from(list(WORDS)),
    before=st.sampled_from(["", "seg_", "data-"]),
    after=st.sampled_from(["", "_set", " images", "2017"]),
)
def test_a_word_says_its_split_whatever_is_padded_around_it(word, before, after):
    assert split_of(f"{before}{word}{after}") == WORDS[word]
    named = {f"birds_{word}": WORDS[word], f"birds_{'test' if WORDS[word] != 'test' else 'train'}": None}
    assert splits_of(list(named))[f"birds_{word}"] == WORDS[word]


def test_words_that_say_a_split():
    for name in ("trained", "contest", "trainer", "latest", "devil", "train_car", "value", "trainval", "test1", "cat"):
        assert split_of(name) is None
    assert splits_of(["steam_train", "electric_train"]) == {}
    assert splits_of(["train_left", "test_right"]) == {}
    assert splits_of(["x_train", "x_test", "y"]) == {}
