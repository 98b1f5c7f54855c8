"""ijckd: labels, logits and maps add up to its value."""

from __future__ import annotations

import torch
from joint_students import images, joined, of
from torch.nn import functional as F

from kdstream.batch import Batch
from kdstream.objectives.ijckd import IJCKD


def test_ijckd_adds_labels_logits_and_maps():
    term = IJCKD(alpha_ce=0.2, alpha=0.5, beta=3, connector="1x1-1x1")
    _, student, teacher = joined(term, of("resnet8"), of("resnet8x4"))
    labels = torch.arange(6) % 5
    expected = 0.2 * F.cross_entropy(student.logits, labels)
    expected = expected + 0.5 * F.mse_loss(student.logits, teacher.logits)
    expected = expected + 3 * F.mse_loss(student.features["connector"], teacher.features["map"])
    torch.testing.assert_close(term(student, teacher, Batch(images(), labels, torch.arange(6))), expected)
