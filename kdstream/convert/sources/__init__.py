"""Sources of images, one file a kind: each a function (place, splits) -> Source."""
