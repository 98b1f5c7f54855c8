"""A recipe's streams, completed: what the user left out of the chains for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from kdstream.errors import UserError
from kdstream.objectives import Loss
from kdstream.recipe import Recipe
from kdstream.stream.augment import central
from kdstream.stream.decode import decode
from kdstream.stream.language import parse_chain
from kdstream.stream.mix import mixes
from kdstream.stream.normalize import normalize
from kdstream.stream.stage import Chain, Stage
from kdstream.stream.teacher import teacher


def training_chain(recipe: Recipe, uses_teacher: bool) -> Chain:
    """The recipe's stream, completed: ``teacher`` before ``normalize`` at the end, or no teacher's stages at all."""
    stages = list(parse_chain(recipe.stream).stages)
    if not uses_teacher:
        stages = [stage for stage in stages if stage.role not in ("coded", "teacher")]
    chain = Chain(tuple(stage for stage in stages if stage.role != "normalize"))
    if uses_teacher and "teacher" not in chain.roles:
        chain = chain | teacher
    last = [stage for stage in stages if stage.role == "normalize"] or [normalize]
    _refuse_settings(last)
    return chain | Chain(tuple(last))


def evaluation_chain(recipe: Recipe) -> Chain:
    """The recipe's evaluation stream, or the one that fits its training stream; ``normalize`` last."""
    if recipe.eval_stream is not None:
        chain = parse_chain(recipe.eval_stream)
    else:
        chain = Chain() | decode
        boxes = [stage for stage in parse_chain(recipe.stream).stages if stage.role == "box"]
        if boxes:
            chain = chain | central(boxes[-1])
    _refuse_settings(chain.stages)
    return chain if "normalize" in chain.roles else chain | normalize


def refuse_mixed(loss: Loss, chain: Chain) -> None:
    """Mixed images are nothing for terms that keep something of single samples or classes.

    Raises:
        UserError: such a term beside mixup or cutmix.
    """
    keeping = [(name, term.keeps) for name, _, term in loss if term.keeps]
    if keeping and (mixing := mixes(chain.stages)):
        name, kept = keeping[0]
        raise UserError(
            f"loss.{name} keeps {kept}, which the images that {mixing[0]} mixes of two would spoil: leave {mixing[0]} "
            "out of the stream, or the term out of the loss"
        )


def _refuse_settings(stages: Sequence[Stage]) -> None:
    """Training, evaluation and the exported student must agree on how images are standardised."""
    for stage in stages:
        if stage.role == "normalize" and (stage.args or stage.settings):
            raise UserError(
                "in a recipe, normalize has no settings: set data.mean and data.std, which serve all streams"
            )
