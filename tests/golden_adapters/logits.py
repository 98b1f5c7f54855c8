"""Adapters of the golden cases of kd and of terms of logits (kdpp: of penultimate features) and labels alone."""

from __future__ import annotations

import dataclasses

import torch
from golden_case import Adapter

from kdstream.objectives.confidence_penalty import label_loss_and_entropy
from kdstream.objectives.ctkd import reversal, tempered_kd
from kdstream.objectives.dist import correlation_distances
from kdstream.objectives.dkd import decoupled
from kdstream.objectives.kd import softened_kl
from kdstream.objectives.kdpp import larger_norm, norm_and_direction
from kdstream.objectives.label_smoothing import label_and_uniform
from kdstream.objectives.logit_mse import logit_distance
from kdstream.objectives.nkd import nontarget_cross_entropy, target_part
from kdstream.objectives.renyi import decompose, matching_weight
from kdstream.objectives.ttm import transformed_kl
from kdstream.objectives.wsld import sample_weight
from kdstream.objectives.wttm import power_sum


class KDAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        return {"kl": softened_kl(student.logits, teacher.logits, term.temperature)}


class LogitMSEAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        return {"loss_sum_over_classes": logit_distance(student.logits, teacher.logits, "sum")}


class TTMAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        return {
            "kl": transformed_kl(student.logits, teacher.logits, term.gamma),
            "power_sum": power_sum(teacher.logits, term.gamma),
        }


class RenyiAdapter(Adapter):
    """The paper's losses (1), (2) and (18) from the parts of its identity."""

    def attach(self, term, case):
        self.kd_weight = case.hyper["lambda"]
        return set()

    def parts(self, term, student, teacher, batch):
        parts, temperature, kd_weight = (
            decompose(student.logits, teacher.logits, term.temperature),
            term.temperature,
            self.kd_weight,
        )
        ce, _ = label_and_uniform(student.logits, batch.label)
        l_kd = (1 - kd_weight) * ce + kd_weight * temperature**2 * parts.kd.mean()
        regulariser = kd_weight * temperature * (temperature - 1) * parts.renyi.mean()
        return {
            "lhs": parts.ttm,
            "rhs": parts.total,
            "kd_kl": parts.kd,
            "renyi": parts.renyi,
            "shannon_teacher": parts.shannon_teacher,
            "ce": ce,
            "l_ttm": ce + matching_weight(temperature, kd_weight) * parts.ttm.mean(),
            "l_kd": l_kd,
            "eq18": (l_kd - regulariser) / (1 - kd_weight),
        }


class DISTAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        inter, intra = correlation_distances(student.logits, teacher.logits, term.tau, term.eps)
        return {"inter": inter, "intra": intra}


class DKDAdapter(Adapter):
    def settings(self, case):
        return {**super().settings(case), "warmup": 0}

    def parts(self, term, student, teacher, batch):
        tckd, nckd = decoupled(student.logits, teacher.logits, batch.label, term.temperature)
        return {"tckd": tckd, "nckd": nckd}


class NKDAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        others = nontarget_cross_entropy(student.logits, teacher.logits, batch.label, term.temperature)
        return {
            "target": target_part(student.logits, teacher.logits, batch.label),
            "nontarget": term.gamma * term.temperature**2 * others,
            "nontarget_ce": others,
        }


class WSLDAdapter(Adapter):
    """``alpha`` is the outer weight, of which one value tells."""

    def attach(self, term, case):
        self.alpha = case.hyper["alpha"]
        return set()

    def parts(self, term, student, teacher, batch):
        return {
            "loss_weighted": self.alpha * term(student, teacher, batch),
            "weight": sample_weight(student.logits, teacher.logits, batch.label, term.eps),
        }


class CTKDAdapter(Adapter):
    """Sets the state that an epoch would, and asks the schedule and the derivative that the case stores."""

    def attach(self, term, case):
        term.strength = case.hyper["lambda"]
        self.epochs = len(case.outs["lambda_schedule"])
        return set()

    def parts(self, term, student, teacher, batch):
        tau = term.temperature().detach().requires_grad_()
        value = tempered_kd(student.logits, teacher.logits, tau.squeeze())
        schedule = [reversal(epoch, term.ramp, term.lambda_min, term.lambda_max) for epoch in range(self.epochs)]
        return {
            "temperature": tau,
            "dloss_dtemperature": torch.autograd.grad(value, tau)[0],
            "lambda_schedule": torch.tensor(schedule, dtype=torch.float64),
        }


class KDPPAdapter(Adapter):
    def task(self, case, student, teacher):
        classes = len(case.inputs["teacher.class_means"])
        return dataclasses.replace(super().task(case, student, teacher), num_classes=classes)

    def attach(self, term, case):
        # A sum over the samples of a class has the direction of its mean.
        term.class_sums.copy_(3 * case.inputs["teacher.class_means"])
        return {"teacher.class_means"}

    def parts(self, term, student, teacher, batch):
        ours, theirs = student.features["penultimate"], teacher.features["penultimate"]
        return {
            "per_sample": norm_and_direction(ours, theirs, term.class_sums[batch.label]),
            "max_norm": larger_norm(ours, theirs),
        }


class LabelSmoothingAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        ce, uniform = label_and_uniform(student.logits, batch.label)
        return {"ce": ce, "uniform_ce": uniform}


class ConfidencePenaltyAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        ce, entropy = label_loss_and_entropy(student.logits, batch.label)
        return {"ce": ce, "entropy": entropy}


ADAPTERS: dict[str, Adapter] = {
    "confidence_penalty": ConfidencePenaltyAdapter({"eta": "eta"}),
    "ctkd": CTKDAdapter(
        {
            "t_start": "t_start",
            "t_end": "t_range",
            "lambda_min": "lambda_min",
            "lambda_max": "lambda_max",
            "E_loops": "ramp",
        },
        facts=frozenset({"lambda"}),  # what an epoch sets
    ),
    "dist": DISTAdapter({"beta": "beta", "gamma": "gamma", "tau": "tau", "eps": "eps"}),
    "dkd": DKDAdapter({"alpha": "alpha", "beta": "beta", "T": "temperature"}),
    "kd": KDAdapter({"T": "temperature"}),
    "kdpp": KDPPAdapter(facts=frozenset({"nd_loss_factor"})),  # the outer weight
    "label_smoothing": LabelSmoothingAdapter({"epsilon": "epsilon"}),
    "logit_mse": LogitMSEAdapter(facts=frozenset({"reduction"})),  # a text; both reductions are compared
    "nkd": NKDAdapter({"gamma": "gamma", "T": "temperature"}),
    "renyi": RenyiAdapter({"T": "temperature"}, facts=frozenset({"gamma", "lambda"})),  # gamma = 1 / T
    "ttm": TTMAdapter({"gamma": "gamma"}, facts=frozenset({"T"})),  # 1 / gamma
    "wsld": WSLDAdapter({"T": "temperature", "eps": "eps"}, facts=frozenset({"alpha"})),
    "wttm": TTMAdapter({"gamma": "gamma"}, facts=frozenset({"T"})),
}
