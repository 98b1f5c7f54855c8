"""Adapters of the golden cases of terms that bring networks of their own or ask the given ones again: mutual learning,
branches, attacked inputs."""

from __future__ import annotations

import re
from types import SimpleNamespace

import torch
from golden_case import TOLERANCE, Adapter, assert_near
from torch import nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.models.branches import Gate, join
from kdstream.objectives import Task
from kdstream.objectives.bss import BoundarySupportingSamples, base_samples
from kdstream.objectives.dml import DeepMutualLearning, mutual_kl
from kdstream.objectives.one import OnTheFlyNativeEnsemble, branch_cross_entropies, ensemble_kl
from kdstream.objectives.tald import AdversarialLocalDistribution, particles


def compare(case, values, leaves):
    """Every stored value and gradient, by name; nothing stored may be missing and no input unused."""
    relative, relative_gradient, zero = TOLERANCE[case.dtype]
    assert case.outs.keys() <= values.keys(), f"{case.method}: no values for {sorted(case.outs.keys() - values.keys())}"
    for name, expected in case.outs.items():
        assert_near(values[name].detach(), expected, relative, zero, f"{case.method}: out/{name}")
    for of, gradients in case.grads.items():
        names = list(gradients)
        found = torch.autograd.grad(
            values[of], [leaves[name] for name in names], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for name, gradient in zip(names, found, strict=True):
            what = f"{case.method}: gradient of {name} ({of})"
            assert_near(gradient, gradients[name], relative_gradient, zero, what)


class Answering(nn.Module):
    """A network that gives these logits whatever it is asked."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits


class DMLAdapter(Adapter):
    def check(self, case, usual):
        assert case.hyper.keys() == {"T", "cohort"}
        assert case.inputs.keys() == {"student.logits", "student2.logits"}
        assert not case.params
        first, second = (value.requires_grad_() for value in case.inputs.values())
        temperature = case.hyper["T"]
        term = DeepMutualLearning(peers=case.hyper["cohort"] - 1, temperature=temperature, labels=0)
        count, classes = first.shape
        network = SimpleNamespace(module=SimpleNamespace(spec={"name": "any", "num_classes": classes}))
        answering = Answering(second)
        term.setup(Task(classes, count, 1, Outputs(first), student=network, build=lambda **spec: answering))
        batch = Batch(torch.zeros(count, 3, 1, 1), torch.zeros(count, dtype=torch.int64), torch.arange(count))
        kl = mutual_kl([first, second], temperature)
        values = {"loss": term(Outputs(first), None, batch)}
        for i in (0, 1):
            values |= {f"kl_{i + 1}": kl[i], f"loss_{i + 1}": temperature**2 * kl[i]}
        compare(case, values, {"student.logits": first, "student2.logits": second})


class ONEAdapter(Adapter):
    def check(self, case, usual):
        assert case.hyper.keys() == {"T", "branches", "eps"}
        count, temperature, eps = (case.hyper[name] for name in ("branches", "T", "eps"))
        names = [f"student.logits.branch{i}" for i in range(1, count + 1)]
        assert case.inputs.keys() == {*names, "student.features.gate", "labels"}
        inputs = {name: x.requires_grad_() if name != "labels" else x for name, x in case.inputs.items()}
        shared, label = inputs["student.features.gate"], inputs["labels"]
        gate = Gate(shared.shape[1], count).to(case.dtype).train()
        state = {name.removeprefix("gate."): value for name, value in case.params.items()}
        assert state.keys() == dict(gate.named_parameters()).keys()
        gate.load_state_dict({**gate.state_dict(), **state})
        weights = gate(shared)
        branches = torch.stack([inputs[name] for name in names], dim=1)
        ensemble = join(branches, weights)
        student = Outputs(ensemble, {"branches": branches, "ensemble": ensemble})
        batch = Batch(torch.zeros(len(label), 3, 1, 1), label, torch.arange(len(label)))
        settings = {"branches": count, "temperature": temperature, "eps": eps}
        values = {
            "loss": OnTheFlyNativeEnsemble(**settings, labels=0)(student, None, batch),
            "total": OnTheFlyNativeEnsemble(**settings)(student, None, batch),
            "loss_no_eps": ensemble_kl(branches, ensemble, temperature),
            "gate": weights,
            "ensemble.logits": ensemble,
            "ce_ensemble": F.cross_entropy(ensemble, label),
        }
        costs = branch_cross_entropies(branches, label)
        values |= {f"ce_branch{i}": cost for i, cost in enumerate(costs, 1)}
        leaves = {**inputs, **{f"param/gate.{name}": value for name, value in gate.named_parameters()}}
        compare(case, values, leaves)


class Fixture(nn.Module):
    """The net of the attacks' cases: images -> Outputs; keeps its last logits as ``last``."""

    def __init__(self, case, role):
        super().__init__()
        state = {name.removeprefix(f"{role}."): x for name, x in case.params.items() if name.startswith(f"{role}.")}
        activation = re.match(r"Fixture net: 3x3 conv \(padding 1\) -> (tanh|ReLU) ", case.notes)
        assert activation, case.notes
        self.activation = {"tanh": torch.tanh, "ReLU": torch.relu}[activation[1]]
        sizes = [state[f"conv{i}.weight"] for i in (1, 2) if f"conv{i}.weight" in state]
        for i, weight in enumerate(sizes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1))
        self.two = len(sizes) == 2
        self.fc = nn.Linear(*reversed(state["fc.weight"].shape))
        self.load_state_dict(state)
        self.to(case.dtype).requires_grad_(False)

    def forward(self, images):
        x = self.activation(self.conv1(images))
        if self.two:
            x = self.activation(self.conv2(F.avg_pool2d(x, 2)))
        logits = self.fc(x.mean((2, 3)))
        # The student's logits are leaves, for the gradient by them; the teacher lets gradients through.
        self.last = logits if images.requires_grad else logits.detach().requires_grad_()
        return Outputs(self.last)


