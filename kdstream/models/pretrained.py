"""Trained networks from whatever holds them: exports, files and addresses of weights, torchvision's and timm's own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from torch import nn

from kdstream.addresses import is_published, is_url, public
from kdstream.errors import UserError
from kdstream.models import MODELS, build, from_hf, from_timm, is_dotted
from kdstream.models.classes import Choice, fit_classes
from kdstream.models.download import cached
from kdstream.models.export import describe, read_export
from kdstream.models.given import is_given
from kdstream.models.published import facts, find, read_published
from kdstream.models.weights import check_place, count_classes, load_state, read_weights, recognise
from kdstream.notes import About, about_of, spec_of


def load_teacher(
    weights: str | PathLike[str] | None = None,
    num_classes: int | None = None,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    trust_code: bool = False,
    classes: Sequence[str] | None = None,
    outputs: Choice = None,
) -> nn.Module:
    """A trained network to learn from: on the CPU, in eval mode, frozen, images [N,3,H,W] -> logits [N,C].

    It carries what :func:`kdstream.models.build` gives (``spec``, ``taps``, ``classifier_path``) and what
    :func:`kdstream.load_student` gives (``about``, and from it ``classes``, ``mean``, ``std``, ``image_size``; None
    where nobody says). Classes, mean and deviation are an export's, those of torchvision's and timm's own weights, or
    those of published ones; a file of weights says nothing of them. Of published weights ``about["published"]`` holds
    :func:`kdstream.models.published.facts`.

    Args:
        weights: a folder that kdstream exported, or the student.json in it; a file of weights, as
            :func:`kdstream.models.weights.read_weights` takes; an http(s) address of one, or the name of published
            ones (``published:wrn_40_2@cifar100``, :mod:`kdstream.models.published`), downloaded once to torch.hub's
            folder; None for torchvision's and timm's own weights, which ``options`` ask for.
        num_classes: C that the weights must be for; None = whatever they are for.
        model: the network, a name for ``build``; None = what an export says, or recognised by the shapes in a file.
        options: further arguments of ``build``: ``{"weights": "DEFAULT"}`` for torchvision's weights,
            ``{"pretrained": True}`` for timm's.
        trust_code: run the code that an export names, even where ``model`` and ``options`` do not name the same.
        classes: names of a data set's classes (``open_shards(...).classes``): the network is made to answer for these,
            in this order, by the names that its export (torchvision, timm) gives; what does not follow from names is
            warned of.
        outputs: with ``classes``: which outputs stand for them, see :data:`kdstream.models.classes.Choice`.

    Raises:
        UserError: no weights; weights that cannot be had, are no weights, carry pickled objects, or are for other
            classes, another number of them or another architecture (with the keys that are missing and unexpected).
    """
    if classes is None:
        network = _loaded(weights, num_classes, model, options, trust_code)
    else:
        network, note = load_for(classes, weights, model=model, options=options, trust_code=trust_code, choice=outputs)
        if note is not None:
            warnings.warn(note, stacklevel=2)
    return network.requires_grad_(False).eval()


def load_for(
    classes: Sequence[str],
    weights: str | PathLike[str] | None,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    trust_code: bool = False,
    choice: Choice = None,
    option: str = "outputs",
    count_option: str = "num_classes",
) -> tuple[nn.Module, str | None]:
    """A trained network that answers for the classes of a data set, and what a user should know of that.

    Args:
        classes: names of the data's classes, in order.
        weights, model, options, trust_code: see :func:`load_teacher`; the network is not frozen, though.
        choice, option, count_option: see :func:`kdstream.models.classes.fit_classes`.

    Raises:
        UserError: see :func:`load_teacher`.
    """
    network = _loaded(weights, None, model, options, trust_code, len(classes))
    what = f"the weights of {model}" if weights is None else fspath(weights)
    names = {"what": what, "option": option, "count_option": count_option}
    # What torchvision calls the classes of published weights is its own choice, too.
    sure = weights is not None and not is_published(weights)
    return network, fit_classes(network, classes, choice, **names, sure=sure)


def _loaded(
    weights: str | PathLike[str] | None,
    num_classes: int | None,
    model: str | None,
    options: Mapping[str, Any] | None,
    trust_code: bool,
    likely: int | None = None,
) -> nn.Module:
    """A network from weights, or the one whose library has them; see :func:`load_network`."""
    if weights is None:
        return _published(model, dict(options or {}), num_classes, likely)
    return load_network(weights, num_classes, model=model, options=options, trust_code=trust_code, likely=likely)


def load_network(
    weights: str | PathLike[str],
    num_classes: int | None = None,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    trust_code: bool = False,
    likely: int | None = None,
) -> nn.Module:
    """As :func:`load_teacher` from ``weights``, but to be trained further: not frozen, in train mode.

    ``likely`` is the number of classes where neither ``num_classes`` nor the weights show it.
    """
    check_place(weights)
    options = dict(options or {})
    if is_published(weights):
        return _by_name(fspath(weights), num_classes, model, options)
    if _is_export(weights):
        return _exported(weights, num_classes, model, options, trust_code)
    source, state = public(fspath(weights)), read_weights(weights)
    name = model or recognise(state)
    if name is None:
        raise UserError(
            f"{source} does not say which network it is for and fits none that kdstream would recognise: "
            "name the model, as resnet56"
        )
    options = without_weights(name, options)  # the file's take their place
    classes = num_classes or count_classes(state, name, **options) or likely
    if classes is None:
        raise UserError(f"{source} does not show for how many classes {name} is: give num_classes")
    network = build(name, classes, **options)
    load_state(network, state, source)
    return describe(network, {"spec": spec_of(network)})


def check_weights(weights: str) -> None:
    """That there is such a file or folder, that it is an address which can be downloaded, or a name of published
    weights; nothing is read.

    Raises:
        UserError: none of them.
    """
    if is_published(weights):
        find(weights)
    elif is_url(weights):
        cached(weights)
    elif not (weights and Path(weights).exists()):
        raise UserError(f"{weights!r}: no such file or folder")


def brings_weights(model: str, options: Mapping[str, Any]) -> bool:
    """Whether ``build(model, ..., **options)`` gives a trained network: torchvision's or timm's weights, or, as far as
    one can tell, those of somebody's own factory."""
    switch = _switch(model)
    if is_given(model) or model.startswith(from_hf.PREFIX):
        return True
    return bool(switch and options.get(switch)) or (
        is_dotted(model) and any(map(options.get, ("weights", "pretrained")))
    )


