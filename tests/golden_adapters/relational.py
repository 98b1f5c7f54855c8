"""Adapters of the golden cases of terms that relate samples, channels or layers, and of those with a phase before the
main one."""

from __future__ import annotations

from golden_case import Adapter

from kdstream.objectives.common.settings import module_name
from kdstream.objectives.nst import selectivity_distance


class ABAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        return {
            module_name(tap): term.boundary(tap, student.features[tap], teacher.features[tap])
            for tap in term.student_taps
        }


class FSPAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        return {f"fsp{i}": part for i, part in enumerate(term.parts(student, teacher), 1)}


class FTAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        return {"reconstruction": term.reconstruction(student, teacher, batch)}


class KDSVDAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        return {f"pair{i}": part for i, part in enumerate(term.parts(student, teacher), 1)}


class NSTAdapter(Adapter):
    def settings(self, case):
        assert case.hyper.get("kernel", "poly d=2 c=0") == "poly d=2 c=0", f"nst: kernel {case.hyper['kernel']!r}"
        return super().settings(case)

    def parts(self, term, student, teacher, batch):
        return {tap: selectivity_distance(student.features[tap], teacher.features[tap]) for tap in term.student_taps}


class RKDAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        grams = term.grams(student, teacher)
        return {"distance": term.distance(*grams), "angle": term.angle(*grams)}


class VIDAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        return {tap: term.likelihood(tap, student.features[tap], teacher.features[tap]) for tap in term.student_taps}


ADAPTERS: dict[str, Adapter] = {
    # The loading of the weights and the value prove the connectors' geometry, ft's channels likewise.
    "ab": ABAdapter(
        {"taps": "taps", "margin": "margin", "layer_weights": "weights", "scale": "scale"},
        facts=frozenset({"connector"}),
    ),
    "cc": Adapter({"feat_dim": "feat_dim"}),
    "fsp": FSPAdapter({"taps": "taps", "W": "weights"}),
    "ft": FTAdapter(
        {"k": "k", "p1": "p1", "p2": "p2", "leaky_slope": "leaky_slope"}, facts=frozenset({"factor_channels"})
    ),
    "kdsvd": KDSVDAdapter({"taps": "taps", "k": "k", "gamma": "gamma"}),
    "nst": NSTAdapter({"taps": "taps"}, facts=frozenset({"kernel"})),
    "pkt": Adapter({"eps": "eps"}),
    "rkd": RKDAdapter({"tap": "tap", "w_d": "w_d", "w_a": "w_a"}),
    "sp": Adapter({"taps": "taps"}),
    "vid": VIDAdapter({"taps": "taps", "eps": "eps", "init_pred_var": "init_pred_var"}),
}
