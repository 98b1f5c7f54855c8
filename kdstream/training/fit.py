"""The loop: one student (or teacher) trained from a recipe, resumable at any instant."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor, nn

from kdstream.atomic import write_atomic
from kdstream.errors import UserError
from kdstream.hashing import network_name
from kdstream.models.export import save_student
from kdstream.objectives import parse_loss
from kdstream.recipe import Recipe, Schedule
from kdstream.stream.loader import ReaderLost, lost_readers_told
from kdstream.stream.shards import ShardSet
from kdstream.stream.stream import Stream
from kdstream.training.chains import evaluation_chain, training_chain
from kdstream.training.checkpoint import load_checkpoint, save_checkpoint
from kdstream.training.distiller import Distiller, Stage
from kdstream.training.evaluate import evaluate
from kdstream.training.metrics import MetricsLog
from kdstream.training.networks import Teacher, make_student, tapped
from kdstream.training.own_code import code_mark, own_code
from kdstream.training.prepare import prepare
from kdstream.training.progress import Display
from kdstream.training.schedule import learning_rate
from kdstream.training.stop import StopFlag, Stopped
from kdstream.training.sums import Sums
from kdstream.types import Batch, Outputs

PEERS = "peers"
"""Folder within a run's, for all the networks of a cohort."""
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
        rest = f"-{self.train.fingerprint[:16]}"
        if self.teacher is not None:
            rest += f"-{self.teacher.hash[:16]}"
        self.fingerprint = f"{self.recipe.fingerprint()}{code_mark(self.recipe)}{rest}"
        self.without_code = f"{self.recipe.fingerprint()}{rest}"  # of one that began when code did not count
        with self._alone():
            try:
                with lost_readers_told():
                    return self._fit()
            except ReaderLost as lost:
                if self.stop.signal is None:
                    raise
                # A scheduler's signal reaches the readers too, which wait for a long step only so long.
                where = f"{self.recipe.name} continues from what it saved last, in {self.folder}"
                raise Stopped(where, self.stop.signal) from lost

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other job trains into the same folder meanwhile; the first process holds the lock for all."""
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:  # the system releases it when the process ends, however it does
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.display.note(f"{self.recipe.name}: another job trains in {self.folder}; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
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
        with self.stop.listening():
            self._build()
            return self._run(state)

    # --- before the first step

    def _finished(self) -> dict[str, Any] | None:
        try:
            result = json.loads((self.folder / "result.json").read_text())
        except (OSError, ValueError):
            return None
        self._check_same(str(result.get("fingerprint")))
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
            old = yaml.safe_load((self.folder / "recipe.yaml").read_text())
            new = yaml.safe_load(self.recipe.to_yaml())
            changed = _differences(old, new)
        except (OSError, yaml.YAMLError):
            pass
        what = f"(different: {', '.join(changed[:4])})" if changed else "(other data or another teacher)"
        raise UserError(
            f"{self.folder} holds a training with other settings {what}: choose another out=FOLDER, or --fresh"
        )

    def _build(self) -> None:
        recipe, device = self.recipe, self.accelerator.device
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
            tapped_teacher.requires_grad_(False).to(memory_format=self._layout())
            mean, std = self.teacher.mean or self.train.mean, self.teacher.std or self.train.std
            given = {"teacher": self._answering(tapped_teacher), "teacher_mean": mean, "teacher_std": std}
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
        # Where a coding plan is wanted and not there yet, it is made here, by all processes.
        self.stream.open(self._stop_between_chunks)
        self.eval_stream.open()
        if tapped_teacher is not None:
            tapped_teacher.cpu()
        few = min(2, len(self.train))
        self.probe = next(iter(Stream(self.train, few, recipe.seed, rank=0, world=1, given=given) | chain))
        torch.manual_seed(recipe.seed)
        network = make_student(recipe.student, self.train.num_classes)
        statistics = (given["teacher_mean"], given["teacher_std"]) if tapped_teacher is not None else None
        network, student, asked_teacher = prepare(
            network, recipe.student, tapped_teacher, statistics, terms, self.probe, self.train, recipe.epochs
        )
        self.terms = terms
        self.probe = self.probe.to(device)
        if asked_teacher is not None:
            asked_teacher.to(device)
        self.distiller = Distiller(student, terms, self._layout()).to(device, memory_format=self._layout())
        for _, _, term in reversed(terms):  # what was put on last comes off first
            network = term.deploy(network)
        self.networks: dict[str, nn.Module] = {"student": network}
        for _, _, term in terms:
            self.networks |= term.peers()

    def _stop_between_chunks(self) -> None:
        asked = torch.tensor(float(self.stop.signal is not None), device=self.accelerator.device)
        if bool(self._reduce(asked) > 0):
            where = f"{self.recipe.name}: what there is of the coding plan is kept"
            raise Stopped(where, self.stop.signal or signal.SIGTERM)

    def _answering(self, teacher: nn.Module) -> Callable[[Tensor], Outputs]:
        """The teacher under the recipe's precision, memory format and compilation; its answers in float32."""
        forward = torch.compile(teacher) if self.recipe.compile else teacher
        layout = self._layout()
        if self.recipe.precision == "no" and layout == torch.contiguous_format:
            return forward

        def answer(images: Tensor) -> Outputs:
            with self.accelerator.autocast():
                return forward(images.contiguous(memory_format=layout)).map(Tensor.float)

        return answer

    def _layout(self) -> torch.memory_format:
        wanted = self.recipe.channels_last
        if wanted is None:
            wanted = self.accelerator.device.type == "cuda"
        return torch.channels_last if wanted else torch.contiguous_format

    # --- the loop

    def _run(self, state: dict[str, Any] | None) -> dict[str, Any]:
        recipe, accelerator = self.recipe, self.accelerator
        main = accelerator.is_main_process
        self.folder.mkdir(parents=True, exist_ok=True)
        if main and state is None:
            (self.folder / "recipe.yaml").write_text(recipe.to_yaml())
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
            self.distiller.load_state_dict(state["distiller"])
            self.stream.load_state_dict(state["stream"])
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
        parameters = self.distiller.begin(stage, self.probe)
        if not parameters and stage.trains != "nothing":
            raise UserError(f"recipe {recipe.name}: the loss of phase {stage.name} depends on nothing that is trained")
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
            wrapped, optimizer = accelerator.prepare(wrapped, optimizer)
        self.sums = Sums([name for name, _, _ in stage.losses], accelerator.device)
        if state is not None:
            if optimizer is not None and state["optimizer"] is not None:
                optimizer.load_state_dict(state["optimizer"])
            if state["stream"]["step"] and accelerator.is_main_process:  # inside of an epoch of this phase
                self.sums.load_state_dict(state["sums"])
            if accelerator.scaler is not None and state["scaler"] is not None:
                accelerator.scaler.load_state_dict(state["scaler"])
            self._restore_random(state["random"])
        for epoch in epochs:
            at = {"stage": number, "stage_epoch": epoch}
            if stage.phase is None:
                for term in self.distiller.terms:
                    term.begin_epoch(epoch, length)  # type: ignore[operator]
            self._train_epoch(wrapped, optimizer, stage, shape, base, epoch, length, at)
            last = epoch + 1 == length
            after = {"stage": number + 1, "stage_epoch": 0} if last else {"stage": number, "stage_epoch": epoch + 1}
            self._save(after, None if last else optimizer)
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
        rate = base

        def check() -> None:
            self._check_finite(stage, pending)
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
            share = self._share(len(batch))
            bounds = stream.plan.bounds(step)
            count = bounds[1] - bounds[0]
            with _synchronised(accelerator, wrapped, closes):
                loss, terms, logits = wrapped(batch)
                if optimizer is not None:
                    accelerator.backward(loss * (share / group_size))
            pending.append((step, torch.cat([loss.detach().reshape(1), terms])))
            if accelerator.device.type == "cpu" or len(pending) >= CHECK_EVERY:
                check()
            if closes and optimizer is not None:
                if recipe.optimizer.clip is not None:
                    accelerator.clip_grad_norm_(wrapped.parameters(), recipe.optimizer.clip)
                optimizer.step()
                optimizer.zero_grad()
                self.global_step += 1
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
            if closes and step + 1 < steps and now - saved >= recipe.checkpoint_seconds:
                check()
                self.seconds, self.images = self.seconds + now - counted, self.images + uncounted
                self._save(at, optimizer)
                counted, uncounted, saved = now, 0, time.perf_counter()
        check()
        now = time.perf_counter()
        self.seconds, self.images = self.seconds + now - counted, self.images + uncounted
        took = now - began
        self._end_epoch(stage, sums, rate, {"images_per_s": seen / took if took else 0.0, "seconds": took}, epoch)

    def _share(self, count: int) -> float | Tensor:
        """By what the mean over this process's slice must be weighted, so that the processes' mean is that of the
        global batch."""
        accelerator = self.accelerator
        if accelerator.num_processes == 1:
            return 1.0
        total = accelerator.reduce(torch.full((), float(count), device=accelerator.device))
        return count * accelerator.num_processes / total

    def _must_stop(self, step: int) -> bool:
        if self.accelerator.num_processes == 1:
            return self.stop.signal is not None
        if step // self.recipe.accumulate % 10:
            return False
        asked = torch.tensor(float(self.stop.signal is not None), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked) > 0)

    def _check_finite(self, stage: Stage, pending: list[tuple[int, Tensor]]) -> None:
        if not pending:
            return
        values = torch.stack([values for _, values in pending]).cpu()
        bad = ~values.isfinite()
        if not bad.any():
            return
        row = int(bad.any(dim=1).nonzero()[0])
        step, names = pending[row][0], [name for name, _, _ in stage.losses]
        culprits = [f"{name} = {values[row, i + 1]:g}" for i, name in enumerate(names) if bad[row, i + 1]]
        what = " and ".join(culprits) or f"the sum of {', '.join(names)}"
        raise UserError(
            f"recipe {self.recipe.name}: the loss is not finite at step {step + 1} of epoch {self.global_epoch + 1} "
            f"({what}): {self._advice()}"
        )

    def _advice(self) -> str:
        return (
            f"lower optimizer.lr ({self.recipe.optimizer.lr:g}), lengthen schedule.warmup or set optimizer.clip; "
            f"the last good checkpoint is {self.folder / 'last.pt'}"
        )

    def _reduce(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor) if self.accelerator.num_processes > 1 else tensor  # type: ignore[return-value]

    def _end_epoch(self, stage: Stage, sums: Sums, rate: float, speed: dict[str, float], epoch: int) -> None:
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
        if self.accelerator.num_processes > 1:
            # What is measured is what is saved: the first process's running statistics.
            for buffer in self.distiller.buffers():
                torch.distributed.broadcast(buffer, 0)
        tops: dict[str, float] = {}
        for name, network in self.networks.items():
            self.eval_stream.load_state_dict({"epoch": 0, "step": 0})
            prefix = "val" if name == "student" else f"val/{name}"
            with self.display.task(f"evaluation of {name}", self.eval_stream.plan.size) as task, self._precision():
                measured = evaluate(network, self.eval_stream, self._reduce, task.advance)
            row |= {f"{prefix}/{key}": measured[key] for key in ("loss", "top1", "top5")}
            tops[name] = measured["top1"]
            if math.isnan(measured["loss"]):
                raise UserError(
                    f"recipe {self.recipe.name}: the weights are not finite after epoch {self.global_epoch + 1}: "
                    f"{self._advice()}"
                )
        best = max(tops, key=lambda name: tops[name])
        if stage.phase is None and tops[best] > self.best.get("top1", -math.inf):
            self.best = {"top1": tops[best], "epoch": self.global_epoch + 1, "network": best, "tops": tops}
            if self.accelerator.is_main_process:
                save_checkpoint(self._network_state(best), self.folder / "best.pt")
        self.last_row = {**row, "network": best, "top1": tops[best], "tops": tops}
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

    def _precision(self) -> Any:
        return self.accelerator.autocast()

    @staticmethod
    def _teacher_summary(values: list[float], qualities: Tensor) -> dict[str, Any]:
        count = values[0]

        def mean_std(total: float, squares: float) -> list[float]:
            return [total / count, math.sqrt(max(squares / count - (total / count) ** 2, 0))]

        chosen = {str(i - 1): n for i, n in enumerate(qualities.tolist()) if n}
        summary = {"entropy": mean_std(values[3], values[4]), "gt_probability": mean_std(values[5], values[6])}
        return {"teacher": summary, **({"qualities": chosen} if chosen else {})}

    def _network_state(self, name: str) -> dict[str, Any]:
        state = {"fingerprint": self.fingerprint, "network": name, "state": self.networks[name].state_dict()}
        if self.recipe.export_all:
            state["others"] = {other: net.state_dict() for other, net in self.networks.items() if other != name}
        return state

    def _save(self, at: dict[str, int], optimizer: Any) -> None:
        """Write last.pt: everything that the rest of the training depends on."""
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
            "sums": self.sums.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": self._cuda_random()},
            "best": self.best,
            "last_row": self.last_row,
            "seconds": self.seconds,
            "images": self.images,
            "log": self.log.position,
        }
        save_checkpoint(state, self.folder / "last.pt")

    def _cuda_random(self) -> list[Tensor]:
        device = self.accelerator.device
        return [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []

    def _restore_random(self, state: dict[str, Any]) -> None:
        """The first process continues its random numbers; the others, whose state is not saved, start new ones."""
        device, rank = self.accelerator.device, self.accelerator.process_index
        if rank:
            torch.manual_seed(int(state["cpu"][:7].sum()) + rank)
            return
        torch.set_rng_state(state["cpu"])
        if state["cuda"] and device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"][0], device)

    def _finish(self, epochs: int) -> dict[str, Any]:
        self.accelerator.wait_for_everyone()  # best.pt is there
        name, tops = self.last_row["network"], self.last_row["tops"]
        accuracy = {
            key: self.last_row[f"val/{key}" if name == "student" else f"val/{name}/{key}"] for key in ("top1", "top5")
        }
        if self.recipe.export == "best":
            name, tops = self.best["network"], self.best["tops"]
            best = load_checkpoint(self.folder / "best.pt")
            assert best is not None
            for one, weights in {name: best["state"], **best.get("others", {})}.items():
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
            **({"networks": {one: {**self._about(one), "top1": tops[one]} for one in tops}} if len(tops) > 1 else {}),
            **{key: self.last_row[key] for key in ("teacher", "qualities") if key in self.last_row},
        }
        if self.accelerator.is_main_process:
            if self.recipe.export_all:
                for one, about in result.get("networks", {name: {}}).items():
                    self._export(self.folder / PEERS / one, one, {"network": one, **about})
            self._export(self.folder, name, result)
            write_atomic(self.folder / "result.json", json.dumps(result, indent=2).encode())
        self.accelerator.wait_for_everyone()
        return result

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
            extra={"recipe": json.loads(self.recipe.model_dump_json(exclude_none=True)), "result": result},
        )


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


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two nested mappings differ, as "key: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(
            {*old, *new} - {"name", "out", "workers", "eval_batch_size", "checkpoint_seconds", "tensorboard", "runs"}
        )
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{path}.{key}".strip("."))]
    return [] if old == new else [f"{path}: {old} -> {new}"]
