"""Losses of other libraries, for bench ``step``: over the same features and what an objective trains beside them."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives import Term

Loss = Callable[[Outputs, Outputs, Batch], Tensor]


@dataclass(frozen=True)
class Other:
    """Another implementation of an objective's loss.

    Attributes:
        name: as the table shows it.
        package: what must be installed; None: written out in this file.
        make: (our term, set up; the class of every training sample) -> (student, teacher, batch) -> loss.
    """

    name: str
    package: str | None
    make: Callable[[Any, Tensor], Loss]

    def installed(self) -> bool:
        """Whether it can be measured here."""
        return self.package is None or importlib.util.find_spec(self.package) is not None

    def __call__(self, term: Term, labels: Tensor) -> Loss:
        return self.make(term, labels)


def _torchdistill(name: str, *args: Any, **settings: Any) -> Any:
    return getattr(importlib.import_module("torchdistill.losses.mid_level"), name)(*args, **settings)


def _io(outputs: Outputs) -> dict[str, dict[str, Tensor]]:
    """The outputs as torchdistill passes them: module path -> io -> tensor."""
    values = {"logits": outputs.logits, **outputs.features}
    return {name: {"output": value, "input": value} for name, value in values.items()}


def _called(loss: Any) -> Loss:
    """A loss of torchdistill over logits and features as they are."""
    return lambda student, teacher, batch: loss(_io(student), _io(teacher), batch.label)


def _at(path: str) -> dict[str, Any]:
    return {"io": "output", "path": path}


def _logit_pair() -> tuple[str, str, str, str]:
    return "logits", "output", "logits", "output"


def _kd(term: Any, labels: Tensor) -> Loss:
    divergence = _called(_torchdistill("KDLoss", *_logit_pair(), term.temperature, alpha=0.0))  # without T^2 where 0
    return lambda student, teacher, batch: term.temperature**2 * divergence(student, teacher, batch)


def _dist(term: Any, labels: Tensor) -> Loss:
    settings = {"beta": term.beta, "gamma": term.gamma, "tau": term.tau, "eps": term.eps}
    return _called(_torchdistill("DISTLoss", *_logit_pair(), **settings))


def _at_loss(term: Any, labels: Tensor) -> Loss:
    pairs = {ours: {"student": _at(ours), "teacher": _at(theirs)} for ours, theirs in _pairs(term)}
    return _called(_torchdistill("ATLoss", pairs, mode="code"))


def _pkt(term: Any, labels: Tensor) -> Loss:
    return _called(_torchdistill("PKTLoss", term.student_taps[0], "output", term.teacher_taps[0], "output", term.eps))


def _rkd(term: Any, labels: Tensor) -> Loss:
    return _called(_torchdistill("RKDLoss", term.student_taps[0], term.teacher_taps[0], term.w_d, term.w_a, "mean"))


def _sp(term: Any, labels: Tensor) -> Loss:
    return _called(_torchdistill("SPKDLoss", term.student_taps[0], term.teacher_taps[0], "batchmean"))


def _fsp(term: Any, labels: Tensor) -> Loss:
    ours, theirs = list(term.student_taps), list(term.teacher_taps)
    pairs = {
        str(i): {
            "student_first": _at(ours[i]),
            "student_second": _at(ours[i + 1]),
            "teacher_first": _at(theirs[i]),
            "teacher_second": _at(theirs[i + 1]),
            "weight": term.weights[i],
        }
        for i in range(len(ours) - 1)
    }
    return _called(_torchdistill("FSPLoss", pairs))


def _ab(term: Any, labels: Tensor) -> Loss:
    """The boundary loss over what our connectors give."""
    weights = dict(zip(term.student_taps, term.weights, strict=True))
    pairs = {
        ours: {"student": _at(ours), "teacher": _at(theirs), "weight": term.scale * weights[ours]}
        for ours, theirs in _pairs(term)
    }
    loss = _torchdistill("AltActTransferLoss", pairs, margin=term.margin, reduction="mean")

    def connected(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        features = {
            tap: term.connector[name](value) if (name := tap.removesuffix(".pre")) in term.connector else value
            for tap, value in student.features.items()
        }
        return loss(_io(Outputs(student.logits, features)), _io(teacher), batch.label)

    return connected


def _ft(term: Any, labels: Tensor) -> Loss:
    """The factors' distance in the authors' form, over what our paraphraser and translator give."""
    loss = _torchdistill("FTLoss")

    def factors(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        with torch.no_grad():
            theirs = term.paraphraser.encoder(teacher.features[term.teacher_taps[0]])
        ours = term.translator(student.features[term.student_taps[0]])
        return loss({"translator": {"output": ours}}, {"paraphraser": {"output": theirs}})

    return factors


def _vid(term: Any, labels: Tensor) -> Loss:
    """The Gaussian likelihood over what our regressors give."""
    pairs = {ours: {"student": _at(ours), "teacher": _at(theirs)} for ours, theirs in _pairs(term)}
    loss = _torchdistill("VIDLoss", pairs)

    def predicted(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        answers = {}
        for tap, value in student.features.items():
            regressor = term.vid[tap]
            mean = regressor.conv3(regressor.conv2(regressor.conv1(value).relu()).relu())
            variance = F.softplus(regressor.log_scale) + regressor.eps
            answers[tap] = {"output": (mean, variance.view(1, -1, 1, 1))}
        return loss(answers, _io(teacher), batch.label)

    return predicted


def _reviewkd(term: Any, labels: Tensor) -> Loss:
    """The hierarchical context loss over what our fusions give."""
    losses = {
        ours: _torchdistill("HierarchicalContextLoss", ours, "output", theirs, "output", output_sizes=term.hcl_levels)
        for ours, theirs in reversed(_pairs(term))
    }

    def maps(value: Tensor) -> Tensor:
        return value if value.ndim == 4 else value[:, :, None, None]

    def fused(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        total, residual = torch.zeros(()), None
        for ours, loss in losses.items():
            target = maps(teacher.features[loss.teacher_module_path])
            output, residual = term.abf[ours](maps(student.features[ours]), residual, target.shape[2:])
            sides = {ours: {"output": (output, residual)}}, {loss.teacher_module_path: {"output": target}}
            total = total + loss(*sides)
        return term.ramp * total

    return fused


def _crd(term: Any, labels: Tensor) -> Loss:
    """Its negatives are drawn once, before the time counts: a data loader would do that."""
    n, width = term.memory_v1.shape
    settings = {"temperature": term.nce_t, "momentum": term.nce_m, "eps": term.eps}
    loss = _torchdistill("CRDLoss", "v1", "idx", "v2", width, n, term.nce_k, n, **settings)
    drawn: dict[int, Tensor] = {}

    def embedded(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        if id(batch) not in drawn:
            drawn[id(batch)] = term.contrast(batch)
        ours = term.embed_s(student.features[term.student_taps[0]])
        theirs = term.embed_t(teacher.features[term.teacher_taps[0]])
        sides = {"v1": {"output": ours}, "idx": {"input": {"pos_idx": batch.index, "contrast_idx": drawn[id(batch)]}}}
        return loss(sides, {"v2": {"output": theirs}}).squeeze()

    return embedded


def _plain_fitnet(term: Any, labels: Tensor) -> Loss:
    def loss(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        total = torch.zeros(())
        for (ours, theirs), weight in zip(_pairs(term), term.weights, strict=True):
            total = total + weight * F.mse_loss(term.connector[ours](student.features[ours]), teacher.features[theirs])
        return total

    return loss


def _plain_cc(term: Any, labels: Tensor) -> Loss:
    def loss(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        ours = term.embed_s(student.features[term.student_taps[0]].flatten(1))
        theirs = term.embed_t(teacher.features[term.teacher_taps[0]].flatten(1))
        delta = torch.abs(ours - theirs)
        return torch.mean((delta[:-1] * delta[1:]).sum(1))

    return loss


def _plain_nst(term: Any, labels: Tensor) -> Loss:
    """The kernel of every pair of channels by broadcasting."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).pow(2)

    def loss(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        total = torch.zeros(())
        for ours, theirs in _pairs(term):
            s = F.normalize(student.features[ours].flatten(2), dim=2)
            t = F.normalize(teacher.features[theirs].flatten(2), dim=2)
            total = total + kernel(t, t).mean() + kernel(s, s).mean() - 2 * kernel(s, t).mean()
        return total

    return loss


def _plain_kdsvd(term: Any, labels: Tensor) -> Loss:
    """Full singular value decompositions, differentiated by torch."""

    def leading(maps: Tensor) -> tuple[Tensor, Tensor]:
        _, values, vectors = torch.linalg.svd(maps.flatten(2).mT, full_matrices=False)
        return values, vectors.mT

    def loss(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        sides = []
        for ours, theirs in _pairs(term):
            values, t = leading(teacher.features[theirs])
            scale = F.normalize(values[:, : term.k], dim=1).unsqueeze(1)
            t = t[:, :, : term.k]
            s = leading(student.features[ours])[1][:, :, : term.k + 3]
            cosine = s.mT @ t
            chosen = cosine.abs().argmax(1, keepdim=True)
            picked = s.gather(2, chosen.expand(-1, s.shape[1], -1)) * cosine.gather(1, chosen).sign()
            sides.append((picked * scale, t * scale))
        total = torch.zeros(())
        for (s_low, t_low), (s_high, t_high) in itertools.pairwise(sides):
            student_flow, teacher_flow = (
                torch.exp((high.unsqueeze(2) - low.unsqueeze(1)).square() / -term.gamma)
                for high, low in ((s_high, s_low), (t_high, t_low))
            )
            total = total + (student_flow - teacher_flow).square().sum() / len(student_flow)
        return total

    return loss


def _plain_crd(term: Any, labels: Tensor) -> Loss:
    """Negatives drawn by NumPy for each sample, as a data loader does; rows of the banks gathered and multiplied."""
    others = [np.flatnonzero(labels.numpy() != c) for c in range(int(labels.max()) + 1)]
    rng = np.random.default_rng(0)

    def loss(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        draws = [rng.choice(others[c], term.nce_k, replace=True) for c in batch.label.tolist()]
        chosen = torch.cat([batch.index[:, None], torch.from_numpy(np.stack(draws))], dim=1)
        ours = term.embed_s(student.features[term.student_taps[0]])
        theirs = term.embed_t(teacher.features[term.teacher_taps[0]])
        total = torch.zeros(())
        n, width = term.memory_v1.shape
        noise = term.nce_k / n
        for anchor, bank in ((ours, term.memory_v2), (theirs, term.memory_v1)):
            rows = torch.index_select(bank, 0, chosen.view(-1)).view(len(anchor), -1, width)
            score = torch.exp(torch.bmm(rows, anchor.unsqueeze(2)).squeeze(2) / term.nce_t)
            x = score / (score.mean().detach() * n)
            positive = torch.log(x[:, 0] / (x[:, 0] + noise + term.eps))
            negative = torch.log(noise / (x[:, 1:] + noise + term.eps))
            total = total - (positive.sum() + negative.sum()) / len(anchor)
        with torch.no_grad():
            for bank, new in ((term.memory_v1, ours), (term.memory_v2, theirs)):
                row = bank.index_select(0, batch.index) * term.nce_m + new * (1 - term.nce_m)
                bank.index_copy_(0, batch.index, F.normalize(row, dim=1))
        return total

    return loss


def _pairs(term: Any) -> list[tuple[str, str]]:
    return list(zip(term.student_taps, term.teacher_taps, strict=True))


OTHERS: Mapping[str, tuple[Other, ...]] = {
    "ab": (Other("torchdistill", "torchdistill", _ab),),
    "at": (Other("torchdistill", "torchdistill", _at_loss),),
    "cc": (Other("plain loop", None, _plain_cc),),
    "crd": (Other("plain loop", None, _plain_crd), Other("torchdistill", "torchdistill", _crd)),
    "dist": (Other("torchdistill", "torchdistill", _dist),),
    "fitnet": (Other("plain loop", None, _plain_fitnet),),
    "fsp": (Other("torchdistill", "torchdistill", _fsp),),
    "ft": (Other("torchdistill", "torchdistill", _ft),),
    "kd": (Other("torchdistill", "torchdistill", _kd),),
    "kdsvd": (Other("plain loop", None, _plain_kdsvd),),
    "nst": (Other("plain loop", None, _plain_nst),),
    "pkt": (Other("torchdistill", "torchdistill", _pkt),),
    "reviewkd": (Other("torchdistill", "torchdistill", _reviewkd),),
    "rkd": (Other("torchdistill", "torchdistill", _rkd),),
    "sp": (Other("torchdistill", "torchdistill", _sp),),
    "vid": (Other("torchdistill", "torchdistill", _vid),),
}
"""Objective -> other implementations of it. torchdistill's FSP pools by maximum and sums column norms, its FT is the
authors' form, its SP divides rows by their L1 norm: of the same cost, not the same number."""
