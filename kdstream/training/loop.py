"""The loop: one student (or teacher) trained from a recipe, resumable at any instant."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from kdstream.atomic import reason, remove_parts, write_atomic, writing
from kdstream.batch import Batch, Outputs
from kdstream.data.shards import ShardSet
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.hashing import network_name
from kdstream.lock import alone
from kdstream.models.export import save_student
from kdstream.objectives import parse_loss
from kdstream.recipe import Recipe, Schedule
from kdstream.safe_yaml import parse_yaml, read_yaml
from kdstream.stream.stream import Stream
from kdstream.training.accelerator import settle
from kdstream.training.chains import evaluation_chain, training_chain
from kdstream.training.checkpoint import load_checkpoint, save_checkpoint
from kdstream.training.distiller import Distiller, Stage
from kdstream.training.evaluate import evaluate
from kdstream.training.metrics import MetricsLog, read_metrics
from kdstream.training.networks import Teacher, make_student, tapped
from kdstream.training.own_code import code_mark, own_code
from kdstream.training.prepare import answering, begin, memory_format, prepare, probes
from kdstream.training.schedule import learning_rate
from kdstream.training.stop import StopFlag, Stopped
from kdstream.training.sums import Sums

PEERS = "peers"
"""Folder within a run's, for all the networks of a cohort."""
KEPT = ("recipe.yaml", "metrics.jsonl", "speed.jsonl", "result.json", "last.pt", "best.pt")
KEPT += ("student.json", "student.safetensors")
"""The files in a training's folder."""
CHECK_EVERY = 20
"""Steps between looks at the losses on a GPU, where each look stalls the queue; on a CPU every step is checked."""


