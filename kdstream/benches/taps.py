"""Bench ``taps``: what it costs to take features from a network beside its logits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Outputs
from kdstream.benches.coded import settle
from kdstream.benches.measure import alternate, bench, milliseconds, new_table, ratio, whole
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.notes import taps_of

TARGET = 1.02


def _pass(network: Callable[[Tensor], Any], images: Tensor, labels: Tensor) -> Callable[[], None]:
    """A forward and a backward pass of the cross-entropy."""

    def work() -> None:
        answer = network(images)
        F.cross_entropy(answer.logits if isinstance(answer, Outputs) else answer, labels).backward()

    return work


@bench(
    {
        "--models": {
            "default": "resnet8x4,resnet56",
            "metavar": "A,B",
            "help": "networks, each of which is measured (default: resnet8x4,resnet56)",
        },
        "--batch": {"type": whole, "default": 64, "metavar": "N", "help": "images of a step (default: 64)"},
        "--size": {"type": whole, "default": 32, "metavar": "PIXELS", "help": "of the images (default: 32)"},
        "--classes": {"type": whole, "default": 100, "metavar": "N", "help": "default: 100"},
    }
)
def taps(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """A forward and backward pass with every tap that a network has, against one of the plain network."""
    table = new_table(
        f"forward + backward, {options.batch} images {options.size}x{options.size}",
        *("work", "taps", "plain ms", "tapped ms", "ratio", "target"),
    )
    rows = []
    for name in options.models.split(","):
        torch.manual_seed(0)
        network = build(name, options.classes).train()
        images = torch.randn(options.batch, 3, options.size, options.size)
        labels = torch.randint(options.classes, (options.batch,))
        settle(network, images)
        names = list(taps_of(network))
        # A copy, for the hooks of a wrapper stay in the network and are called, idle, in its plain passes as well.
        tapped = Tapped(build(name, options.classes), names).train()
        tapped.module.load_state_dict(network.state_dict())
        works = {"plain": _pass(network, images, labels), "tapped": _pass(tapped, images, labels)}
        for work in works.values():
            work()
        rounds = alternate(works, options.seconds)
        found = ratio(rounds, ["tapped"], ["plain"])
        plain_ms, tapped_ms = milliseconds(rounds, "plain"), milliseconds(rounds, "tapped")
        shown = f"{found.median:.3f} ({found.low:.3f}-{found.high:.3f})"
        table.add_row(name, str(len(names)), f"{plain_ms:.1f}", f"{tapped_ms:.1f}", shown, f"<= {TARGET:.2f}")
        about = {"model": name, "taps": names, "plain_ms": plain_ms, "tapped_ms": tapped_ms}
        rows.append({**about, **found._asdict(), "target": TARGET})
    console.print(table)
    return {"batch": options.batch, "size": options.size, "models": rows}
