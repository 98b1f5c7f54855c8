"""Adapters of the golden cases of crd, itrd, and of the terms that use the teacher's classifier."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import torch
from golden_case import Adapter
from torch import nn
from torch.nn import functional as F

from kdstream.batch import Outputs
from kdstream.models import build
from kdstream.objectives.common.connectors import HEAD, logit_distance, map_distance


class CRDAdapter(Adapter):
    def task(self, case, student, teacher):
        size = case.hyper["n_data"]
        task = super().task(case, student, teacher)
        return dataclasses.replace(task, num_samples=size, labels=torch.arange(size) % 2)

    def attach(self, term, case):
        assert case.inputs["contrast_idx"].shape[1] == term.nce_k + 1
        term.contrast = lambda batch: case.inputs["contrast_idx"]
        for name in ("Z_v1", "Z_v2"):
            if case.hyper[name] is not None:
                getattr(term, name).fill_(case.hyper[name])
        return {"contrast_idx"}

    def parts(self, term, student, teacher, batch):
        term = copy.deepcopy(term)  # the comparison with out/loss takes this step itself
        ours, theirs = term.sides(student, teacher, batch)
        rows = {f"memory_{view}.rows": getattr(term, f"memory_{view}")[batch.index] for view in ("v1", "v2")}
        return {"student_term": ours, "teacher_term": theirs, "Z_v1": term.Z_v1, "Z_v2": term.Z_v2, **rows}


class ITRDAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        return {
            "correlation": term.correlation(student, teacher),
            "mutual": term.mutual_information(student, teacher),
        }


class ReusedAdapter(Adapter):
    """Of srrl; and what it shares with the others: a teacher that is nothing but its classifier."""

    def task(self, case, student, teacher):
        task = super().task(case, student, teacher)
        weight, bias = (case.params[f"teacher.fc.{name}"].float() for name in ("weight", "bias"))
        classifier = nn.Linear(*reversed(weight.shape))
        classifier.load_state_dict({"weight": weight, "bias": bias})
        # The term checks that these belong together.
        maps = task.teacher_outputs.features
        (last,) = maps.values()
        outputs = Outputs(F.linear(last.mean(dim=(2, 3)), weight, bias), maps)
        answer = Outputs(torch.zeros(len(outputs.logits), len(weight)), task.student_outputs.features)
        owner = SimpleNamespace(classifier=classifier)
        return dataclasses.replace(task, student_outputs=answer, teacher_outputs=outputs, teacher=owner, build=build)

    def settings(self, case):
        return {**super().settings(case), "taps": "block3", "teacher_taps": "block3"}

    def parts(self, term, student, teacher, batch):
        connected = term.connect(student)
        logits = term.classify(connected)
        (theirs,) = teacher.features.values()
        return {
            "logits_aux": logits,
            "lm": logit_distance(logits, teacher.logits),
            "fm": map_distance(connected, theirs),
        }


class JointAdapter(ReusedAdapter):
    """The cases have the map before the connector; it goes through the head that the deployed network has."""

    def attach(self, term, case):
        classes, width = case.params["teacher.fc.weight"].shape
        ours, theirs = (case.inputs[f"{role}.features.block3"].shape[1:] for role in ("student", "teacher"))
        self.head = build(HEAD, classes, **term.head_settings(ours, theirs, nn.Linear(width, classes)))
        self.head.to(case.dtype)
        term.connector, term.teacher = self.head.connector, nn.ModuleDict({"fc": self.head.classifier})
        plain = term.forward
        term.forward = lambda student, teacher, batch: plain(self.joined(student), teacher, batch)
        assert term.student_taps == ("connector",)
        term.student_taps = ("block3",)
        return set()

    def joined(self, student):
        connected = self.head.connect(student.features["block3"])
        return Outputs(self.head.classify(connected), {"connector": connected})

    def parts(self, term, student, teacher, batch):
        joined = self.joined(student)
        return {"student.logits": joined.logits, "fm": term.feature_distance(joined, teacher)}


class IJCKDAdapter(JointAdapter):
    def parts(self, term, student, teacher, batch):
        parts = super().parts(term, student, teacher, batch)
        logits = parts["student.logits"]
        return {**parts, "lm": logit_distance(logits, teacher.logits), "ce": F.cross_entropy(logits, batch.label)}


CONNECTOR = {"connector": "connector", "mid_channels": "mid_channels"}
ADAPTERS: dict[str, Adapter] = {
    "crd": CRDAdapter(
        {name: name for name in ("feat_dim", "nce_k", "nce_t", "nce_m", "eps")},
        facts=frozenset({"n_data", "Z_v1", "Z_v2"}),
    ),
    "itrd": ITRDAdapter({name: name for name in ("alpha_it", "beta_corr", "beta_mi")}),
    "srrl": ReusedAdapter({**CONNECTOR, "alpha": "alpha", "beta": "beta"}),
    "simkd": JointAdapter(CONNECTOR),
    "ijckd": IJCKDAdapter({**CONNECTOR, "alpha_ce": "alpha_ce", "alpha": "alpha", "beta": "beta"}),
}
