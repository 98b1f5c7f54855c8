"""kdstream: distil image classifiers on streams of WebDataset shards."""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "kdstream.errors": ("UserError",),
    "kdstream.batch": ("Batch", "Outputs", "Sample"),
    "kdstream.objectives.term": ("Phase", "Task", "Term"),
    "kdstream.api.students": ("load_student",),
    "kdstream.api.distill": ("distill",),
    "kdstream.api.evaluate": ("evaluate",),
    "kdstream.api.compare": ("compare",),
    "kdstream.api.export_onnx": ("export_onnx",),
    "kdstream.convert.make_shards": ("make_shards",),
    "kdstream.analysis.predict": ("predict",),
    "kdstream.models.pretrained": ("load_teacher",),
    "kdstream.convert.split": ("ArraySplit", "FileSplit", "Source"),
    "kdstream.stream.stream": ("Stream",),
    "kdstream.data.shards": ("open_shards",),
    "kdstream.stream.stage": ("batch_stage", "given", "stage"),
    "kdstream.rng": ("uniform",),
    "kdstream.stream.decode": ("decode",),
    "kdstream.stream.augment": ("augment",),
    "kdstream.stream.coded": ("coded", "fixed", "hkl", "random"),
    "kdstream.stream.randaugment": ("randaugment",),
    "kdstream.stream.erasing": ("erasing",),
    "kdstream.stream.mix": ("cutmix", "mix", "mixup"),
    "kdstream.stream.teacher": ("teacher",),
    "kdstream.stream.normalize": ("normalize",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    # Imported on first use: `import kdstream` stays quick, and no room loads another one that it does not need.
    if name not in _MODULE:
        raise AttributeError(f"module 'kdstream' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