def nets(case):
    """Teacher and student, and all that a term is given: task, both networks' answers to the images, the batch."""
    teacher, student = Fixture(case, "teacher"), Fixture(case, "student")
    assert len(case.params) == len(teacher.state_dict()) + len(student.state_dict())
    images, label = case.inputs["images"], case.inputs["labels"]
    ours, theirs = student(images), teacher(images).detach()
    classes = ours.logits.shape[1]
    task = Task(classes, len(label), 1, ours.detach(), theirs, student=student, teacher=teacher)
    return task, ours, theirs, Batch(images, label, torch.arange(len(label)))


class BSSAdapter(Adapter):
    def check(self, case, usual):
        hyper = dict(case.hyper)
        assert hyper.pop("eps_score") == 1e-4
        names = {"T": "temperature", "num_steps": "steps", "step_alpha": "rate"}
        term = BoundarySupportingSamples(**{names.get(name, name): value for name, value in hyper.items()})
        assert case.inputs.keys() == {"images", "labels", "uniform"}
        task, student, teacher, batch = nets(case)
        draws = case.inputs["uniform"]
        chosen, count, slices = base_samples(student.logits, teacher.logits, batch.label, term.attack_size)
        assert (count, slices) == (len(chosen), 1)
        term.setup(task)
        attacked = term.attack(batch.image[chosen], draws)
        term.draws = lambda batch, chosen: draws
        loss = term(student, teacher, batch)
        values = {
            "base_index": chosen,
            "base_class": attacked.base,
            "target_class": attacked.target,
            "adv_steps": attacked.steps,
            "adv_images": attacked.images,
            "teacher.logits_adv": attacked.logits,
            "student.logits_adv": task.student.last,
            "loss": loss,
        }
        compare(case, values, {"student.logits_adv": task.student.last})


class TALDAdapter(Adapter):
    def check(self, case, usual):
        hyper = dict(case.hyper)
        assert hyper.pop("niter") >= 1  # the measured code's iterations after the first change nothing
        names = {"n": "particles", "num": "images"}
        term = AdversarialLocalDistribution(**{names.get(name, name): value for name, value in hyper.items()})
        assert case.inputs.keys() == {"images", "labels", "noise"}
        task, student, teacher, batch = nets(case)
        noise, few = case.inputs["noise"], batch.image[: term.images]
        term.setup(task)
        moved, kernel = particles(task.teacher, few, noise, term.sigma, term.xi, term.eps, term.low, term.high)
        term.noise = lambda batch, count: noise
        loss = term(student, teacher, batch)
        ours = torch.cat([task.student.last, student.logits])
        theirs = torch.cat([task.teacher.last, teacher.logits])
        label = torch.cat([batch.label[: term.images].repeat(term.particles), batch.label])
        values = {
            "adv_images": moved,
            "kernel": kernel,
            "teacher.logits_all": theirs,
            "student.logits_all": ours,
            "teacher.ce": F.cross_entropy(theirs, label, reduction="none"),
            "student.ce": F.cross_entropy(ours, label, reduction="none"),
            "loss": loss,
        }
        expected = case.grads["loss"].pop("student.logits_all")
        split = (len(task.student.last), len(student.logits))
        case.grads["loss"] |= dict(zip(("attacked", "clean"), expected.split(split), strict=True))
        compare(case, values, {"attacked": task.student.last, "clean": student.logits})


ADAPTERS: dict[str, Adapter] = {
    "bss": BSSAdapter(),
    "dml": DMLAdapter(),
    "one": ONEAdapter(),
    "tald": TALDAdapter(),
}
