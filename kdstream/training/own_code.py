"""The user's own code that a recipe names: it decides the result as the recipe's text does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from kdstream.hashing import digest, is_own
from kdstream.models import MODELS, is_dotted
from kdstream.objectives import OBJECTIVES, parse_loss
from kdstream.recipe import Recipe
from kdstream.registry import import_object
from kdstream.stream.language import STAGES, Call, parse_calls
from kdstream.training.optimizer import find_optimizer


def own_code(recipe: Recipe) -> dict[str, str]:
    """What the recipe names by dotted path and is neither kdstream's nor installed.

    Returns:
        dotted path -> digest of the code (:func:`kdstream.hashing.digest`), by path. Values that have no name, such as
        an open file in a global, count by their type here: this guards what is continued, where nothing would be
        gained by refusing.

    Raises:
        UserError: a path that leads nowhere.
    """
    named = dict(_named(recipe))
    own = {path: thing for path, thing in named.items() if is_own(thing) or is_own(path.partition(":")[0])}
    return {path: digest(own[path], strict=False) for path in sorted(own)}


def code_mark(recipe: Recipe) -> str:
    """What a fingerprint gets added for the recipe's :func:`own_code`; nothing where there is none."""
    code = own_code(recipe)
    return f"+{hashlib.sha256(repr(code).encode()).hexdigest()[:16]}" if code else ""


def _named(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    for text in (recipe.stream, recipe.eval_stream or ""):
        for call in parse_calls(text) if text else ():
            if ":" in call.name:
                yield call.name, STAGES.find(call.name)
            given = (*call.args, call.settings.get("selector"))
            selector = given[0] if call.name == "coded" else None
            path = selector.name if isinstance(selector, Call) else selector
            if isinstance(path, str) and ":" in path:
                yield path, import_object(path, "selector")
    for name, _, _ in (terms := parse_loss(recipe.loss)):
        if ":" in name:
            yield name, OBJECTIVES.find(name)
    if ":" in recipe.optimizer.name:
        yield recipe.optimizer.name, find_optimizer(recipe.optimizer)
    models = [spec["name"] for _, _, term in terms for spec in term.builds]
    teachers = [] if recipe.teacher is None else recipe.teacher.each()
    models += [network.model for network in (recipe.student, *teachers, *recipe.assistants)]
    for model in models:
        if model and is_dotted(model):
            yield model, MODELS.find(model)
