"""Adapters of the golden cases of ofd, reviewkd and vitkd."""

from __future__ import annotations

import dataclasses

from golden_case import Adapter
from torch import nn

from kdstream.batch import Outputs
from kdstream.objectives.common.settings import module_name


class _BatchNorms(nn.Module):
    """A teacher of nothing but the BatchNorms that the case names ``teacher.<tap>.bn``."""

    def __init__(self, case):
        super().__init__()
        self.module = nn.Module()
        self.paths = {}
        for tap in case.hyper["taps"]:
            name = module_name(tap)
            weight, bias = (case.params[f"teacher.{name}.bn.{kind}"] for kind in ("weight", "bias"))
            norm = nn.BatchNorm2d(len(weight), dtype=case.dtype)
            norm.load_state_dict({"weight": weight, "bias": bias}, strict=False)
            self.module.add_module(name, norm)
            self.paths[tap] = name


class OFDAdapter(Adapter):
    def task(self, case, student, teacher):
        return dataclasses.replace(super().task(case, student, teacher), teacher=_BatchNorms(case))

    def attach(self, term, case):
        return {f"param/{name}" for name in case.params if name.startswith("teacher.")}

    def parts(self, term, student, teacher, batch):
        parts = {}
        for tap in term.student_taps:
            parts[module_name(tap)] = term.distance(tap, student.features[tap], teacher.features[tap])
            parts[f"margin.{module_name(tap)}"] = term.margins(tap)
        return parts


class ReviewKDAdapter(Adapter):
    def task(self, case, student, teacher):
        # The sizes of fusion and answer are no settings: they are those of the maps, as the case's must be.
        for name, outputs in (("shapes", student), ("out_shapes", teacher)):
            heights = [(*value.shape[2:], 1)[0] for value in reversed(outputs.features.values())]
            assert sorted(case.hyper[name]) == sorted(heights), f"{name}: {heights}"
        return super().task(case, student, teacher)

    def parts(self, term, student, teacher, batch):
        return {f"hcl.{tap}": loss for tap, loss in term.stage_losses(student, teacher).items()}


class ViTKDAdapter(Adapter):
    def outputs(self, outputs):
        shallow, last = outputs.features["tokens.shallow"], outputs.features["tokens.deep"]
        layers = {f"tokens.{i + 1}": layer for i, layer in enumerate(shallow.unbind(1))}
        return Outputs(outputs.logits, {**layers, "tokens.last": last})

    def attach(self, term, case):
        mask = case.inputs["mask"].bool()
        term.mask = lambda batch: mask
        return {"mask"}

    def parts(self, term, student, teacher, batch):
        return {"mimic": term.mimic(student, teacher), "generation": term.generate(student, teacher, term.mask(batch))}


ADAPTERS: dict[str, Adapter] = {
    "ofd": OFDAdapter({"taps": "taps", "layer_weights": "layer_weights", "cdf_threshold": "cdf_threshold"}),
    "reviewkd": ReviewKDAdapter(
        {"taps": "taps", "mid_channels": "mid_channels", "hcl_levels": "hcl_levels"},
        facts=frozenset({"shapes", "out_shapes"}),
    ),
    # Widths and grid follow from the tokens.
    "vitkd": ViTKDAdapter(
        {"alpha": "alpha", "beta": "beta", "lambda": "mask_ratio"},
        facts=frozenset({"student_dims", "teacher_dims", "grid"}),
    ),
}
