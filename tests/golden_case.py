"""One golden case as tests read it, and how a method's golden names become kdstream's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdstream.batch import Batch, Outputs
from kdstream.objectives import Task, Term

TOLERANCE = {torch.float32: (1e-5, 1e-4, 1e-6), torch.float64: (1e-9, 1e-6, 1e-12)}
"""dtype -> (values, gradients) relative to the largest expected entry, and the bound where that is exactly 0.
Gradients are stored in float32, which bounds what float64 can show. float32 proves what training will compute;
float64 proves the formula."""


# --------------------------------------------------------------------------------------------------- cases


@dataclass
class Case:
    """One .npz file: floats in ``dtype``, integers and booleans as they are."""

    method: str
    hyper: dict[str, Any]
    inputs: dict[str, Tensor]
    params: dict[str, Tensor]
    outs: dict[str, Tensor]
    grads: dict[str, dict[str, Tensor]]
    """Name of the differentiated value ("loss", or "total" for keys ``grad_total/...``) -> tensor name -> gradient;
    parameters are called ``param/<name>`` there."""
    dtype: torch.dtype = torch.float32
    notes: str = ""

    @classmethod
    def read(cls, path: Path, dtype: torch.dtype) -> Case:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        meta = json.loads(str(arrays.pop("meta")))
        groups: dict[str, dict[str, Tensor]] = {}
        for key, array in arrays.items():
            prefix, _, name = key.partition("/")
            value = torch.from_numpy(np.asarray(array))
            # What is expected stays in the precision in which it was stored.
            if value.is_floating_point() and prefix in ("in", "param"):
                value = value.to(dtype)
            groups.setdefault(prefix, {})[name] = value
        inputs, params, outs = (groups.pop(prefix, {}) for prefix in ("in", "param", "out"))
        unknown = [prefix for prefix in groups if prefix != "grad" and not prefix.startswith("grad_")]
        assert not unknown, f"{path}: keys of unknown kind: {unknown}"
        grads = {prefix.removeprefix("grad").removeprefix("_") or "loss": group for prefix, group in groups.items()}
        return cls(meta["method"], meta["hyper"], inputs, params, outs, grads, dtype, meta.get("notes", ""))

    def changed(self, **changes: Any) -> Case:
        return dataclasses.replace(self, **changes)


def assert_near(actual: Tensor, expected: Tensor, relative: float, zero: float, what: str) -> None:
    """Equal shape, and equal values up to ``relative`` of the largest expected one (``zero`` if that is 0)."""
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    if not expected.is_floating_point():
        assert torch.equal(actual.to(expected.dtype), expected), f"{what}: {actual.tolist()}, not {expected.tolist()}"
        return
    error = (actual.double() - expected.double()).abs().max().item()
    scale = expected.abs().max().item()
    allowed = relative * scale or zero
    assert error <= allowed, f"{what}: off by {error:.3e}, allowed {allowed:.3e} (largest expected entry {scale:.3e})"


# ------------------------------------------------------------------------------------------------ adapters


@dataclass
class Adapter:
    """How one method's golden names read in kdstream. Subclasses override what is not a matter of names."""

    keywords: Mapping[str, str] = field(default_factory=dict)
    """Golden ``hyper`` name -> keyword argument of the term."""
    facts: frozenset[str] = frozenset()
    """``hyper`` names that are no settings here: they follow from shapes, or the value proves them."""
    unexposed: frozenset[str] = frozenset()
    """``out`` names that the term does not give."""

    def settings(self, case: Case) -> dict[str, Any]:
        """The term's keyword arguments."""
        settings = {}
        for name, value in case.hyper.items():
            if name.startswith("outer_") or name in self.facts:
                continue
            assert name in self.keywords, f"{case.method}: no translation for the hyper-parameter {name!r}"
            settings[self.keywords[name]] = value
        return settings

    def check(self, case: Case, usual: Callable[[Case, Adapter], None]) -> None:
        """Compare the case; ``usual`` is the comparison for a term that maps Outputs to a value."""
        usual(case, self)

    def outputs(self, outputs: Outputs | None) -> Outputs | None:
        """The case's Outputs with the taps that the term reads, where the case has other ones."""
        return outputs

    def task(self, case: Case, student: Outputs, teacher: Outputs | None) -> Task:
        """What :meth:`Term.setup` sees."""
        count = len(student.logits)
        probe = [outputs and outputs.detach().map(lambda t: t[:2].float()) for outputs in (student, teacher)]
        return Task(student.logits.shape[-1], count, epochs=1, student_outputs=probe[0], teacher_outputs=probe[1])

    def attach(self, term: Term, case: Case) -> set[str]:
        """Hand the term what is neither an output of a network nor a batch (``in/...``) nor one of its own
        parameters or buffers (``param/...``); returns the keys that it took."""
        return set()

    def parts(self, term: Term, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Further values by their ``out`` name."""
        return {}
