"""Adapters of the golden cases of terms that compare feature maps pair by pair."""

from __future__ import annotations

from golden_case import Adapter

from kdstream.objectives.at import attention_distance


class ATAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        return {
            tap: attention_distance(student.features[tap], teacher.features[tap], term.p) for tap in term.student_taps
        }


class FitNetAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        return {tap: term.hint_distance(tap, student.features[tap], teacher.features[tap]) for tap in term.student_taps}


ADAPTERS: dict[str, Adapter] = {
    "at": ATAdapter({"p": "p", "taps": "taps"}),
    # The loading of the weights and the value prove the regressors' geometry.
    "fitnet": FitNetAdapter({"taps": "taps", "W": "weights"}, facts=frozenset({"connector"})),
}
