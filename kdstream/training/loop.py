"""The loop: one student (or teacher) trained from a recipe, resumable at any instant."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from kdstream.atomic import remove_parts, write_atomic, writing
from kdstream.batch import Batch, Outputs
from kdstream.data.faults import FAULTS
from kdstream.data.shards import ShardSet
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.models.export import DESCRIPTION
from kdstream.objectives.loss import Loss
from kdstream.recipe import Recipe, Schedule
from kdstream.stream.loader import ReaderLost, lost_readers_told
from kdstream.stream.stream import Stream
from kdstream.training.accelerator import settle
from kdstream.training.accumulation import Accumulation
from kdstream.training.average import follow
from kdstream.training.checkpoint import load_checkpoint, save_checkpoint
from kdstream.training.clock import Clock
from kdstream.training.distiller import Stage
from kdstream.training.folder import KEPT, LAST, PEERS, RECIPE, Identity, locked
from kdstream.training.metrics import MetricsLog
from kdstream.training.networks import Teacher, known_of
from kdstream.training.optimizer import groups_of, make_optimizer
from kdstream.training.results import Results
from kdstream.training.schedule import learning_rate
from kdstream.training.setup import Setup, compiling, set_up
from kdstream.training.state import State, for_what_is_trained, of_every_process, restore_process
from kdstream.training.stop import StopFlag, Stopped
from kdstream.training.sums import Sums
from kdstream.training.trackers import Tracked, Trackers

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
        identity, setup, state, results, sums, log: which training it is, what it works with, where it stands, what it
            measures and writes, the sums of the epoch, its metrics (the first process's); made by :meth:`fit`.
        saved: whether a checkpoint of this training was read or written.
        project: the job's name, as trackers know it; the recipe's where it is empty.
        trackers: that are given the rows of the log, if any (the first process's).
    """

    recipe: Recipe
    folder: Path
    train: ShardSet
    val: ShardSet
    teacher: Teacher | None
    accelerator: Accelerator
    display: Display
    stop: StopFlag
    project: str = ""
    identity: Identity = field(init=False)
    setup: Setup = field(init=False)
    state: State = field(init=False, default_factory=State)
    results: Results = field(init=False)
    sums: Sums = field(init=False)
    log: MetricsLog | None = field(init=False, default=None)
    saved: bool = field(init=False, default=False)
    trackers: Trackers | None = field(init=False, default=None)

    @property
    def global_step(self) -> int:
        """Steps of the optimizer since the start."""
        return self.state.step

    @property
    def global_epoch(self) -> int:
        """Finished epochs, all phases together."""
        return self.state.epoch

    def fit(self) -> dict[str, Any]:
        """Train, or continue, or report the result of a training that is finished.

        Returns:
            The content of ``result.json``.

        Raises:
            Stopped: by signal; the state is saved.
            UserError: input that cannot work, a loss that is not finite, a folder that holds another training.
        """
        self.recipe = settle(self.recipe, self.accelerator)
        self.identity = Identity.of(self.recipe, self.folder, self.train, self.teacher)
        with self._alone(), self._signal_over_lost_readers(), compiling(self.recipe.compile):
            if (finished := self._finished()) is not None:
                return finished
            with self.stop.listening(), contextlib.ExitStack() as at_the_end:
                saved = self._begin()
                self._track(at_the_end)
                stages = self.setup.distiller.stages()
                self._tell_where_it_begins(stages, saved)
                while self.state.stage < len(stages):
                    stage = stages[self.state.stage]
                    module, optimizer = self._begin_stage(stage, saved)
                    saved = None  # only the phase in which the training was left continues from it
                    number = self.state.stage
                    while self.state.stage == number:
                        clock = self._train_epoch(stage, module, optimizer)
                        self._end_epoch(stage, optimizer, clock)
                    self.accelerator.free_memory()
                    self.setup.distiller = self.accelerator.unwrap_model(module, keep_fp32_wrapper=False)
                result = self.results.finish(sum(map(self._length, stages)))
            if self.log is not None:
                self.log.close()
            return result

    # --- before the first step

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

    @contextlib.contextmanager
    def _signal_over_lost_readers(self) -> Iterator[None]:
        """A reader that the system ends is told in one line; where a signal asked to stop, that is the reason.

        A scheduler's signal reaches the readers too, which wait for a long step only so long.
        """
        try:
            with lost_readers_told():
                yield
        except ReaderLost as lost:
            if self.stop.signal is None:
                raise
            where = f"{self.recipe.name} continues from what it saved last, in {self.folder}"
            raise Stopped(where, self.stop.signal) from lost

    def _stop_between_chunks(self) -> None:
        """Asked between the chunks of what is decoded or kept by the sample; all processes ask together."""
        if self._any(self.stop.signal is not None):
            where = f"{self.recipe.name}: what there is of a coding plan or of teacher answers is kept"
            raise Stopped(where, self.stop.signal or signal.SIGTERM)

    def _finished(self) -> dict[str, Any] | None:
        """The result of a training that needs nothing more."""
        result = self.identity.finished()
        if result is None:
            return None
        if self.recipe.export_network == "student" and result.get("network", "student") != "student":
            said = f"finished before with {result['network']} exported; exports the student now"
            self.display.note(f"{self.recipe.name}: {said}")
            return None
        self.display.note(f"{self.recipe.name}: finished before, top-1 {result['top1']:.2f} % ({self.folder})")
        return result

    def _begin(self) -> dict[str, Any] | None:
        """Build everything, or bring it where a checkpoint was written; that checkpoint."""
        saved = load_checkpoint(self.folder / LAST)
        if saved is not None:
            self.identity.check_same(saved["fingerprint"])
            self.state, self.saved = State.from_state_dict(saved), True
        between = self._stop_between_chunks
        listed = self.folder / FAULTS
        places: dict[str, Any] = {"between_chunks": between, "skipped_file": listed}
        setup = set_up(self.recipe, self.train, self.val, self.teacher, self.accelerator, **places)
        self.setup = setup
        if setup.note:
            self.display.note(f"{self.recipe.name}: {setup.note}")
        for note in setup.stream.notes:
            self.display.note(f"{self.recipe.name}: {note}")
        self.results = Results(
            self.identity,
            setup,
            self.train,
            self.accelerator,
            self.display,
            self.state,
            known_of(self.teacher) if self.teacher is not None and setup.loss.uses_teacher else {},
        )
        if self.accelerator.is_main_process:
            if saved is None:
                with writing(self.folder / RECIPE):
                    write_atomic(self.folder / RECIPE, self.recipe.to_yaml().encode())
            self.log = MetricsLog(self.folder, None if saved is None else saved["log"])
        if saved is not None:
            self.results.settle_best()
            setup.distiller.load_state_dict(saved["distiller"])
            setup.stream.load_state_dict(saved["stream"])
            if self.recipe.ema is not None:
                setup.networks["ema"].load_state_dict(saved["ema"])
            if not saved["stream"]["step"]:  # stopped between the two files that an epoch ends with, maybe
                self.results.save_best()
            self.accelerator.wait_for_everyone()
            if self.state.best and self.recipe.export == "best":
                self.results.read_best()  # as long as there is something to be done about it
        return saved

    def _track(self, at_the_end: contextlib.ExitStack) -> None:
        """Begin or continue the runs of the trackers; they end with the training, however that ends."""
        if self.log is None or not self.recipe.trackers:
            return
        about = Tracked(
            self.project or self.recipe.name, self.recipe.name, self.folder, self.identity.fingerprint, self.recipe
        )
        self.trackers = Trackers(about, self.display.note)
        at_the_end.callback(self.trackers.finish)
        self.trackers.start()

    def _tell_where_it_begins(self, stages: list[Stage], saved: dict[str, Any] | None) -> None:
        self.display.start_run(self.recipe.name, sum(map(self._length, stages)), self.state.epoch)
        if saved is not None and self.state.stage < len(stages):
            step = self.setup.stream.step
            self.display.note(f"{self.recipe.name}: continues at epoch {self.state.epoch + 1}, step {step}")

    def _begin_stage(self, stage: Stage, saved: dict[str, Any] | None) -> tuple[Any, Any]:
        """Make ``stage`` the current one; the distiller as the processes share it, and the optimizer (None where
        nothing is trained)."""
        accelerator, settings = self.accelerator, self.recipe.optimizer
        parameters = self.setup.begin(stage)
        self._tell_what_is_not_trained(stage)
        module: Any = self.setup.distiller
        optimizer: Any = None
        if parameters:
            optimizer = make_optimizer(settings, self.setup.distiller, self._base_rate(stage))
            # Which parameters a batch reaches is for the batch to say, on each process for itself.
            ddp = accelerator.ddp_handler or DistributedDataParallelKwargs()
            ddp.find_unused_parameters = True
            accelerator.ddp_handler = ddp
            module, optimizer = accelerator.prepare(module, optimizer)
        self.sums = Sums([name for name, _, _ in stage.losses], accelerator.device, _temperature(self.setup.loss))
        if saved is not None:
            if optimizer is not None and saved["optimizer"] is not None:
                distiller, path = self.setup.distiller, self.folder / LAST
                groups = groups_of(distiller, settings.no_decay or ())
                optimizer.load_state_dict(for_what_is_trained(saved["optimizer"], groups, distiller.reached, path))
            if accelerator.scaler is not None and saved["scaler"] is not None:
                accelerator.scaler.load_state_dict(saved["scaler"])
            if note := restore_process(accelerator, self.sums, saved):
                self.display.note(f"{self.recipe.name}: {note}")
        return module, optimizer

    def _length(self, stage: Stage) -> int:
        """Epochs of a phase."""
        return self.recipe.epochs if stage.phase is None else stage.phase.epochs

    def _base_rate(self, stage: Stage) -> float:
        """Learning rate at the start of a phase."""
        return self.recipe.optimizer.lr if stage.phase is None else stage.phase.lr

    def _rate(self, stage: Stage, done: float) -> float:
        """Learning rate after a part of the current epoch (0..1)."""
        shape = self.recipe.schedule
        if stage.phase is not None:
            shape = Schedule(name="step", milestones=list(stage.phase.milestones), gamma=stage.phase.gamma)
        return learning_rate(shape, self._base_rate(stage), self.state.stage_epoch, done, self._length(stage))

    # --- the loop

    def _train_epoch(self, stage: Stage, module: nn.Module, optimizer: Any) -> Clock:
        """The rest of an epoch: batches, gradients, steps, checkpoints."""
        recipe, accelerator, stream, state = self.recipe, self.accelerator, self.setup.stream, self.state
        steps, clock = stream.steps, Clock(stream)
        if stage.phase is None:
            self.setup.loss.begin_epoch(state.stage_epoch, self._length(stage))
        module.train()
        self.display.start_epoch(recipe.name, stage.name, state.stage_epoch, self._length(stage), steps, stream.step)
        groups = Accumulation(stream.plan, recipe.accumulate, accelerator)
        pending: list[tuple[int, Tensor]] = []
        for batch in _leaving(stream):
            step = stream.step - 1
            for group in optimizer.param_groups if optimizer else ():
                group["lr"] = self._rate(stage, (step + 1) / steps)
            share = groups.share(step, len(batch))
            with _synchronised(accelerator, module, groups.closes):
                loss, terms, logits = module(batch)
                if optimizer is not None:
                    # Not Accelerate's backward, which divides by a number of its own (of the environment, for one).
                    scaler = accelerator.scaler
                    (loss * share if scaler is None else scaler.scale(loss * share)).backward()
            pending.append((step, torch.cat([_is_finite(batch.teacher, loss), loss.detach().reshape(1), terms])))
            if accelerator.device.type == "cpu" or len(pending) >= CHECK_EVERY:
                self._check_finite(stage, pending)
            if groups.closes and optimizer is not None:
                groups.close(module)
                if recipe.optimizer.clip is not None:
                    accelerator.clip_grad_norm_(module.parameters(), recipe.optimizer.clip)
                if accelerator.scaler is None or any(one.grad is not None for one in module.parameters()):
                    optimizer.step()  # the scaler's takes a step without any gradient for a mistake
                if recipe.ema is not None:  # which begins with the main phase, from the student as it is then
                    networks = self.setup.networks
                    follow(networks["ema"], networks["student"], 0.0 if stage.phase else recipe.ema)
                optimizer.zero_grad()
                state.step += 1
            self.sums.add(batch, loss.detach(), terms, logits)
            first, end = stream.plan.bounds(step)
            waited = clock.tick(end - first)
            self.display.step(step, partial(self._shown, stage, loss, terms), end - first, waited)
            if groups.closes and self._must_stop(step):
                self._check_finite(stage, pending)
                clock.count(state)
                self._save(optimizer)
                accelerator.wait_for_everyone()  # a process that ends first would take the saving one along
                where = f"{recipe.name}, epoch {state.epoch + 1}, step {step + 1} of {steps}"
                raise Stopped(f"{where} is saved in {self.folder}", self.stop.signal or signal.SIGTERM)
            if groups.closes and step + 1 < steps and self._is_due(step, clock):
                self._check_finite(stage, pending)
                clock.count(state)
                self._save(optimizer)
                clock.saves()
        self._check_finite(stage, pending)
        clock.count(state)
        return clock

    def _end_epoch(self, stage: Stage, optimizer: Any, clock: Clock) -> None:
        """Evaluate, write the rows and the checkpoint, and go on to the next epoch or phase."""
        state, main = self.state, stage.phase is None
        last = state.stage_epoch + 1 == self._length(stage)
        measured = (main and last) or (state.stage_epoch + 1) % self.recipe.eval_every == 0
        rate = self._rate(stage, 1.0)
        row = self.results.end_epoch(self.sums, stage.name, rate, main, measured, lambda: self._advice(stage))
        if main and measured and self.results.is_enough() and not last:
            last = True
            waited, top1 = self.state.stalled["count"], self.state.stalled["top1"]
            self.display.note(
                f"{self.recipe.name}: stops early, after epoch {row['epoch']}: {waited} evaluations without a better "
                f"top-1 than {top1:.2f} %"
            )
        speed = clock.row(row["epoch"])
        if self.log is not None:
            self.log.write("epoch", row)
            self.log.write_speed(speed)
        if self.trackers is not None:
            self.trackers.log()
        self.display.end_epoch(row, speed)
        if skipped := self.setup.stream.skipped:
            self.display.note(
                f"{self.recipe.name}: {len(skipped):,} images cannot be decoded, others stand in for them: listed in "
                f"{self.folder / FAULTS}; the first: {skipped[0]['key']} ({skipped[0]['reason']})",
                once=True,
            )
        self.sums = Sums(self.sums.names, self.sums.device, self.sums.temperature)
        state.epoch += 1
        state.stage, state.stage_epoch = (state.stage + 1, 0) if last else (state.stage, state.stage_epoch + 1)
        self._save(None if last else optimizer)
        self.results.save_best()

    def _must_stop(self, step: int) -> bool:
        return self._agreed(step, self.stop.signal is not None)

    def _is_due(self, step: int, clock: Clock) -> bool:
        """Whether to save: as the first process's clock says, for all must do it together."""
        due = clock.since_save() >= self.recipe.checkpoint_seconds
        return self._agreed(step, due and self.accelerator.is_main_process)

    def _agreed(self, step: int, wish: bool) -> bool:
        """Whether any process has the wish. Several GPUs are asked once in ten steps of the optimizer: to hear their
        answer stalls the queue."""
        several_gpus = self.accelerator.num_processes > 1 and self.accelerator.device.type != "cpu"
        return False if several_gpus and step // self.recipe.accumulate % 10 else self._any(wish)

    def _any(self, wish: bool) -> bool:
        """Whether any process has the wish; all must ask together."""
        accelerator = self.accelerator
        if accelerator.num_processes == 1:
            return wish
        return bool(accelerator.reduce(torch.tensor(float(wish), device=accelerator.device)) > 0)

    def _save(self, optimizer: Any) -> None:
        """Write last.pt: everything that the rest of the training depends on. All processes must call it together."""
        processes = of_every_process(self.accelerator, self.sums)
        self.saved = True
        if self.log is None:
            return
        scaler = self.accelerator.scaler
        state = {
            "fingerprint": self.identity.fingerprint,
            **self.state.state_dict(),
            "stream": self.setup.stream.state_dict(),
            "distiller": self.setup.distiller.state_dict(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "ema": None if self.recipe.ema is None else self.setup.networks["ema"].state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            **processes,
            "log": self.log.position,
            DESCRIPTION: self.results.deployed(),
        }
        save_checkpoint(state, self.folder / LAST)

    # --- what a person is told

    def _tell_what_is_not_trained(self, stage: Stage) -> None:
        """Say which parameters rest in a stage, and which perhaps do."""
        distiller = self.setup.distiller
        what = self.recipe.name if stage.phase is None else f"{self.recipe.name}, phase {stage.name}"
        if frozen := distiller.frozen():
            self.display.note(f"{what}: frozen: {', '.join(frozen)}")
        if stage.trains != "nothing" and (idle := distiller.unreached()):
            self.display.note(
                f"{what}: the loss of the first images does not reach {', '.join(idle)}; only batches that do move it"
            )

    def _shown(self, stage: Stage, loss: Tensor, terms: Tensor) -> dict[str, float]:
        """What the bar shows beside the time."""
        named = {f"loss/{name}": value for (name, _, _), value in zip(stage.losses, terms.tolist(), strict=True)}
        return {"loss": float(loss.detach()), **named, "train/top1": self.sums.top1()}

    def _check_finite(self, stage: Stage, pending: list[tuple[int, Tensor]]) -> None:
        """Look at the values of the steps since the last look, and forget them.

        Raises:
            UserError: one of them is not finite.
        """
        if not pending:
            return
        steps, values = [step for step, _ in pending], torch.stack([values for _, values in pending]).cpu()
        pending.clear()
        bad = ~values.isfinite()
        if not bad.any():
            return
        row = int(bad.any(dim=1).nonzero()[0])
        names = [name for name, _, _ in stage.losses]
        where = f"at step {steps[row] + 1} of epoch {self.state.epoch + 1}"
        if bad[row, 0]:
            raise UserError(
                f"recipe {self.recipe.name}: the teacher's answer is not finite {where}: its weights are damaged, its "
                "mean and std do not fit, or its precision is too low"
            )
        culprits = [f"{name} = {values[row, i + 2]:g}" for i, name in enumerate(names) if bad[row, i + 2]]
        what = " and ".join(culprits) or f"the sum of {', '.join(names)}"
        raise UserError(f"recipe {self.recipe.name}: the loss is not finite {where} ({what}): {self._advice(stage)}")

    def _advice(self, stage: Stage) -> str:
        """What may help where values are not finite, of all that applies here."""
        recipe, optimizer = self.recipe, self.recipe.optimizer
        if self.state.step == 0:  # the weights are those of the start
            advice = "nothing was trained yet: see to the loss, its weights, and the student's first weights"
        else:
            if stage.phase is None:
                ways = [f"lower optimizer.lr ({optimizer.lr:g})"]
                ways += ["lengthen schedule.warmup"] if self.state.stage_epoch <= recipe.schedule.warmup else []
            else:
                ways = [f"lower the learning rate of phase {stage.name} ({stage.phase.lr:g})"]
            ways += [f"lower optimizer.clip ({optimizer.clip:g})" if optimizer.clip else "set optimizer.clip"]
            advice = f"{', '.join(ways[:-1])} or {ways[-1]}"
        if recipe.precision == "fp16":
            advice += "; fp16 ends at 65504: precision=bf16 does not"
        last = self.folder / LAST
        return f"{advice}; the last good checkpoint is {last}" if self.saved and last.exists() else advice


def _leaving(stream: Stream) -> Iterator[Batch]:
    """The rest of the stream's epoch; closes the reader's iteration when the loop is left early."""
    with contextlib.closing(iter(stream)) as batches:
        yield from batches


def _synchronised(accelerator: Accelerator, module: nn.Module, closes: bool) -> Any:
    """Gradients are exchanged between processes only in the backward pass that closes a group."""
    return contextlib.nullcontext() if closes else accelerator.no_sync(module)


def _temperature(loss: Loss) -> float:
    """That of the transformed teacher which the loss matches; 1 where it matches none."""
    return next((1 / float(vars(term)["gamma"]) for name, _, term in loss.main if name in ("ttm", "wttm")), 1.0)


def _is_finite(teacher: Outputs | None, like: Tensor) -> Tensor:
    """[1]: 1 where the teacher's logits are finite (or there is no teacher), else NaN."""
    if teacher is None:
        return like.new_ones(1)
    return torch.where(teacher.logits.isfinite().all(), 1.0, math.nan).to(like)[None]
