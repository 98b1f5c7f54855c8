"""Adapters of the golden cases of correlation matching (CMKD and its parts)."""

from __future__ import annotations

from typing import Any

from golden_case import Adapter, Case

from kdstream.objectives.cmkd import CorrelationMatching
from kdstream.objectives.pearson import correlation

KEYWORDS = {
    "T": "temperature",
    "beta": "beta",
    "gamma": "gamma",
    "ranks": "ranks",
    "regularization_strength": "strength",
    "zscore": "zscore",
}


class CorrelationAdapter(Adapter):
    def settings(self, case: Case) -> dict[str, Any]:
        assert case.hyper.get("ddof", 1) == 1
        assert case.hyper.get("regularization", "l2") == "l2"
        return super().settings(case)


class PearsonAdapter(CorrelationAdapter):
    def parts(self, term, student, teacher, batch):
        return {"r": term.coefficients(student.logits, teacher.logits)}


class SpearmanAdapter(CorrelationAdapter):
    def parts(self, term, student, teacher, batch):
        ours, theirs = term.ranked(student.logits, teacher.logits)
        kind = {"soft": "soft_rank", "exact": "rank"}[term.ranks]
        return {
            "rho": term.coefficients(student.logits, teacher.logits),
            f"{kind}.student": ours,
            f"{kind}.teacher": theirs,
            "loss_pearson_of_ranks": (1 - correlation(ours, theirs)).mean(),
        }


class CMKDAdapter(CorrelationAdapter):
    def settings(self, case: Case) -> dict[str, Any]:
        kind = {"softmax(teacher.logits), raw, T=1": "raw"}.get(case.hyper["entropy_of"], "softened")
        return {**super().settings(case), "entropy_of": kind}

    def parts(self, term, student, teacher, batch):
        pearson, spearman = term.parts(student.logits, teacher.logits)
        entropies = term.entropies(teacher.logits)
        on_pearson, on_spearman = term.weights(entropies)
        softened = CorrelationMatching(
            term.beta, term.gamma, term.temperature, term.strength, entropy_of="softened", zscore=term.zscore
        )
        return {
            "pearson": pearson,
            "spearman": spearman,
            "entropy": entropies,
            "entropy_mean": entropies.mean(),
            "entropy_softened": softened.entropies(teacher.logits),
            "loss_entropy_softened": softened(student, teacher, batch),
            "weight_pearson": on_pearson,
            "weight_spearman": on_spearman,
        }


ADAPTERS: dict[str, Adapter] = {
    "cmkd": CMKDAdapter(KEYWORDS, facts=frozenset({"ddof", "regularization", "entropy_of"})),
    "pearson": PearsonAdapter(KEYWORDS, facts=frozenset({"ddof"})),
    "spearman": SpearmanAdapter(KEYWORDS, facts=frozenset({"ddof", "regularization"})),
}
