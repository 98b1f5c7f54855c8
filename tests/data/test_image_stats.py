"""Statistics of images: the same in any order and grouping."""

from __future__ import annotations

import io
import json

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tars import image_bytes

from kdstream.data.image_stats import ImageStats


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 999)), min_size=1, max_size=6), st.data()
)
@settings(max_examples=25)
def test_statistics_do_not_depend_on_order_or_grouping(sizes, data):
    images = [Image.open(io.BytesIO(image_bytes(seed, (h, w), "PNG"))) for h, w, seed in sizes]
    whole, left, right = ImageStats(), ImageStats(), ImageStats()
    for image in images:
        whole.add(image)
    cut = data.draw(st.integers(0, len(images)))
    for i, image in enumerate(data.draw(st.permutations(images))):
        (left if i < cut else right).add(image)
    right.merge(left)
    assert right.mean_std() == whole.mean_std()
    assert (right.count, right.smallest, right.largest) == (whole.count, whole.smallest, whole.largest)
    assert ImageStats.from_json(json.loads(json.dumps(right.to_json()))).mean_std() == whole.mean_std()
