"""A network whose last stage exists several times, with a gate that joins the branches to an ensemble (ONE)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.notes import architecture, classifier_path_of, spec_of, taps_of


class Gate(nn.Module):
    """How much each branch counts for a sample: softmax(relu(BatchNorm(linear))), [N,width] -> [N,branches].

    Source: Lan et al. 2018 (arXiv:1806.04606), section 3.2, as in their code.
    """

    def __init__(self, width: int, branches: int):
        super().__init__()
        self.fc = nn.Linear(width, branches)
        self.bn = nn.BatchNorm1d(branches)

    def forward(self, shared: Tensor) -> Tensor:
        scores = self.fc(shared)
        if self.training and len(scores) == 1:  # a batch of one has no variance: the running statistics stand in
            bn = self.bn
            scores = F.batch_norm(scores, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        else:
            scores = self.bn(scores)
        return F.relu(scores).softmax(1)


def join(branches: Tensor, weights: Tensor) -> Tensor:
    """The ensemble's logits: branches [N,m,C] weighted by the gate's [N,m], -> [N,C]."""
    return (branches * weights[..., None]).sum(1)


class PerBranch(nn.Module):
    """Copies of one layer, each for its own branch.

    The branches' samples stand one after the other in the batch: [m N,...] -> [m N,...]. Where the branches begin
    (``begins``), every copy sees the whole of a batch that they share: [N,...] -> [m N,...].
    """

    def __init__(self, copies: Sequence[nn.Module], begins: bool):
        super().__init__()
        self.copies = nn.ModuleList(copies)
        self.begins = begins

    def forward(self, x: Tensor) -> Tensor:
        count = len(self.copies)
        return torch.cat(
            [copy(part) for copy, part in zip(self.copies, [x] * count if self.begins else x.chunk(count), strict=True)]
        )


class Branched(nn.Module):
    """A ResNet or WRN whose last stage, and all that is trained after it, exists once for each branch.

    Images [N,3,H,W] -> logits [N,C]. Taps: those of the base network (of its shared part and of the first branch),
    ``branches`` [N,m,C] (every branch's logits) and ``ensemble`` [N,C] (these, joined by the gate).

    The last stage is the one of the highest ``block<k>`` tap; a layer belongs to the branches if it has weights and is
    defined no earlier than that stage.

    Args:
        num_classes: C.
        base: arguments of :func:`kdstream.models.build` for the network with one branch.
        branches: m >= 2.
        answer: whose logits the network gives: the "ensemble"'s, or those of the first "branch".

    Raises:
        UserError: a base network whose stages are not its direct layers; settings out of range.
    """

    def __init__(self, num_classes: int, base: Mapping[str, Any], branches: int = 3, answer: str = "ensemble"):
        super().__init__()
        if not isinstance(branches, int) or branches < 2:
            raise UserError(f"a branched network has 2 branches or more, not {branches!r}")
        if answer not in ("ensemble", "branch"):
            raise UserError(f"a branched network answers by its 'ensemble' or its first 'branch', not {answer!r}")
        networks = [build(num_classes=num_classes, **base) for _ in range(branches)]
        trunk = networks[0]
        self.answer = answer
        self.base = spec_of(trunk)
        self.inplace = getattr(trunk, "inplace", True)
        last = _last_stage(trunk)
        names = [name for name, _ in trunk.named_children()]
        self._own = [
            name for name in names[names.index(last) :] if next(_state(trunk.get_submodule(name)), None) is not None
        ]
        width = _width(trunk, last)
        taps = _moved(taps_of(trunk), names[names.index(last) :], self._own)
        classifier = classifier_path_of(trunk)
        for name in self._own:
            copies = [network.get_submodule(name) for network in networks]
            setattr(trunk, name, PerBranch(copies, begins=name == last))
        self.trunk = Tapped(trunk, {"shared": f"{last}:input"})
        self.gate = Gate(width, branches)
        # Layers that do nothing, so that these two can be tapped.
        self.branches = nn.Identity()
        self.ensemble = nn.Identity()
        self.taps = {**taps, "branches": "branches", "ensemble": "ensemble"}
        self.classifier_path = f"trunk.module.{classifier}.copies.0"

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.trunk(images)
        branches = self.branches(outputs.logits.unflatten(0, (-1, len(images))).transpose(0, 1))
        weights = self.gate(outputs.features["shared"].mean((2, 3)))
        ensemble = self.ensemble(join(branches, weights))
        return ensemble if self.answer == "ensemble" else branches[:, 0]

    def branch(self, number: int = 0) -> nn.Module:
        """The network with one branch alone, the first (0) or another, as ``build`` makes it; shares its weights with
        this one."""
        with torch.device("meta"):
            network = build(**self.base)
        for name, layer in self.trunk.module.named_children():
            setattr(network, name, layer.copies[number] if isinstance(layer, PerBranch) else layer)
        return network

    def adopt(self, network: nn.Module, images: Tensor) -> None:
        """Take over the weights of a network like the base, for the shared part and the first branch.

        Args:
            network: of the base's architecture.
            images: float [N,3,H,W], on which the first branch must then answer as ``network`` does.

        Raises:
            UserError: it does not, for the network's layers do not run in the order of their definition.
        """
        first = self.branch()
        first.load_state_dict(network.state_dict())
        with torch.no_grad():
            expected = network.eval()(images)
            try:
                answer = Tapped(self, ["branches"]).eval()(images).features["branches"][:, 0]
            except (RuntimeError, ValueError):  # shapes that do not fit
                answer = None
        network.train()
        self.train()
        if answer is None or not torch.allclose(answer, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
            raise UserError(
                f"{self.base['name']} cannot be branched: its layers do not run in the order of their definition; take "
                "a ResNet or WRN"
            )


def _width(network: nn.Module, stage: str) -> int:
    """How many channels the stage takes."""
    layers = network.get_submodule(stage).modules()
    width = next((layer.in_channels for layer in layers if isinstance(layer, nn.Conv2d)), None)
    if width is None:
        raise UserError(
            f"{architecture(network)} cannot be branched: its last stage ({stage}) has no convolution; take a ResNet "
            "or WRN"
        )
    return width


def _last_stage(network: nn.Module) -> str:
    """The direct layer that is the network's last stage."""
    stages = {name: path for name, path in taps_of(network).items() if name.removeprefix("block").isdigit()}
    children = dict(network.named_children())
    path = stages[max(stages, key=lambda name: int(name.removeprefix("block")))] if stages else None
    if path not in children or next(_state(network, recurse=False), None) is not None:
        raise UserError(
            f"{architecture(network)} cannot be branched: its stages (taps block1, block2, ...) are not direct "
            "layers of it; take a ResNet or WRN"
        )
    return path


def _state(module: nn.Module, recurse: bool = True) -> Iterator[Tensor]:
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)


def _moved(taps: Mapping[str, str], after: Sequence[str], own: Sequence[str]) -> dict[str, str]:
    """The taps as paths within the branched network. What the branches share without weights of their own sees all
    branches at once and is no tap any more."""
    moved = {}
    for name, path in taps.items():
        layer, dot, rest = path.partition(".")
        layer, colon, port = layer.partition(":")
        if layer in own:
            moved[name] = f"trunk.module.{layer}.copies.0{colon}{port}{dot}{rest}"
        elif layer not in after:
            moved[name] = f"trunk.module.{path}"
    return moved
