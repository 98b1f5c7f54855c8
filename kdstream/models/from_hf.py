"""Image classifiers of Hugging Face's transformers as teachers (``hf:google/vit-base-patch16-224``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.errors import UserError
from kdstream.notes import note

PREFIX = "hf:"
_BICUBIC = 3
"""Pillow's number, which a preprocessor's configuration gives; all else is taken for bilinear."""
_BYTE = 255
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


class Resized(nn.Module):
    """A classifier of transformers that gets images of its own size.

    Images [N,3,H,W], standardised -> logits [N,C].

    Args:
        network: as ``AutoModelForImageClassification`` gives it.
        size: height and width that it takes; others are resized, with antialiasing. None: any.
        mode: "bilinear" or "bicubic".
    """

    def __init__(self, network: nn.Module, size: tuple[int, int] | None, mode: str):
        super().__init__()
        self.network, self.size, self.mode = network, size, mode

    def forward(self, images: Tensor) -> Tensor:
        """Images [N,3,H,W] -> logits [N,C]."""
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode=self.mode, antialias=True)
        return self.network(pixel_values=images).logits


def build(name: str, num_classes: int, pretrained: bool = False, **kw: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A classifier of ``num_classes`` classes, and the arguments that rebuild its architecture (none).

    Only what transformers itself has the code of is built, and only safetensors are read. Images are resized to the
    size that its preprocessor says, and the network gets that one's mean and deviation as ``mean`` and ``std``. Taps:
    ``penultimate``, what its (first) classifier takes, [N,D]; others by module path, which begin with ``network.``.

    Args:
        name: with the prefix: a repository of the Hub, or a folder that ``save_pretrained`` wrote.
        num_classes: C; with ``pretrained``, what the weights are for.
        pretrained: take the weights, which are downloaded once.

    Raises:
        UserError: transformers is not installed; no such repository or folder, none of an image classifier, weights
            that are no safetensors, or for another number of classes; any other argument.
    """
    if kw:
        raise UserError(f"model {name!r} takes no options, and {next(iter(kw))!r} is one")
    library = _transformers(name)
    config = _config(name, library)
    if pretrained and config.num_labels != num_classes:
        raise UserError(f"the weights of {name} are for {config.num_labels} classes, not {num_classes}")
    if not pretrained:
        config.num_labels = num_classes
    auto = library.AutoModelForImageClassification
    try:
        if pretrained:
            place = _place(name)
            network = auto.from_pretrained(place, config=config, use_safetensors=True, trust_remote_code=False)
        else:
            network = auto.from_config(config, trust_remote_code=False)
    except Exception as error:  # of three libraries, and of files
        raise _failed(name, error) from error
    settings = _preprocessor(name)
    module = Resized(
        network, _size(settings, config), "bicubic" if settings.get("resample") == _BICUBIC else "bilinear"
    )
    heads = [
        path
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == num_classes and "classifier" in path
    ]
    note(module, classifier_path=heads[0] if len(heads) == 1 else None)
    note(module, taps={"penultimate": f"{heads[0]}:input"} if heads else {})
    if pretrained:
        mean, std = _statistics(settings)
        note(module, mean=mean, std=std)
    return module, {}


def weights_classes(name: str) -> tuple[int, list[str] | None]:
    """How many classes the weights are for, and their names, where the configuration has any.

    Raises:
        UserError: as :func:`build`.
    """
    config = _config(name, _transformers(name))
    names = [str(config.id2label.get(number, "")) for number in range(config.num_labels)]
    own = all(names) and names != [f"LABEL_{number}" for number in range(len(names))]
    return len(names), names if own else None


def _transformers(name: str) -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"model {name!r} needs transformers: pip install 'kdstream[hf]' ({error})") from error
    return transformers


def _place(name: str) -> str:
    place = name.removeprefix(PREFIX)
    if not Path(place).is_dir() and not _REPOSITORY.fullmatch(place):
        raise UserError(f"model {name!r}: {place!r} is no folder, and no repository, as google/vit-base-patch16-224")
    return place


def _config(name: str, library: ModuleType) -> Any:
    try:
        config = library.AutoConfig.from_pretrained(_place(name), trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:
        raise _failed(name, error) from error
    if type(config) not in library.AutoModelForImageClassification._model_mapping:
        raise UserError(f"model {name!r} is {config.model_type!r}, of which transformers has no image classifier")
    return config


def _failed(name: str, error: Exception) -> UserError:
    said = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"model {name!r} cannot be had: {said[:300]}")


def _preprocessor(name: str) -> Mapping[str, Any]:
    """The settings of its preprocessor; none where it has none."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        return BaseImageProcessor.get_image_processor_dict(_place(name))[0]
    except OSError:  # no such file
        return {}


def _size(settings: Mapping[str, Any], config: Any) -> tuple[int, int] | None:
    """Height and width of what it takes: of the crop, where it crops."""
    cropped = settings.get("crop_size") if settings.get("do_center_crop") else None
    wanted = cropped or settings.get("size") or getattr(config, "image_size", None)
    if isinstance(wanted, Mapping):
        side = wanted.get("shortest_edge")
        wanted = (side, side) if side else (wanted.get("height"), wanted.get("width"))
    sides = (wanted, wanted) if isinstance(wanted, int) else tuple(wanted or ())
    return (sides[0], sides[1]) if len(sides) == 2 and all(isinstance(side, int) for side in sides) else None


def _statistics(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by channel, of images in [0,1]; of those that it multiplies otherwise, as it sees them."""
    factor = float(settings.get("rescale_factor", 1 / _BYTE)) if settings.get("do_rescale", True) else 1.0
    stretch = factor * _BYTE
    mean, std = ([0.0] * 3, [1.0] * 3)
    if settings.get("do_normalize", "image_mean" in settings):
        mean, std = settings["image_mean"], settings["image_std"]
    return tuple(value / stretch for value in mean), tuple(value / stretch for value in std)
