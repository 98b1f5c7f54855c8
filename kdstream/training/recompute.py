"""Gradient checkpointing: a network's blocks keep their inputs alone, and compute the rest again for the gradient.

Chen et al. 2016 (arXiv:1604.06174), by torch.utils.checkpoint: less memory for about a third more computing, and the
same gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from kdstream.errors import UserError
from kdstream.notes import architecture

_LISTS = (nn.Sequential, nn.ModuleList)


def checkpoint_blocks(network: nn.Module) -> list[str]:
    """Let every block of a network compute its insides again in the backward pass.

    A block is an element of a list of layers (``nn.Sequential``, ``nn.ModuleList``) that has layers within itself, the
    largest such that holds no list of blocks, or else a list of layers as a whole. Keys of the state, hooks and results
    stay what they are: batch statistics move once a step. Copies that are made of the network afterwards would call the
    original's blocks: make them before.

    Returns:
        The module paths of the blocks.

    Raises:
        UserError: it has none.
    """
    found = dict(_blocks(network, ""))
    if not found:
        raise UserError(
            f"checkpoint_gradients: {architecture(network)} has no blocks (lists of layers) to compute again: leave it "
            "out"
        )
    for block in found.values():
        block.forward = _Again(block)  # of this one object, not of its class
    return list(found)


class _Again:
    """The forward pass of a block, as checkpointed."""

    def __init__(self, block: nn.Module):
        self.plain = block.forward
        self.contexts = partial(_contexts, block)

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return checkpoint(self.plain, *args, use_reentrant=False, context_fn=self.contexts, **settings)


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    return contextlib.nullcontext(), _unmoved(block)


@contextlib.contextmanager
def _unmoved(block: nn.Module) -> Iterator[None]:
    """The second pass uses the batch's statistics as the first did, and does not count them again."""
    moving: list[Any] = [one for one in block.modules() if one.training and getattr(one, "track_running_stats", False)]
    before = [(one.momentum, one.num_batches_tracked) for one in moving]
    for one in moving:
        # Not track_running_stats: torch wants the second pass to save as many tensors as the first.
        one.momentum, one.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for one, (momentum, count) in zip(moving, before, strict=True):
            one.momentum, one.num_batches_tracked = momentum, count


def _blocks(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        place = f"{path}.{name}".lstrip(".")
        listed = isinstance(child, _LISTS)
        lists = (one for one in child.modules() if isinstance(one, _LISTS))
        of_blocks = any(_is_composite(element) for one in lists for element in one.children())
        # Of a list that is no module to call (ModuleList), only the elements can be.
        callable_list = isinstance(child, nn.Sequential) and _is_composite(child)
        if not of_blocks and (callable_list or (isinstance(module, _LISTS) and not listed and _is_composite(child))):
            yield place, child
        else:
            yield from _blocks(child, place)


def _is_composite(module: nn.Module) -> bool:
    """Whether two or more of the layers within it have weights."""
    weighted = [one for one in module.modules() if one is not module and any(True for _ in one.parameters(False))]
    return len(weighted) > 1