@dataclass
class Trainer:
    """One training.

    Attributes:
        recipe: its settings.
        folder: where everything goes.
        train, val: the splits.
        teacher: None where there is none.
        accelerator: shared by all trainings of a process.
        display: shows what happens.
        stop: asked after every step.
    """

    recipe: Recipe
    folder: Path
    train: ShardSet
    val: ShardSet
    teacher: Teacher | None
    accelerator: Accelerator
    display: Display
    stop: StopFlag

    def fit(self) -> dict[str, Any]:
        """Train, or continue, or report the result of a training that is finished.

        Returns:
            The content of ``result.json``.

        Raises:
            Stopped: by signal; the state is saved.
            UserError: input that cannot work, a loss that is not finite, a folder that holds another training.
        """
        self.recipe = settle(self.recipe, self.accelerator)
        rest = f"-{self.train.fingerprint[:16]}"
        if self.teacher is not None:
            rest += f"-{self.teacher.hash[:16]}"
        self.fingerprint = f"{self.recipe.fingerprint()}{code_mark(self.recipe)}{rest}"
        self.without_code = f"{self.recipe.fingerprint()}{rest}"  # of one that began when code did not count
        with self._alone():
            return self._fit()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other job trains into the same folder meanwhile; the first process holds the lock for all."""
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            yield
            return
        with contextlib.ExitStack() as stack:
            with writing(self.folder):
                stack.enter_context(locked(self.folder, self.recipe.name, self.display))
                for place in (self.folder, *self.folder.glob(f"{PEERS}/*")):
                    remove_parts(place, KEPT)
            self.accelerator.wait_for_everyone()
            yield

    def _fit(self) -> dict[str, Any]:
        finished = self._finished()
        if finished is not None:
            self.display.note(f"{self.recipe.name}: finished before, top-1 {finished['top1']:.2f} % ({self.folder})")
            return finished
        state = load_checkpoint(self.folder / "last.pt")
        if state is not None:
            self._check_same(state["fingerprint"])
        self.saved = state is not None
        with self.stop.listening():
            self._build()
            return self._run(state)

    # --- before the first step

    def _finished(self) -> dict[str, Any] | None:
        path = self.folder / "result.json"
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {reason(error)}") from error
        except ValueError:  # half of it: from the last checkpoint it is written anew
            return None
        if not isinstance(result, dict) or not isinstance(result.get("top1"), int | float):
            return None
        self._check_same(str(result.get("fingerprint")))
        if self.recipe.export_network == "student" and result.get("network", "student") != "student":
            self.display.note(
                f"{self.recipe.name}: finished before with {result['network']} exported; exports the student now"
            )
            return None
        return result

    def _check_same(self, found: str) -> None:
        """That the folder holds this training.

        Raises:
            UserError: it holds another one; which settings differ.
        """
        if found in (self.fingerprint, self.without_code):
            return
        if re.sub(r"\+\w+", "", found) == self.without_code:
            names = ", ".join(own_code(self.recipe))
            raise UserError(
                f"{self.folder} holds a training with other code: {names}, or what it calls, has changed since (or "
                "Python has): choose another out=FOLDER, or --fresh"
            )
        changed: list[str] = []
        try:
            old = read_yaml(self.folder / "recipe.yaml")
            new = parse_yaml(self.recipe.to_yaml(), "recipe.yaml:")
            changed = _differences(old, new)
        except (UserError, TypeError):  # TypeError: keys that are no text
            pass
        what = f"(different: {', '.join(changed[:4])})" if changed else "(other data or another teacher)"
        raise UserError(
            f"{self.folder} holds a training with other settings {what}: choose another out=FOLDER, or --fresh"
        )

    def _build(self) -> None:
        recipe, device = self.recipe, self.accelerator.device
        layout = memory_format(recipe, device)
        terms = parse_loss(recipe.loss)
        self.uses_teacher = any(term.uses_teacher for _, _, term in terms)
        if self.uses_teacher and self.teacher is None:
            names = ", ".join(name for name, _, term in terms if term.uses_teacher)
            raise UserError(f"recipe {recipe.name}: the loss ({names}) needs a teacher: add teacher: to the recipe")
        chain = training_chain(recipe, self.uses_teacher)
        given: dict[str, Any] = {}
        tapped_teacher, plain_teacher = None, None
        if self.teacher is not None and self.uses_teacher:
            plain_teacher = self.teacher.network.cpu()
            taps = [t for _, _, term in terms for t in term.teacher_taps]
            tapped_teacher = tapped(plain_teacher, taps, self.teacher.settings).eval()
            tapped_teacher.requires_grad_(False).to(memory_format=layout)
            mean, std = self.teacher.mean or self.train.mean, self.teacher.std or self.train.std
            forward = torch.compile(tapped_teacher) if recipe.compile else tapped_teacher
            given = {"teacher": answering(forward, self.accelerator, layout)}
            given |= {"teacher_mean": mean, "teacher_std": std}
            given |= {"teacher_hash": network_name(plain_teacher, self.teacher.hash), "precision": recipe.precision}
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        place: dict[str, Any] = {"rank": rank, "world": world, "device": device}
        self.stream = (
            Stream(self.train, recipe.batch_size, recipe.seed, workers=recipe.workers, given=given, **place) | chain
        )
        self.eval_stream = Stream(
            self.val, recipe.eval_batch_size, train=False, workers=recipe.workers, given=given, **place
        ) | evaluation_chain(recipe)
        if tapped_teacher is not None:
            tapped_teacher.to(device)
        self.stream.open()  # where a coding plan is wanted and not there yet, it is made here, by all processes
        if tapped_teacher is not None:
            tapped_teacher.cpu()

        self.probe, self.larger_probe = probes(self.train, recipe, given, chain, device)
        torch.manual_seed(recipe.seed)
        network = make_student(recipe.student, self.train.num_classes, self.train.classes)
        if note := getattr(network, "about", {}).get("note"):
            self.display.note(f"{recipe.name}: {note}")
        statistics = (given["teacher_mean"], given["teacher_std"]) if tapped_teacher is not None else None
        network, student, asked_teacher = prepare(
            network, recipe.student, tapped_teacher, statistics, terms, self.probe, self.train, recipe, world
        )
        self.terms = terms
        self.probe = self.probe.to(device)
        if asked_teacher is not None:
            asked_teacher.to(device)
        self.distiller = Distiller(student, terms, layout).to(device, memory_format=layout)
        for _, _, term in reversed(terms):  # what was put on last comes off first
            network = term.deploy(network)
        self.networks: dict[str, nn.Module] = {"student": network}
        for _, _, term in terms:
            self.networks |= term.peers()

    # --- the loop

    def _run(self, state: dict[str, Any] | None) -> dict[str, Any]:
        recipe, accelerator = self.recipe, self.accelerator
        main = accelerator.is_main_process
        if main and state is None:
            with writing(self.folder / "recipe.yaml"):
                write_atomic(self.folder / "recipe.yaml", recipe.to_yaml().encode())
        position = None if state is None else state["log"]
        self.log = MetricsLog(self.folder, position, tensorboard=recipe.tensorboard) if main else None
        stages = self.distiller.stages()
        epochs = [recipe.epochs if stage.phase is None else stage.phase.epochs for stage in stages]
        self.best: dict[str, Any] = {}
        self.global_step, self.global_epoch, self.seconds, self.images = 0, 0, 0.0, 0
        first_stage, first_epoch = 0, 0
        self.last_row: dict[str, Any] = {}
        if state is not None:
            first_stage, first_epoch = state["stage"], state["stage_epoch"]
            self.global_step, self.global_epoch = state["global_step"], state["global_epoch"]
            self.seconds, self.images, self.best = state["seconds"], state["images"], state["best"]
            self.last_row = state["last_row"]
            self._settle_best()
            self.distiller.load_state_dict(state["distiller"])
            self.stream.load_state_dict(state["stream"])
            if not state["stream"]["step"]:  # stopped between the two files that an epoch ends with, maybe
                self._save_best()
            accelerator.wait_for_everyone()
            if self.best and recipe.export == "best":
                self._read_best()  # as long as there is something to be done about it
        self.display.start_run(recipe.name, sum(epochs), self.global_epoch)
        if state is not None and first_stage < len(stages):
            self.display.note(f"{recipe.name}: continues at epoch {self.global_epoch + 1}, step {self.stream.step}")
        for number in range(first_stage, len(stages)):
            resumed = state if state is not None and number == first_stage else None
            start = first_epoch if number == first_stage else 0
            self._train_stage(stages, number, range(start, epochs[number]), epochs[number], resumed)
        result = self._finish(sum(epochs))
        if self.log is not None:
            self.log.close()
        return result

    def _train_stage(
        self, stages: list[Stage], number: int, epochs: range, length: int, state: dict[str, Any] | None
    ) -> None:
        recipe, accelerator, stage = self.recipe, self.accelerator, stages[number]
        parameters = begin(self.distiller, stage, self.probe, self.larger_probe)
        self._tell_what_is_not_trained(stage)
        base = recipe.optimizer.lr if stage.phase is None else stage.phase.lr
        shape = recipe.schedule
        if stage.phase is not None:
            shape = Schedule(name="step", milestones=list(stage.phase.milestones), gamma=stage.phase.gamma)
        settings = recipe.optimizer
        wrapped: Any = self.distiller
        optimizer: Any = None
        if parameters:
            optimizer = torch.optim.SGD(
                parameters, base, settings.momentum, weight_decay=settings.weight_decay, nesterov=settings.nesterov
            )
            # Which parameters a batch reaches is for the batch to say, on each process for itself.
            ddp = accelerator.ddp_handler or DistributedDataParallelKwargs()
            ddp.find_unused_parameters = True
            accelerator.ddp_handler = ddp
            wrapped, optimizer = accelerator.prepare(wrapped, optimizer)
        self.sums = Sums([name for name, _, _ in stage.losses], accelerator.device)
        if state is not None:
            if optimizer is not None and state["optimizer"] is not None:
                optimizer.load_state_dict(self._for_what_is_trained(state["optimizer"]))
            if accelerator.scaler is not None and state["scaler"] is not None:
                accelerator.scaler.load_state_dict(state["scaler"])
            self._restore_process(state)
        for epoch in epochs:
            at = {"stage": number, "stage_epoch": epoch}
            if stage.phase is None:
                for term in self.distiller.terms:
                    term.begin_epoch(epoch, length)  # type: ignore[operator]
            self._train_epoch(wrapped, optimizer, stage, shape, base, epoch, length, at)
            last = epoch + 1 == length
            after = {"stage": number + 1, "stage_epoch": 0} if last else {"stage": number, "stage_epoch": epoch + 1}
            self._save(after, None if last else optimizer)
            self._save_best()
        accelerator.free_memory()
        self.distiller = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)

    def _train_epoch(
        self,
        wrapped: nn.Module,
        optimizer: Any,
        stage: Stage,
        shape: Schedule,
        base: float,
        epoch: int,
        length: int,
        at: dict[str, int],
    ) -> None:
        recipe, accelerator, stream, sums = self.recipe, self.accelerator, self.stream, self.sums
        steps, first = stream.steps, stream.step
        wrapped.train()
        self.display.start_epoch(recipe.name, stage.name, epoch, length, steps, first)
        began = counted = saved = ticked = time.perf_counter()
        seen, uncounted, waited = 0, 0, stream.wait_seconds
        pending: list[tuple[int, Tensor]] = []
        # That of the step before: a training that stopped after an epoch's last step has no other.
        rate = learning_rate(shape, base, epoch, max(first, 1) / steps, length)
        seen_in_group = 0

        def check() -> None:
            self._check_finite(stage, epoch, pending)
            pending.clear()

        for batch in _leaving(stream):
            step = stream.step - 1
            rate = learning_rate(shape, base, epoch, (step + 1) / steps, length)
            for group in optimizer.param_groups if optimizer else ():
                group["lr"] = rate
            # Batches whose gradients are added up before this step of the optimizer; the last group may be short.
            group_start = step - step % recipe.accumulate
            group_size = min(recipe.accumulate, steps - group_start)
            closes = step + 1 == group_start + group_size
            planned = stream.plan.bounds(group_start + group_size - 1)[1] - stream.plan.bounds(group_start)[0]
            share = self._share(len(batch), planned, group_size)
            seen_in_group += len(batch)
            bounds = stream.plan.bounds(step)
            count = bounds[1] - bounds[0]
            with _synchronised(accelerator, wrapped, closes):
                loss, terms, logits = wrapped(batch)
                if optimizer is not None:
                    # Not Accelerate's backward, which divides by a number of its own (of the environment, for one).
                    scaler = accelerator.scaler
                    (loss * share if scaler is None else scaler.scale(loss * share)).backward()
            pending.append((step, torch.cat([_is_finite(batch.teacher, loss), loss.detach().reshape(1), terms])))
            if accelerator.device.type == "cpu" or len(pending) >= CHECK_EVERY:
                check()
            if closes and optimizer is not None:
                if group_size > 1:
                    self._weigh_anew(wrapped, planned, seen_in_group)
                if recipe.optimizer.clip is not None:
                    accelerator.clip_grad_norm_(wrapped.parameters(), recipe.optimizer.clip)
                if accelerator.scaler is None or any(one.grad is not None for one in wrapped.parameters()):
                    optimizer.step()  # the scaler's takes a step without any gradient for a mistake
                optimizer.zero_grad()
                self.global_step += 1
            seen_in_group = 0 if closes else seen_in_group
            sums.add(batch, loss.detach(), terms, logits)
            now = time.perf_counter()
            wait = (stream.wait_seconds - waited) / max(now - ticked, 1e-9)
            waited, ticked = stream.wait_seconds, now
            seen, uncounted = seen + count, uncounted + count
            self.display.step(
                step, lambda loss=loss, terms=terms: _shown(stage, sums, loss, terms), count, min(wait, 1)
            )
            if closes and self._must_stop(step):
                check()
                self.seconds, self.images = self.seconds + now - counted, self.images + uncounted
                self._save(at, optimizer)
                accelerator.wait_for_everyone()  # a process that ends first would take the saving one along
                where = f"{recipe.name}, epoch {self.global_epoch + 1}, step {step + 1} of {steps}"
                raise Stopped(f"{where} is saved in {self.folder}", self.stop.signal or signal.SIGTERM)
            if closes and step + 1 < steps and self._is_due(step, now - saved >= recipe.checkpoint_seconds):
                check()
                self.seconds, self.images = self.seconds + now - counted, self.images + uncounted
                self._save(at, optimizer)
                counted, uncounted, saved = now, 0, time.perf_counter()
        check()
        now = time.perf_counter()
        self.seconds, self.images = self.seconds + now - counted, self.images + uncounted
        took = now - began
        self._end_epoch(stage, sums, rate, {"images_per_s": seen / took if took else 0.0, "seconds": took}, epoch)

    def _share(self, count: int, planned: int, batches: int) -> float | Tensor:
        """By what the mean over this process's slice of a batch must be weighted, so that the processes' mean, summed
        over the group's batches, is the mean over all samples of the group.

        Args:
            count: samples in the slice.
            planned: samples in the group, all processes together, as planned.
            batches: in the group.
        """
        accelerator = self.accelerator
        if batches > 1:  # where stages drop samples, the gradients are corrected when all have been seen
            return count * accelerator.num_processes / planned
        if accelerator.num_processes == 1:
            return 1.0
        total = accelerator.reduce(torch.full((), float(count), device=accelerator.device))
        return count * accelerator.num_processes / total

    def _weigh_anew(self, wrapped: nn.Module, planned: int, count: int) -> None:
        """Make gradients that were weighted for ``planned`` samples those of the ``count`` (in this process) seen."""
        if self.accelerator.num_processes == 1:
            if count == planned:
                return
            factor: float | Tensor = planned / count
        else:
            factor = planned / self._reduce(torch.full((), float(count), device=self.accelerator.device))
            if factor.device.type == "cpu" and factor == 1:
                return
        for parameter in wrapped.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def _must_stop(self, step: int) -> bool:
        return self._agreed(step, self.stop.signal is not None)

    def _is_due(self, step: int, due: bool) -> bool:
        """Whether to save: as the first process's clock says, for all must do it together."""
        return self._agreed(step, due and self.accelerator.is_main_process)

    def _agreed(self, step: int, wish: bool) -> bool:
        """Whether any process has the wish. Several GPUs are asked once in ten steps of the optimizer: to hear their
        answer stalls the queue."""
        accelerator = self.accelerator
        if accelerator.num_processes == 1:
            return wish
        if accelerator.device.type != "cpu" and step // self.recipe.accumulate % 10:
            return False
        return bool(self._reduce(torch.tensor(float(wish), device=accelerator.device)) > 0)

    def _tell_what_is_not_trained(self, stage: Stage) -> None:
        """Say which parameters rest in a stage, and which perhaps do."""
        what = self.recipe.name if stage.phase is None else f"{self.recipe.name}, phase {stage.name}"
        if frozen := self.distiller.frozen():
            self.display.note(f"{what}: frozen: {', '.join(frozen)}")
        if stage.trains != "nothing" and (idle := self.distiller.unreached()):
            self.display.note(
                f"{what}: the loss of the first images does not reach {', '.join(idle)}; only batches that do move it"
            )

    def _check_finite(self, stage: Stage, epoch: int, pending: list[tuple[int, Tensor]]) -> None:
        if not pending:
            return
        values = torch.stack([values for _, values in pending]).cpu()
        bad = ~values.isfinite()
        if not bad.any():
            return
        row = int(bad.any(dim=1).nonzero()[0])
        step, names = pending[row][0], [name for name, _, _ in stage.losses]
        where = f"at step {step + 1} of epoch {self.global_epoch + 1}"
        if bad[row, 0]:
            raise UserError(
                f"recipe {self.recipe.name}: the teacher's answer is not finite {where}: its weights are damaged, its "
                "mean and std do not fit, or its precision is too low"
            )
        culprits = [f"{name} = {values[row, i + 2]:g}" for i, name in enumerate(names) if bad[row, i + 2]]
        what = " and ".join(culprits) or f"the sum of {', '.join(names)}"
        raise UserError(
            f"recipe {self.recipe.name}: the loss is not finite {where} ({what}): {self._advice(stage, epoch)}"
        )

    def _advice(self, stage: Stage, epoch: int) -> str:
        """What may help where values are not finite, of all that applies here."""
        recipe, settings = self.recipe, self.recipe.optimizer
        if self.global_step == 0:  # the weights are those of the start
            advice = "nothing was trained yet: see to the loss, its weights, and the student's first weights"
        else:
            if stage.phase is None:
                ways = [f"lower optimizer.lr ({settings.lr:g})"]
                ways += ["lengthen schedule.warmup"] if epoch <= recipe.schedule.warmup else []
            else:
                ways = [f"lower the learning rate of phase {stage.name} ({stage.phase.lr:g})"]
            ways += [f"lower optimizer.clip ({settings.clip:g})" if settings.clip else "set optimizer.clip"]
            advice = f"{', '.join(ways[:-1])} or {ways[-1]}"
        if recipe.precision == "fp16":
            advice += "; fp16 ends at 65504: precision=bf16 does not"
        last = self.folder / "last.pt"
        return f"{advice}; the last good checkpoint is {last}" if self.saved and last.exists() else advice

    def _reduce(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor) if self.accelerator.num_processes > 1 else tensor  # type: ignore[return-value]

    def _end_epoch(self, stage: Stage, sums: Sums, rate: float, speed: dict[str, float], epoch: int) -> None:
        accelerator = self.accelerator
        values = self._reduce(sums.values.clone()).tolist()
        count = values[0]
        row: dict[str, Any] = {
            "phase": stage.name,
            "epoch": self.global_epoch + 1,
            "step": self.global_step,
            "lr": rate,
            "loss": values[2] / count,
            **{f"loss/{name}": value / count for name, value in zip(sums.names, values[7:], strict=True)},
            "train/top1": 100 * values[1] / count,
        }
        if self.uses_teacher:
            row |= {"teacher/entropy": values[3] / count, "teacher/gt_probability": values[5] / count}
        if accelerator.num_processes > 1:
            # What is measured is what is saved: the first process's running statistics.
            for buffer in self.distiller.buffers():
                torch.distributed.broadcast(buffer, 0)
        tops: dict[str, float] = {}
        for name, network in self.networks.items():
            self.eval_stream.load_state_dict({"epoch": 0, "step": 0})
            prefix = "val" if name == "student" else f"val/{name}"
            with self.display.task(f"evaluation of {name}", self.eval_stream.plan.size) as task, accelerator.autocast():
                measured = evaluate(network, self.eval_stream, self._reduce, task.advance)
            row |= {f"{prefix}/{key}": measured[key] for key in ("loss", "top1", "top5")}
            tops[name] = measured["top1"]
            if math.isnan(measured["loss"]):
                raise UserError(
                    f"recipe {self.recipe.name}: the weights are not finite after epoch {self.global_epoch + 1}: "
                    f"{self._advice(stage, epoch)}"
                )
        chosen = self._chosen(tops)
        if stage.phase is None and tops[chosen] > self.best.get("top1", -math.inf):
            self.best = {"top1": tops[chosen], "epoch": self.global_epoch + 1, "network": chosen, "tops": tops}
        self.last_row = {**row, "network": chosen, "top1": tops[chosen], "tops": tops}
        if self.uses_teacher:
            self.last_row |= self._teacher_summary(values, self._reduce(sums.qualities.clone()))
        wait_share = min(1.0, self.stream.wait_seconds / max(speed["seconds"], 1e-9))
        speed = {"epoch": self.global_epoch + 1, **speed, "wait_share": wait_share}
        self.stream.wait_seconds = 0.0
        if self.log is not None:
            self.log.write("epoch", row)
            self.log.write_speed(speed)
        self.display.end_epoch(row, speed)
        self.global_epoch += 1
        self.sums = Sums(sums.names, sums.device)

    def _chosen(self, tops: Mapping[str, float]) -> str:
        """Which of the networks is to be exported."""
        return "student" if self.recipe.export_network == "student" else max(tops, key=lambda name: tops[name])

    @staticmethod
    def _teacher_summary(values: list[float], qualities: Tensor) -> dict[str, Any]:
        count = values[0]

        def mean_std(total: float, squares: float) -> list[float]:
            return [total / count, math.sqrt(max(squares / count - (total / count) ** 2, 0))]

        chosen = {str(i - 1): n for i, n in enumerate(qualities.tolist()) if n}
        summary = {"entropy": mean_std(values[3], values[4]), "gt_probability": mean_std(values[5], values[6])}
        return {"teacher": summary, **({"qualities": chosen} if chosen else {})}

    def _save_best(self) -> None:
        """Write best.pt, where the epoch that has just ended is the best; last.pt, which names that epoch, is there."""
        if self.accelerator.is_main_process and self.best.get("epoch") == self.global_epoch:
            save_checkpoint(self._network_state(self.best["network"]), self.folder / "best.pt")

    def _network_state(self, name: str) -> dict[str, Any]:
        state = {
            "fingerprint": self.fingerprint,
            "network": name,
            "epoch": self.best["epoch"],
            "state": self.networks[name].state_dict(),
        }
        if self.recipe.export_all:
            state["others"] = {other: net.state_dict() for other, net in self.networks.items() if other != name}
        return state

    def _save(self, at: dict[str, int], optimizer: Any) -> None:
        """Write last.pt: everything that the rest of the training depends on. All processes must call it together."""
        processes = self._of_every_process()
        self.saved = True
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        assert self.log is not None
        state = {
            "fingerprint": self.fingerprint,
            **at,
            "global_step": self.global_step,
            "global_epoch": self.global_epoch,
            "stream": self.stream.state_dict(),
            "distiller": self.distiller.state_dict(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            **processes[0],
            "others": processes[1:],
            "best": self.best,
            "last_row": self.last_row,
            "seconds": self.seconds,
            "images": self.images,
            "log": self.log.position,
        }
        save_checkpoint(state, self.folder / "last.pt")

    def _of_every_process(self) -> list[dict[str, Any]]:
        """What each process has for itself, in the order of the processes: random state, and sums of the epoch."""
        device = self.accelerator.device
        parts = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
        parts += self.sums.state_dict().values()
        if self.accelerator.num_processes == 1:
            columns = [[part] for part in parts]
        else:
            columns = [list(self.accelerator.gather(part[None].to(device)).cpu().unbind()) for part in parts]
        return [
            {
                "random": {"cpu": cpu.clone(), "cuda": [one.clone() for one in cuda]},
                "sums": {"values": values.clone(), "qualities": qualities.clone()},
            }
            for cpu, *cuda, values, qualities in zip(*columns, strict=True)
        ]

    def _for_what_is_trained(self, state: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state from a checkpoint; earlier versions left out what their probe had not reached.

        Raises:
            UserError: the state is of other parameters.
        """
        (group,) = state["param_groups"]
        trained = [(name, one) for name, one in self.distiller.named_parameters() if one.requires_grad]
        places = list(range(len(trained)))
        if len(group["params"]) < len(trained):
            places = [place for place in places if trained[place][0] in self.distiller.reached]
        moved = {places[number]: one for number, one in state["state"].items() if number < len(places)}
        momenta = [(one.get("momentum_buffer"), trained[place][1]) for place, one in moved.items()]
        if len(group["params"]) != len(places) or any(a is not None and a.shape != b.shape for a, b in momenta):
            raise UserError(
                f"{self.folder / 'last.pt'} trains {len(group['params'])} tensors, this recipe {len(trained)}: an "
                "earlier version left out what its first images did not reach; --fresh starts anew"
            )
        return {"state": moved, "param_groups": [{**group, "params": list(range(len(trained)))}]}

    def _restore_process(self, state: dict[str, Any]) -> None:
        """Give this process what it had for itself when the checkpoint was written."""
        accelerator = self.accelerator
        device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
        parts = [{"random": state["random"], "sums": state["sums"]}, *state.get("others", [])]
        if len(parts) != world:
            self.display.note(
                f"{self.recipe.name}: {world} process(es) continue from the state of {len(parts)}: random numbers will "
                "differ from those of a training that never stopped"
            )
        if state["stream"]["step"]:  # inside of an epoch
            left = parts[world:] if rank == 0 else []  # of processes that there are no more
            for part in [*parts[rank : rank + 1], *left]:
                self.sums.add_state(part["sums"])
        if rank >= len(parts):
            torch.manual_seed(int(state["random"]["cpu"][:7].sum()) + rank)
            return
        random = parts[rank]["random"]
        torch.set_rng_state(random["cpu"])
        if random["cuda"] and device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"][0], device)

    # --- the end

    def _settle_best(self) -> None:
        """For trainings that began when the best of a cohort was exported: the student's best epoch so far."""
        best, recipe = self.best, self.recipe
        if best and recipe.export_network == "student" and best["network"] != "student":
            if recipe.export == "best":
                raise UserError(
                    f"{self.folder / 'best.pt'} holds the weights of {best['network']}, not the student's: an earlier "
                    "version kept those of the best network alone; --fresh starts anew"
                )
            rows = [row for row in read_metrics(self.folder)[: self.global_epoch] if row["phase"] == "main"]
            row = max(rows, key=lambda row: row["val/top1"])
            tops = {one: row["val/top1" if one == "student" else f"val/{one}/top1"] for one in self.networks}
            self.best = {"top1": row["val/top1"], "epoch": row["epoch"], "network": "student", "tops": tops}

    def _read_best(self) -> dict[str, dict[str, Tensor]]:
        """The networks' weights in the best epoch: network -> state.

        Raises:
            UserError: best.pt is missing, damaged or of another training.
        """
        path, advice = self.folder / "best.pt", "put back the right one, or --fresh to start anew"
        state = load_checkpoint(path, advice)
        if state is None:
            raise UserError(f"{path} is missing, and export: best asks for it: {advice}")
        wanted = (self.fingerprint, self.best["network"], self.best["epoch"])
        # Those of earlier versions name no epoch.
        if (state["fingerprint"], state["network"], state.get("epoch", self.best["epoch"])) != wanted:
            raise UserError(
                f"{path} is of another training, or not of {wanted[1]} after epoch {wanted[2]}, which was the best: "
                f"{advice}"
            )
        states = {state["network"]: state["state"], **state.get("others", {})}
        names = list(self.networks) if self.recipe.export_all else [self.best["network"]]
        for name in names:
            own = self.networks[name].state_dict()
            shapes = {key: value.shape for key, value in states.get(name, {}).items()}
            if shapes != {key: value.shape for key, value in own.items()}:
                raise UserError(f"{path} does not hold the weights of {name}: {advice}")
        return {name: states[name] for name in names}

    def _finish(self, epochs: int) -> dict[str, Any]:
        self.accelerator.wait_for_everyone()  # best.pt is there
        tops = self.last_row["tops"]
        name = self._chosen(tops)
        accuracy = {
            key: self.last_row[f"val/{key}" if name == "student" else f"val/{name}/{key}"] for key in ("top1", "top5")
        }
        if self.recipe.export == "best":
            name, tops = self.best["network"], self.best["tops"]
            for one, weights in self._read_best().items():
                self.networks[one].load_state_dict(weights)
            accuracy = {"top1": self.best["top1"]}
        result: dict[str, Any] = {
            "name": self.recipe.name,
            "fingerprint": self.fingerprint,
            **accuracy,
            "best_top1": self.best["top1"],
            "best_epoch": self.best["epoch"],
            **self._about(name),
            "epochs": epochs,
            "seconds": self.seconds,
            "images_per_s": self.images / self.seconds if self.seconds else 0.0,
            "network": name,
            "exported": self._exported(name),
            **({"networks": {one: {**self._about(one), "top1": tops[one]} for one in tops}} if len(tops) > 1 else {}),
            **{key: self.last_row[key] for key in ("teacher", "qualities") if key in self.last_row},
        }
        if self.accelerator.is_main_process:
            if self.recipe.export_all:
                for one, about in result.get("networks", {name: {}}).items():
                    self._export(self.folder / PEERS / one, one, {"network": one, **about})
            self._export(self.folder, name, result)
            with writing(self.folder / "result.json"):
                write_atomic(self.folder / "result.json", json.dumps(result, indent=2).encode())
        if len(tops) > 1 or any(term.exports for _, _, term in self.terms):
            better = max(tops, key=lambda one: tops[one])
            more = f"; {better} reached {tops[better]:.2f} % (export_network=best exports it)"
            self.display.note(
                f"{self.recipe.name}: exported: {result['exported']}, top-1 {result['top1']:.2f} %"
                f"{more if tops[better] > tops[name] else ''}"
            )
        self.accelerator.wait_for_everyone()
        return result

    def _exported(self, name: str) -> str:
        """In words, which network it is."""
        kinds = [term.exports for _, _, term in self.terms if term.exports] if name == "student" else []
        return f"{name} ({', '.join([str(self._about(name)['model']), *kinds])})"

    def _about(self, name: str) -> dict[str, Any]:
        network = self.networks[name]
        return {
            "model": (self.recipe.student.model if name == "student" else None) or network.spec["name"],
            "params": sum(parameter.numel() for parameter in network.parameters()),
        }

    def _export(self, folder: Path, name: str, result: dict[str, Any]) -> None:
        save_student(
            folder,
            self.networks[name],
            classes=self.train.classes,
            mean=self.train.mean,
            std=self.train.std,
            image_size=tuple(self.probe.image.shape[-2:]),
            extra={"recipe": self.recipe.shown(), "result": result},
        )


@contextlib.contextmanager
def locked(folder: Path, name: str, display: Display) -> Iterator[None]:
    """No other job is in ``folder`` meanwhile; ``name`` is what waits where one is, as the display tells."""

    def waiting() -> None:
        display.note(f"{name}: another job trains in {folder}; waiting for it")

    def without(why: str) -> None:
        display.note(f"no locks where the results go ({why}): train one job at a time into a folder", once=True)

    with alone(folder, waiting, without):
        yield


def _leaving(stream: Stream) -> Iterator[Batch]:
    """The rest of the stream's epoch; closes the reader's iteration when the loop is left early."""
    batches = iter(stream)
    try:
        yield from batches
    finally:
        batches.close()  # type: ignore[attr-defined]


def _synchronised(accelerator: Accelerator, wrapped: nn.Module, closes: bool) -> Any:
    """Gradients are exchanged between processes only in the backward pass that closes a group."""
    return contextlib.nullcontext() if closes else accelerator.no_sync(wrapped)


def _shown(stage: Stage, sums: Sums, loss: Tensor, terms: Tensor) -> dict[str, float]:
    named = {f"loss/{name}": value for (name, _, _), value in zip(stage.losses, terms.tolist(), strict=True)}
    count, correct = sums.values[:2].tolist()
    return {"loss": float(loss.detach()), **named, "train/top1": 100 * correct / max(count, 1)}


def _is_finite(teacher: Outputs | None, like: Tensor) -> Tensor:
    """[1]: 1 where the teacher's logits are finite (or there is no teacher), else NaN."""
    if teacher is None:
        return like.new_ones(1)
    return torch.where(teacher.logits.isfinite().all(), 1.0, math.nan).to(like)[None]


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two nested mappings differ, as "key: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(
            {*old, *new} - {"name", "out", "workers", "eval_batch_size", "checkpoint_seconds", "tensorboard", "runs"}
        )
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{path}.{key}".strip("."))]
    return [] if old == new else [f"{path}: {old} -> {new}"]
