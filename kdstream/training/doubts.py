"""Doubts: what a recipe asks for that works, and that nobody means: a line each, said before the training."""

from __future__ import annotations

from kdstream.data.shards import ShardSet
from kdstream.objectives import Loss, parse_loss
from kdstream.recipe import Recipe
from kdstream.stream.stage import Chain
from kdstream.stream.teacher_answers import wants_answers
from kdstream.training.chains import training_chain


def doubts(recipe: Recipe, train: ShardSet) -> list[str]:
    """What to say of a training, by its recipe and the number of its images.

    Args:
        recipe: of one training, checked.
        train: the images that it learns from.
    """
    loss = parse_loss(recipe.loss)
    notes = []
    if recipe.batch_size > len(train):
        notes.append(
            f"batch_size {recipe.batch_size} is more than the {len(train):,} training images: an epoch is one step"
        )
    if (warmup := recipe.schedule.warmup) and warmup >= recipe.epochs:
        notes.append(
            f"the warm-up of {warmup:g} epochs fills the training of {recipe.epochs}: the learning rate reaches "
            f"{recipe.optimizer.lr:g} at its end or never; lower schedule.warmup"
        )
    return [*notes, *_of_terms(loss, recipe), *_of_order(training_chain(recipe, loss.uses_teacher))]


def _of_terms(loss: Loss, recipe: Recipe) -> list[str]:
    notes = [
        f"loss.{name} has weight 0: it is computed and shown, and teaches nothing; leave it out"
        for name, weight, term in loss
        if not weight and term.in_main and not term.phases()
    ]
    return notes + [
        f"loss.{name} prepares the student for {phase.epochs} epochs ({phase.name}), the training has {recipe.epochs}: "
        f"`kdstream objectives {name}` names the setting that makes it shorter"
        for (name, _, _), phase in loss.phases()
        if phase.epochs > recipe.epochs
    ]


def _of_order(chain: Chain) -> list[str]:
    """Stages that draw at random behind the teacher change what the student sees, and nothing of the answer."""
    roles = chain.roles
    place = roles.index("teacher") if "teacher" in roles else len(roles)
    late = [stage.name for stage in chain.stages[place:] if stage.random]
    if not late:
        return []
    # Who keeps its answers has chosen so.
    advice = "" if wants_answers(chain) else "; for the same view, put teacher last"
    return [f"stream: the teacher answers before {', '.join(late)}: student and teacher see different views{advice}"]


def same_images(train: ShardSet, val: ShardSet) -> str | None:
    """What to say where validation shows the images that were learnt; None where it does not.

    Args:
        train, val: the splits as they stand in the shards.
    """
    if train.fingerprint != val.fingerprint:
        return None
    where = f"{val.name}/{val.split}"
    return (
        f"{where} validates and trains: accuracies are those of images that were learnt; data.val=SPLIT names others, "
        "data.hold_out=0.1 holds some out"
    )
