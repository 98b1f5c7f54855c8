"""Whether a recipe is possible, as far as it can be known before anything is trained or downloaded."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from kdstream import recipe as settings
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.models import MODELS, build, is_dotted
from kdstream.models.given import is_given
from kdstream.models.pretrained import without_weights
from kdstream.objectives import parse_loss
from kdstream.recipe import Recipe
from kdstream.stream.teacher_answers import wants_answers
from kdstream.training.chains import evaluation_chain, refuse_mixed, training_chain
from kdstream.training.networks import can_learn, need_weights
from kdstream.training.optimizer import find_optimizer
from kdstream.training.trackers import check_trackers


def agree_on_classes(data: settings.Data, name: str, train: ShardSet, val: ShardSet) -> None:
    """Give both splits as many classes as the recipe says; ``name`` is the second's.

    Raises:
        UserError: a label that there is no class for; a single class.
    """
    largest = val.largest_label
    for one in (train, val):
        if data.num_classes is not None:
            try:
                one.number_classes(data.num_classes)
            except UserError as error:
                raise UserError(f"data.num_classes={data.num_classes}: {error}") from None
    if largest >= train.num_classes:
        raise UserError(
            f"{data.path}: {name} holds class {largest}, {data.train} has {train.num_classes} classes "
            f"(0 to {train.num_classes - 1}): make both of the same classes, or, where {data.train} only lacks it, say "
            f"how many there are, as data.num_classes={largest + 1}"
        )
    if train.num_classes < 2:
        raise UserError(
            f"{data.path}: all samples of {data.train} are of one class ({train.classes[0]!r}): there is nothing to "
            "tell it from; where labels are numbers of a larger set, data.num_classes says how many that has"
        )


def lacking_classes(train: ShardSet, val: ShardSet) -> list[str]:
    """What to say of classes without samples."""
    notes = []
    for one in (train, val):
        counts = one.class_counts()
        absent = [repr(one.classes[number]) for number in np.flatnonzero(counts == 0)]
        if absent:
            names = ", ".join([*absent[:5], "..."] if len(absent) > 5 else absent)
            there = len(counts) - len(absent)
            some = f"only one ({one.classes[counts.argmax()]!r})" if there == 1 else f"{there}"
            notes.append(f"{one.name}/{one.split} has samples of {some} of {len(counts)} classes, none of {names}")
    return notes


def check(recipe: Recipe) -> None:
    """Read the loss, the chains and the networks, so that a misspelt name is found before work begins."""
    try:
        terms = parse_loss(recipe.loss)
        asking = [name for name, _, term in terms if term.uses_teacher]
        if asking and recipe.teacher is None:
            raise UserError(f"the loss ({', '.join(asking)}) needs a teacher: add teacher: to the recipe")
        if recipe.assistants and recipe.teacher is None:
            raise UserError("the first of the assistants needs a teacher: add teacher: to the recipe")
        if not any(term.in_main for _, _, term in terms):
            names = ", ".join(name for name, _, _ in terms)
            raise UserError(f"the loss ({names}) only prepares the student: add a term that trains it, such as ce")
        chain = training_chain(recipe, bool(asking))
        refuse_mixed(terms, chain)
        wants_answers(chain)
        evaluation_chain(recipe)
        find_optimizer(recipe.optimizer)
        check_trackers(recipe)
        teachers = [] if recipe.teacher is None or recipe.assistants else recipe.teacher.each()
        above: list[tuple[str, settings.Model]] = [("teacher", one) for one in teachers]
        above += [("assistant", one) for one in recipe.assistants[-1:]]
        can_learn(recipe.student)
        for role, wanted in (("student", recipe.student), *above):
            need_weights(wanted, role)
            if wanted.model is not None:
                _check_model(wanted.model, wanted.options)
            elif wanted.weights is None:
                raise UserError(f"{role}.model is missing: name a network, such as {role}=resnet20")
        for spec in (dict(spec) for _, _, term in terms for spec in term.builds):
            _check_model(spec.pop("name"), spec)
    except UserError as error:
        raise UserError(f"recipe {recipe.name}: {error}") from None


def _check_model(name: str, options: Mapping[str, Any]) -> None:
    """That there is such a network, at no cost.

    Raises:
        UserError: an unknown name or option.
    """
    if is_given(name):
        return
    if is_dotted(name):  # it may take data to build it
        MODELS.find(name)
        return
    # torchvision's RegNets compute with tensors and cannot be built so.
    with torch.device("meta"), contextlib.suppress(NotImplementedError):
        build(name, 10, **without_weights(name, options))


def asks_teacher(recipe: Recipe) -> bool:
    """Whether a term of its loss looks at a teacher."""
    return any(term.uses_teacher for _, _, term in parse_loss(recipe.loss))
