"""Results: an epoch's row, the best epoch, and what is written when a training is finished."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kdstream.atomic import write_atomic, writing
from kdstream.data.shards import ShardSet
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.models.export import DESCRIPTION, describing, save_student
from kdstream.notes import architecture
from kdstream.training.checkpoint import load_checkpoint, save_checkpoint
from kdstream.training.evaluate import evaluate
from kdstream.training.folder import BEST, PEERS, RESULT, Identity
from kdstream.training.memory import peak_memory
from kdstream.training.metrics import read_metrics
from kdstream.training.setup import Setup
from kdstream.training.state import State
from kdstream.training.sums import Sums


@dataclass
class Results:
    """What a training measures, keeps and exports.

    Attributes:
        identity: of the training.
        setup: its networks and data.
        train: the training set, which names the classes.
        accelerator: of all processes.
        display: shows evaluations, and says what was exported.
        state: where it stands; its ``best`` and ``last_row`` are written here.
        taught_by: what an export says of the teacher; empty where none is looked at.
    """

    identity: Identity
    setup: Setup
    train: ShardSet
    accelerator: Accelerator
    display: Display
    state: State
    taught_by: Mapping[str, Any] = field(default_factory=dict)

    def reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        several = self.accelerator.num_processes > 1
        return self.accelerator.reduce(tensor) if several else tensor

    # --- an epoch

    def end_epoch(
        self, sums: Sums, phase: str, rate: float, main: bool, measured: bool, advice: Callable[[], str]
    ) -> dict[str, Any]:
        """Evaluate, if this is an epoch for it; the epoch's row of metrics.

        Args:
            sums: of the epoch, of this process.
            phase: its name.
            rate: the last learning rate.
            main: whether it is the main phase, whose best epoch counts.
            measured: whether the networks are evaluated.
            advice: what may help where the weights are not finite.

        Raises:
            UserError: weights that are not finite.
        """
        total = sums.summary(self.reduce)
        row: dict[str, Any] = {
            "phase": phase,
            "epoch": self.state.epoch + 1,
            "step": self.state.step,
            "lr": rate,
            "loss": total.loss,
            **{f"loss/{name}": value for name, value in total.terms.items()},
            "train/top1": total.top1,
        }
        if self.setup.loss.uses_teacher:
            row |= {"teacher/entropy": total.entropy[0], "teacher/gt_probability": total.gt_probability[0]}
        row |= {f"student/{name}": value for name, value in total.student.items()}
        if not measured:
            return row
        tops = self._evaluate(row, advice)
        chosen = self._chosen(tops)
        if main and tops[chosen] > self.state.best.get("top1", -math.inf):
            self.state.best = {"top1": tops[chosen], "epoch": row["epoch"], "network": chosen, "tops": tops}
        self.state.last_row = {**row, "network": chosen, "top1": tops[chosen], "tops": tops}
        if self.setup.loss.uses_teacher:
            teacher = {"entropy": list(total.entropy), "gt_probability": list(total.gt_probability)}
            self.state.last_row |= {"teacher": teacher, **({"qualities": total.qualities} if total.qualities else {})}
        return row

    def _evaluate(self, row: dict[str, Any], advice: Callable[[], str]) -> dict[str, float]:
        """Add to a row what the networks reach on the validation set; network -> top-1."""
        if self.accelerator.num_processes > 1:
            # What is measured is what is saved: the first process's running statistics.
            average = [self.setup.networks[name] for name in ("ema",) if name in self.setup.networks]
            for buffer in (one for module in (self.setup.distiller, *average) for one in module.buffers()):
                torch.distributed.broadcast(buffer, 0)
        tops: dict[str, float] = {}
        stream = self.setup.eval_stream
        for name, network in self.setup.networks.items():
            stream.load_state_dict({"epoch": 0, "step": 0})
            prefix = "val" if name == "student" else f"val/{name}"
            with self.display.task(f"evaluation of {name}", stream.plan.size) as task, self.accelerator.autocast():
                measured = evaluate(network, stream, self.reduce, task.advance)
            # Of five classes, all are among the first five.
            told = ("loss", "top1", "top5")[: 3 if self.train.num_classes > 5 else 2]
            row |= {f"{prefix}/{key}": measured[key] for key in told}
            tops[name] = measured["top1"]
            if math.isnan(measured["loss"]):
                recipe = self.identity.recipe
                raise UserError(
                    f"recipe {recipe.name}: the weights are not finite after epoch {row['epoch']}: {advice()}"
                )
        return tops

    def _chosen(self, tops: Mapping[str, float]) -> str:
        """Which of the networks is to be exported."""
        wanted = self.identity.recipe.export_network
        return max(tops, key=lambda name: tops[name]) if wanted == "best" else wanted

    def is_enough(self) -> bool:
        """Whether the recipe stops early after the evaluation that :meth:`end_epoch` has just made; asked once."""
        wanted, stalled = self.identity.recipe.early_stop, self.state.stalled
        if wanted is None:
            return False
        top1 = self.state.last_row["top1"]
        if top1 > stalled.get("top1", -math.inf) + (wanted.min_delta if stalled else 0.0):
            self.state.stalled = {"top1": top1, "count": 0}
        else:
            self.state.stalled = {**stalled, "count": stalled["count"] + 1}
        return self.state.stalled["count"] >= wanted.patience

    # --- the best epoch

    def save_best(self) -> None:
        """Write best.pt, where the epoch that has just ended is the best; last.pt, which names that epoch, is there."""
        best = self.state.best
        if not self.accelerator.is_main_process or best.get("epoch") != self.state.epoch:
            return
        networks = self.setup.networks
        state: dict[str, Any] = {
            "fingerprint": self.identity.fingerprint,
            "network": best["network"],
            "epoch": best["epoch"],
            DESCRIPTION: {"about": self._described(best["network"])},
            "state": networks[best["network"]].state_dict(),
        }
        if self.identity.recipe.export_all:
            state["others"] = {one: net.state_dict() for one, net in networks.items() if one != best["network"]}
        save_checkpoint(state, self.identity.folder / BEST)

    def deployed(self) -> dict[str, Any]:
        """For the checkpoint: the network that would be exported now. Its tensors are those that are trained, so that
        they stand in the file once."""
        tops = self.state.last_row.get("tops", {"student": 0.0})
        wanted = self.identity.recipe.export_network
        name = max(tops, key=lambda one: tops[one]) if wanted == "best" else wanted
        return {"about": self._described(name), "state": self.setup.networks[name].state_dict()}

    def _described(self, name: str) -> dict[str, Any]:
        """What ``student.json`` would say of a network, as far as it is known before the end."""
        return describing(self.setup.networks[name], **self._shown())

    def _shown(self) -> dict[str, Any]:
        """What an export says of the images and the recipe."""
        return {
            "classes": self.train.classes,
            "mean": self.train.mean,
            "std": self.train.std,
            "image_size": tuple(self.setup.probe.image.shape[-2:]),
            "extra": {
                "recipe": self.identity.recipe.shown(),
                **({"teacher": dict(self.taught_by)} if self.taught_by else {}),
            },
        }

    def read_best(self) -> dict[str, dict[str, Tensor]]:
        """The networks' weights in the best epoch: network -> state.

        Raises:
            UserError: best.pt is missing, damaged or of another training.
        """
        path, advice = self.identity.folder / BEST, "put back the right one, or --fresh to start anew"
        best = self.state.best
        state = load_checkpoint(path, advice)
        if state is None:
            raise UserError(f"{path} is missing, and export: best asks for it: {advice}")
        same = state["fingerprint"] in (self.identity.fingerprint, self.identity.without_code)
        # Those of earlier versions name no epoch.
        found = (state["network"], state.get("epoch", best["epoch"]))
        if not same or found != (best["network"], best["epoch"]):
            raise UserError(
                f"{path} is of another training, or not of {best['network']} after epoch {best['epoch']}, which was "
                f"the best: {advice}"
            )
        states = {state["network"]: state["state"], **state.get("others", {})}
        names = list(self.setup.networks) if self.identity.recipe.export_all else [best["network"]]
        for name in names:
            own = self.setup.networks[name].state_dict()
            shapes = {key: value.shape for key, value in states.get(name, {}).items()}
            if shapes != {key: value.shape for key, value in own.items()}:
                raise UserError(f"{path} does not hold the weights of {name}: {advice}")
        return {name: states[name] for name in names}

    def settle_best(self) -> None:
        """For trainings that began when the best of a cohort was exported: the student's best epoch so far.

        Raises:
            UserError: its weights were not kept.
        """
        best, recipe = self.state.best, self.identity.recipe
        if not best or recipe.export_network != "student" or best["network"] == "student":
            return
        if recipe.export == "best":
            raise UserError(
                f"{self.identity.folder / BEST} holds the weights of {best['network']}, not the student's: an earlier "
                "version kept those of the best network alone; --fresh starts anew"
            )
        rows = read_metrics(self.identity.folder)[: self.state.epoch]
        rows = [row for row in rows if row["phase"] == "main" and "val/top1" in row]
        row = max(rows, key=lambda row: row["val/top1"])
        tops = {one: row["val/top1" if one == "student" else f"val/{one}/top1"] for one in self.setup.networks}
        self.state.best = {"top1": row["val/top1"], "epoch": row["epoch"], "network": "student", "tops": tops}

    # --- the end

    def finish(self, epochs: int) -> dict[str, Any]:
        """Export, write ``result.json`` and return it.

        Args:
            epochs: that the recipe asks for, all phases together.
        """
        self.accelerator.wait_for_everyone()  # best.pt is there
        recipe, state = self.identity.recipe, self.state
        tops = state.last_row["tops"]
        name = self._chosen(tops)
        prefix = "val" if name == "student" else f"val/{name}"
        last = state.last_row
        accuracy = {key: last[f"{prefix}/{key}"] for key in ("top1", "top5") if f"{prefix}/{key}" in last}
        if recipe.export == "best":
            name, tops = state.best["network"], state.best["tops"]
            for one, weights in self.read_best().items():
                self.setup.networks[one].load_state_dict(weights)
            accuracy = {"top1": state.best["top1"]}
        result: dict[str, Any] = {
            "name": recipe.name,
            "fingerprint": self.identity.fingerprint,
            **({"altered": self.train.facts} if self.train.facts else {}),
            **({"skipped": len(skipped)} if (skipped := self.setup.stream.skipped) else {}),
            **accuracy,
            "best_top1": state.best["top1"],
            "best_epoch": state.best["epoch"],
            **self._about(name),
            "epochs": state.epoch,
            **({"stopped_early": {"of": epochs, **state.stalled}} if state.epoch < epochs else {}),
            "seconds": state.seconds,
            "images_per_s": state.images / state.seconds if state.seconds else 0.0,
            "memory": peak_memory(self.accelerator.device),
            "network": name,
            "exported": self._exported(name),
            **({"networks": {one: {**self._about(one), "top1": tops[one]} for one in tops}} if len(tops) > 1 else {}),
            **{key: state.last_row[key] for key in ("teacher", "qualities") if key in state.last_row},
        }
        if self.accelerator.is_main_process:
            self._write(name, result)
        if len(tops) > 1 or self.setup.loss.exports:
            better = max(tops, key=lambda one: tops[one])
            more = f"; {better} reached {tops[better]:.2f} % (export_network=best exports it)"
            self.display.note(
                f"{recipe.name}: exported: {result['exported']}, top-1 {result['top1']:.2f} %"
                f"{more if tops[better] > tops[name] else ''}"
            )
        self.accelerator.wait_for_everyone()
        return result

    def _write(self, name: str, result: dict[str, Any]) -> None:
        folder = self.identity.folder
        if self.identity.recipe.export_all:
            for one, about in result.get("networks", {name: {}}).items():
                self._export(folder / PEERS / one, one, {"network": one, **about})
        self._export(folder, name, result)
        with writing(folder / RESULT):
            write_atomic(folder / RESULT, json.dumps(result, indent=2).encode())

    def _exported(self, name: str) -> str:
        """In words, which network it is."""
        kinds = self.setup.loss.exports if name in ("student", "ema") else []
        return f"{name} ({', '.join([str(self._about(name)['model']), *kinds])})"

    def _about(self, name: str) -> dict[str, Any]:
        network: nn.Module = self.setup.networks[name]
        model = self.identity.recipe.student.model if name in ("student", "ema") else None
        return {
            "model": model or architecture(network),
            "params": sum(parameter.numel() for parameter in network.parameters()),
        }

    def _export(self, folder: Path, name: str, result: dict[str, Any]) -> None:
        shown = self._shown()
        shown["extra"]["result"] = result
        save_student(folder, self.setup.networks[name], **shown)
