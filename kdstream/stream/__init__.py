"""The stream: shards become batches that already carry the (coded) teacher's answer."""

from kdstream.data.shards import ShardSet, open_shards
from kdstream.rng import uniform
from kdstream.stream.augment import augment
from kdstream.stream.coded import coded, fixed, hkl, random
from kdstream.stream.decode import decode
from kdstream.stream.erasing import erasing
from kdstream.stream.language import STAGES, parse_chain
from kdstream.stream.mix import cutmix, mix, mixup
from kdstream.stream.normalize import normalize
from kdstream.stream.randaugment import randaugment
from kdstream.stream.stage import Chain, Stage, batch_stage, given, stage
from kdstream.stream.stream import Stream
from kdstream.stream.teacher import teacher

__all__ = [
    "STAGES",
    "Chain",
    "ShardSet",
    "Stage",
    "Stream",
    "augment",
    "batch_stage",
    "coded",
    "cutmix",
    "decode",
    "erasing",
    "fixed",
    "given",
    "hkl",
    "mix",
    "mixup",
    "normalize",
    "open_shards",
    "parse_chain",
    "randaugment",
    "random",
    "stage",
    "teacher",
    "uniform",
]
