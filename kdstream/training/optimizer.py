"""The optimizer that a recipe names, over what a stage trains, in groups by whether weight decay pulls at it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from kdstream import recipe as settings
from kdstream.errors import UserError
from kdstream.registry import Registry, nearest


def _is_optimizer(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)


OPTIMIZERS = Registry(
    "optimizer",
    {"sgd": "torch.optim:SGD", "adamw": "torch.optim:AdamW", "lamb": "timm.optim:Lamb"},
    may_be=_is_optimizer,
)
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EMBEDDED = re.compile(r"(_tokens?|pos_embed|position_embeddings?|pos_embedding|position_bias_table)$")
"""Names of tokens and of embeddings of positions, in timm, torchvision and transformers."""


def find_optimizer(wanted: settings.Optimizer) -> type[torch.optim.Optimizer]:
    """The class that a recipe names, which has the settings that the recipe gives it.

    Raises:
        UserError: an unknown name, a dotted path to something else, settings that it does not have or lacks.
    """
    try:
        found = OPTIMIZERS.find(wanted.name)
    except UserError as error:
        missing = isinstance(error.__cause__, ImportError) and wanted.name == "lamb"
        raise UserError(
            f"optimizer lamb needs timm: pip install timm ({error.__cause__})" if missing else str(error)
        ) from error
    if not _is_optimizer(found):
        raise UserError(f"optimizer {wanted.name!r} is no subclass of torch.optim.Optimizer")
    if wanted.name in OPTIMIZERS:
        return found
    step = inspect.signature(found.step).parameters
    if "closure" in step and step["closure"].default is inspect.Parameter.empty:
        raise UserError(
            f"optimizer {wanted.name!r} asks for the loss several times a step, which a training cannot give"
        )
    known = list(inspect.signature(found).parameters)[1:]
    takes_any = any(one.kind is one.VAR_KEYWORD for one in inspect.signature(found).parameters.values())
    for key in wanted.options or {}:
        if key in ("params", "lr", "weight_decay") or (key not in known and not takes_any):
            raise UserError(f"optimizer.options: {wanted.name} has no setting {key!r} there: {nearest(key, known)}")
    if (wanted.weight_decay or wanted.no_decay) and "weight_decay" not in known:
        raise UserError(f"optimizer {wanted.name!r} has no weight_decay: leave it and no_decay out")
    return found


def make_optimizer(wanted: settings.Optimizer, module: nn.Module, rate: float) -> torch.optim.Optimizer:
    """An optimizer over the parameters of ``module`` that require a gradient, of which there are some.

    Args:
        wanted: the recipe's.
        module: student and terms, in the stage that is to be trained.
        rate: learning rate.

    Raises:
        UserError: see :func:`find_optimizer`; values that it refuses.
    """
    found = find_optimizer(wanted)
    given: dict[str, Any] = {"lr": rate, **(wanted.options or {})}
    if ":" not in wanted.name or "weight_decay" in inspect.signature(found).parameters:
        given["weight_decay"] = wanted.weight_decay
    if wanted.name == "sgd":
        given |= {"momentum": wanted.momentum, "nesterov": wanted.nesterov}
    elif wanted.name in OPTIMIZERS:
        given |= {"betas": wanted.betas, "eps": wanted.eps}
    if wanted.name == "lamb":
        given["max_grad_norm"] = None  # the recipe's ``clip`` says whether gradients are clipped
    groups = groups_of(module, wanted.no_decay or ())
    spared = [{}, {"weight_decay": 0.0}]
    try:
        return found(
            [
                {"params": [one for _, one in group], **rest}
                for group, rest in zip(groups, spared, strict=False)
                if group
            ],
            **given,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer {wanted.name}: {' '.join(str(error).split())}") from error


def groups_of(module: nn.Module, no_decay: Sequence[str]) -> list[list[tuple[str, nn.Parameter]]]:
    """The parameters that require a gradient, by name, in the order in which an optimizer numbers them.

    Args:
        module: whose they are.
        no_decay: kinds of parameters that weight decay leaves alone, see :class:`kdstream.recipe.Optimizer`.

    Returns:
        Those that it pulls at, and the others, each in the module's order.
    """
    kinds = kinds_of(module) if no_decay else {}
    groups: list[list[tuple[str, nn.Parameter]]] = [[], []]
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[bool(kinds.get(name, set()) & set(no_decay))].append((name, parameter))
    return groups


def kinds_of(module: nn.Module) -> dict[str, set[str]]:
    """Which of "norm", "bias" and "embedding" each parameter is, by name.

    Normalisation layers are torch's and those whose class has "norm" in its name. Embeddings are torch's tables, what
    has the usual names (``cls_token``, ``pos_embed``, ...), and what a network's own ``no_weight_decay()`` names, as
    timm's do.
    """
    kinds: dict[str, set[str]] = {name: set() for name, _ in module.named_parameters()}
    for place, part in module.named_modules():
        prefix = f"{place}." if place else ""
        is_norm = isinstance(part, _NORMS) or "norm" in type(part).__name__.lower()
        listed = getattr(part, "no_weight_decay", None)
        spared = set(listed()) if callable(listed) else set()
        for name in spared & {name.removeprefix(prefix) for name in kinds if name.startswith(prefix)}:
            kinds[prefix + name].add("embedding")
        for name, _ in part.named_parameters(recurse=False):
            if prefix + name not in kinds:  # a shared one, which has the name of its first place
                continue
            is_embedding = isinstance(part, nn.Embedding | nn.EmbeddingBag) or bool(_EMBEDDED.search(name))
            found = {"norm": is_norm, "bias": name.endswith("bias"), "embedding": is_embedding}
            kinds[prefix + name] |= {kind for kind, holds in found.items() if holds}
    return kinds
