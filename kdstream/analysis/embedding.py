"""Embedding: a network's penultimate features in the plane, by t-SNE, and how well they part the classes.

"Efficient and robust knowledge distillation from a stronger teacher based on correlation matching", figures 5 and 10.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdstream.analysis.asked import Asked
from kdstream.batch import Batch
from kdstream.display.charts import Plotter
from kdstream.display.figures_page import Cells, FiguresPage
from kdstream.errors import UserError
from kdstream.models.taps import Tapped
from kdstream.stream.normalize import standardise

PERPLEXITY = 30
"""Of t-SNE, scikit-learn's usual; less for few images."""


@dataclass(frozen=True)
class Embedded:
    """Of a network.

    Attributes:
        name: of it.
        top1: percent.
        silhouette: of the features, by class, -1..1: how much nearer an image's are to those of its own class than to
            those of the next one (Rousseeuw 1987); of the plane's points in ``silhouette_plane``.
        points: float [N,2], in the plane.
    """

    name: str
    top1: float
    silhouette: float
    silhouette_plane: float
    points: Tensor

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "points": self.points.tolist()}


@torch.no_grad()
def features(networks: Sequence[Asked], batches: Iterable[Batch]) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Penultimate features and logits of several networks for the same images, in main memory.

    Returns:
        (features float [N,D], logits float [N,C]) of each network, and labels int64 [N].

    Raises:
        UserError: a network without a penultimate tap.
    """
    tapped = [Tapped(one.network, ["penultimate"]) for one in networks]
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in networks]
    labels = []
    for batch in batches:
        labels.append(batch.label.cpu())
        for one, network, rows in zip(networks, tapped, found, strict=True):
            answer = network(standardise(batch.image, one.mean, one.std))
            rows.append((answer.features["penultimate"].float().cpu(), answer.logits.float().cpu()))
    joined = [(torch.cat([f for f, _ in rows]), torch.cat([z for _, z in rows])) for rows in found]
    return joined, torch.cat(labels)


def embed(name: str, rows: Tensor, logits: Tensor, label: Tensor, seed: int = 0) -> Embedded:
    """Bring features into the plane.

    Args:
        name: of the network.
        rows: float [N,D], N at least 5.
        logits: float [N,C].
        label: int64 [N], of two classes at least, and fewer than N.
        seed: of t-SNE.

    Raises:
        UserError: too few images or classes.
    """
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score

    kinds = len(label.unique())
    if len(rows) < 5 or not 2 <= kinds < len(rows):
        raise UserError(f"{len(rows)} images of {kinds} classes: an embedding needs 5, of two classes or more; --limit")
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows.numpy())
    apart, plane = (float(silhouette_score(values, label.numpy())) for values in (rows.numpy(), points))
    top1 = 100 * float((logits.argmax(1) == label).float().mean())
    return Embedded(name, top1, apart, plane, torch.from_numpy(points))


def page(found: Sequence[Embedded], label: Tensor, classes: Sequence[str], about: str) -> FiguresPage:
    """Table and charts, one a network."""
    draw = Plotter()
    charts = []
    for one in found:
        groups = [
            (name, [(float(x), float(y)) for x, y in one.points[label == number]])
            for number, name in enumerate(classes)
        ]
        charts.append(draw.clouds(one.name, groups, f"silhouette {one.silhouette:.3f}"))
    columns = ("silhouette of features", "of points", "top-1 %")
    cells = [(one.name, [f"{one.silhouette:.4f}", f"{one.silhouette_plane:.4f}", f"{one.top1:.2f}"]) for one in found]
    table = Cells("how well classes part", "network", columns, cells)
    facts = [
        ("points", f"t-SNE of the features that the classifier reads, perplexity {PERPLEXITY}; axes have no meaning"),
        ("colours", "classes; right ones, not those answered"),
        ("silhouette", "mean over images: 1 = far nearer to its own class than to the next, 0 = between them"),
    ]
    return FiguresPage("Embedding of features", about, [table], charts, facts)