def without_weights(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with which ``build`` gives the same architecture, and its library downloads nothing."""
    return {key: value for key, value in options.items() if key != _switch(model)}


def _published(
    model: str | None, options: dict[str, Any], num_classes: int | None, likely: int | None = None
) -> nn.Module:
    """A network whose library has the weights."""
    if model is None:
        raise UserError("no weights: give a folder, a file or an address, or a model whose library has weights")
    if not brings_weights(model, options):
        raise UserError(f"{model} has no weights: give a folder, a file or an address")
    found, names = num_classes or likely, None
    if is_given(model):
        network = build(model, found or 0)
        known = about_of(network)
        return describe(network, known or {"spec": spec_of(network)})
    if model.startswith(from_timm.PREFIX):
        found, names = from_timm.weights_classes(model)
    elif model.startswith(from_hf.PREFIX):
        options = {**options, "pretrained": True}
        found, names = from_hf.weights_classes(model)
    elif not is_dotted(model):
        from kdstream.models import from_torchvision  # takes a second to import

        names = from_torchvision.weights_classes(model, options["weights"])
        found = len(names)
    if found is None:
        raise UserError(f"{model}: give num_classes, for how many classes it is")
    if num_classes not in (None, found):
        raise UserError(f"the weights of {model} are for {found} classes, the data has {num_classes}")
    network = build(model, found, **options)
    about: About = {"spec": spec_of(network), "classes": names}
    if not is_dotted(model):
        about["mean"], about["std"] = list(vars(network)["mean"]), list(vars(network)["std"])
    return describe(network, about)


def _by_name(weights: str, num_classes: int | None, model: str | None, options: dict[str, Any]) -> nn.Module:
    """A network with published weights."""
    wanted = find(weights)
    name, count = wanted.network["name"], wanted.network["num_classes"]
    if num_classes not in (None, count):
        raise UserError(f"{weights} is for {count} classes, the data has {num_classes}")
    if model not in (None, name):
        raise UserError(f"{weights} is a {name}, not a {model}")
    state = read_published(wanted)
    network = build(**{**without_weights(name, options), **wanted.network})
    load_state(network, state, weights)
    about: About = {"spec": spec_of(network), "classes": wanted.classes, "published": facts(wanted)}
    about["mean"], about["std"] = list(wanted.mean), list(wanted.std)
    return describe(network, about)


def _switch(model: str) -> str | None:
    """The option that makes a network's library download weights; None: it has none."""
    if model.startswith((from_timm.PREFIX, from_hf.PREFIX)):
        return "pretrained"
    return None if model in MODELS or is_dotted(model) or is_given(model) else "weights"


def _is_export(weights: str | PathLike[str]) -> bool:
    if is_url(weights):
        return False
    place = Path(weights)
    return place.is_dir() or (place.suffix in (".json", ".safetensors") and place.with_suffix(".json").is_file())


def _exported(
    weights: str | PathLike[str], num_classes: int | None, model: str | None, options: dict[str, Any], trust_code: bool
) -> nn.Module:
    # The caller may himself say all that the export's description says, so that no code is run but what he names.
    named = None if model is None or not is_dotted(model) else {"name": model, **options}
    network = read_export(
        weights, lambda spec: trust_code or {key: spec[key] for key in spec if key != "num_classes"} == named
    )
    spec = spec_of(network)
    if num_classes not in (None, spec["num_classes"]):
        raise UserError(f"{weights} is for {spec['num_classes']} classes, the data has {num_classes}")
    if model not in (None, spec["name"]):
        raise UserError(f"{weights} is a {spec['name']}, not a {model}")
    return network.train()
