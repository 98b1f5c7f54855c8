"""Adapters of the golden cases of kd and of terms of logits alone."""

from __future__ import annotations

from golden_case import Adapter

from kdstream.objectives.kd import softened_kl


class KDAdapter(Adapter):
    def parts(self, term, student, teacher, batch):
        return {"kl": softened_kl(student.logits, teacher.logits, term.temperature)}


ADAPTERS: dict[str, Adapter] = {
    "kd": KDAdapter({"T": "temperature"}),
}
