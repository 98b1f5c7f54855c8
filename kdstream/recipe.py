"""Recipe: everything that decides the result of a job, typed and checked."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from kdstream.addresses import is_published, is_url, public, public_values
from kdstream.data.faults import allowed_share
from kdstream.errors import UserError
from kdstream.registry import nearest
from kdstream.safe_yaml import plain
from kdstream.terminal import quoted


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):  # Python counts them as 1 and 0
        raise ValueError("input should be a number, not true or false")
    return value


def _policy(value: str) -> str:
    allowed_share(value)
    return value


Integer = Annotated[int, BeforeValidator(_no_switch)]
Number = Annotated[float, BeforeValidator(_no_switch)]
Positive = Annotated[Integer, Field(ge=1, le=2**31 - 1)]
NotNegative = Annotated[Number, Field(ge=0)]
_Mean = Annotated[Number, Field(ge=0, le=1)]
_Deviation = Annotated[Number, Field(gt=0, le=1)]
Means = tuple[_Mean, _Mean, _Mean]
Deviations = tuple[_Deviation, _Deviation, _Deviation]


class Part(BaseModel):
    """A group of settings; a key that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Imbalance(Part):
    """Class sizes by a power law; see :func:`kdstream.data.altered.class_sizes`.

    Attributes:
        gamma: > 0; the smaller, the fewer classes are large.
        largest, smallest: samples of the last and of the first class.
    """

    gamma: Annotated[Number, Field(gt=0)]
    largest: Positive
    smallest: Positive

    @model_validator(mode="after")
    def _ends_are_in_order(self) -> Imbalance:
        if self.smallest > self.largest:
            raise ValueError(f"smallest is {self.smallest}, which is more than largest, {self.largest}")
        return self


class Data(Part):
    """Where the samples come from.

    Attributes:
        path: data set folder (or foreign tar folder) under which the splits lie, from the working folder, as every
            path of a recipe and of the command line (``out``, ``weights``), wherever the recipe's file lies; or the
            address that such a folder, made by ``kdstream shards``, was copied to (https://, s3://, gs://, hf://); or
            a source, as ``imagefolder:/data/birds``, whose shards are made once and kept in the cache folder.
        source: what ``kdstream shards`` makes it of when the folder does not exist; None = it must exist.
        train, val: names of the splits; val None = ``val``, else ``test``.
        mean, std: by channel, in [0,1], the latter above 0, that images are standardised with; None = the data set's
            own, of dataset.json.
        num_classes: for labels that are numbers: how many classes there are, where not all of them occur (some of
            another set's classes, in its numbering; a class that one split lacks). Student and teacher get so many
            outputs. None = as many as the data shows.
        label_noise: 0..1: each training label is replaced with this probability by a class drawn uniformly from all,
            its own among them.
        imbalance: leave so many of each class in the training split.
        per_class: leave that many of each class in the training split, drawn at random. None = all.
        hold_out: 0..1: this share of every class of the training split, noise and all, is not trained with: it takes
            the validation split's place, which nobody then looks at; to choose settings by.
        seed: of label noise, hold_out and what is left, which do not change with the recipe's seed: students of all
            seeds see the same, and so does the teacher, if ``teacher.train`` has no ``data`` of its own. None = 0.
        order: of the training samples: None = shuffled as a whole, which touches all shards; ``sequential`` = shard by
            shard, shuffled within a buffer, for sets that are larger than the disk: see
            :mod:`kdstream.stream.sequential`.
        on_error: what becomes of training images that cannot be decoded: ``stop``, ``skip`` or ``skip(0.001)``: they
            are listed in skipped.jsonl and replaced by others, up to this share of all. Evaluation always stops.
    """

    path: str
    source: str | None = None
    train: str = "train"
    val: str | None = None
    mean: Means | None = None
    std: Deviations | None = None
    num_classes: Annotated[int, Field(ge=2, strict=True)] | None = None
    label_noise: Annotated[Number, Field(ge=0, le=1)] | None = None
    imbalance: Imbalance | None = None
    per_class: Positive | None = None
    hold_out: Annotated[Number, Field(gt=0, lt=1)] | None = None
    seed: Integer | None = None
    order: Literal["sequential"] | None = None
    on_error: Annotated[str, AfterValidator(_policy)] = "stop"

    @model_validator(mode="after")
    def _fits_together(self) -> Data:
        if is_url(self.path) and self.source is not None:
            raise ValueError(
                f"path is an address ({public(self.path)}), and shards are made in a folder: name one, or "
                "leave source out (data.source=null)"
            )
        if self.order is not None and any((self.label_noise, self.imbalance, self.per_class, self.hold_out)):
            raise ValueError(
                "order: sequential reads the shards as they are: leave out label_noise, imbalance, per_class and "
                "hold_out"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("path", "source")
    @classmethod
    def _at_home(cls, value: str | None) -> str | None:
        return value if value is None else at_home(value)

    @model_validator(mode="after")
    def _seed_is_of_something(self) -> Data:
        if self.imbalance is not None and self.per_class is not None:
            raise ValueError("imbalance and per_class both say how many samples of a class are left: leave one out")
        altering = (self.label_noise, self.imbalance, self.per_class, self.hold_out)
        if self.seed is not None and all(one is None for one in altering):
            raise ValueError(
                "seed is that of label_noise, imbalance, per_class and hold_out, and none of them is asked for"
            )
        return self


ALTERING = ("label_noise", "imbalance", "per_class", "seed")
"""What of ``data`` changes the training split, and so may be another for the teacher."""


def class_choice(value: Any) -> Any:
    """A user's choice of a trained network's outputs, checked: "same", or a list of numbers (from 0) and names.

    Raises:
        ValueError: anything else.
    """
    if value is None or value == "same":
        return value
    how = "it is same, or a list with a number (from 0) or name for each of the data's classes, as [0, 3, 7]"
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(how)
    for one in value:
        if isinstance(one, bool) or not isinstance(one, int | str):
            raise ValueError(f"{how}; {one!r} is neither (names that YAML reads otherwise stand in quotes)")
    return list(value)


class Model(Part):
    """A network: the student.

    Attributes:
        model: a name that :func:`kdstream.models.build` knows, or a dotted path; may be left out where ``weights`` are
            an export, or a file in which the network is recognised.
        weights: file with its weights, http(s) address of one, the folder of a student that kdstream exported, or
            published ones by name, as ``published:wrn_40_2@cifar100`` (``kdstream models --published``).
        options: further keyword arguments for ``build``.
        taps: tap name -> module path, for networks that do not name theirs.
        classes: which outputs of a trained network stand for the data's classes: a list with a number (from 0) or
            name for each of the data's classes, in the data's order; the others are left out. "same": all, as they
            are, whatever they are called. None = found by name where an export (or timm, torchvision) names its
            classes and the data does; else as they are.
    """

    model: str | None = None
    weights: str | None = None
    options: dict[str, Any] = {}
    taps: dict[str, str] = {}
    classes: Annotated[Any, BeforeValidator(class_choice)] = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return model_of(value) if isinstance(value, str) else value

    @field_validator("weights")
    @classmethod
    def _at_home(cls, value: str | None) -> str | None:
        return value if value is None else at_home(value)

    @field_validator("options")
    @classmethod
    def _leaves_the_rest_to_the_job(cls, value: dict[str, Any]) -> dict[str, Any]:
        said = "the data says it, or data.num_classes where its labels are numbers of a larger set"
        for key, source in (("num_classes", said), ("name", "it is the model's")):
            if key in value:
                raise ValueError(f"leave {key} out: {source}")
        return value


class OneTeacher(Model):
    """One teacher: like the student, and

    Attributes:
        train: how to train it when there are no weights: settings that replace the recipe's, for this training. Beside
            published weights it is for when they cannot be had. The recipe's are those of its file: what ``key=value``
            on the command line changes is the student's, so that students of several settings share one teacher. It
            counts for the teacher as well where it begins with ``teacher.`` or ``data.``, or is ``seed``,
            ``precision``, ``channels_last`` or ``compile``; ``teacher.train.epochs=30`` changes the teacher's own.
            Of ``data`` it may change which images and labels there are to learn from: with ``{per_class: null}`` a
            teacher of all images teaches a student of few.
        seeds: train so many, by seeds from that of ``train`` (else the recipe's) on; the one with the best validation
            accuracy teaches, the first of equal ones. None = one.
        mean, std: by channel, in [0,1], that it was trained with; default: its export's, or those of published weights,
            else the data set's.
    """

    train: dict[str, Any] | None = None
    seeds: Annotated[int, Field(ge=1, strict=True)] | None = None
    mean: Means | None = None
    std: Deviations | None = None

    @model_validator(mode="after")
    def _classes_are_of_weights(self) -> OneTeacher:
        if self.classes is not None and self.weights is None and self.train is not None:
            raise ValueError("classes says which outputs of given weights to take; trained here, it has the data's")
        if self.seeds is not None and self.train is None:
            raise ValueError("seeds says how many are trained to choose from, and nothing trains it: set train")
        return self


class Teacher(OneTeacher):
    """The teacher, or the first of several, which answer together by the mean of their probabilities.

    Attributes:
        others: the other teachers; ``teacher: [a, b]`` says the same in short. Logits are the log of the mean of all
            softmaxes, taken at temperature 1: a term of temperature T sees its power 1/T, normalised. Features, and the
            classifier that some objectives reuse, are those of the first.
    """

    others: list[OneTeacher] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if not value:
            raise ValueError("the list of teachers is empty: name one or more")
        first, *others = value
        first = model_of(first) if isinstance(first, str) else first
        if others and not isinstance(first, Mapping):
            raise ValueError("a teacher is a name, a file, or a group of settings")
        return {**first, "others": others} if others else first

    def each(self) -> list[Teacher]:
        """All of them, each by itself."""
        found: list[OneTeacher] = [self, *(self.others or ())]
        return [Teacher.model_validate({**one.model_dump(), "others": None}) for one in found]


class Assistant(Model):
    """A network between teacher and student: taught by the one before it, it teaches the next.

    Attributes:
        train: settings that replace the recipe's, for this training.
    """

    train: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_trained(self) -> Assistant:
        if self.weights is not None:
            raise ValueError("an assistant is trained by this job and has no weights yet; a trained one is a teacher")
        if self.model is None:
            raise ValueError("an assistant needs a model")
        if self.classes is not None:
            raise ValueError("an assistant is trained by this job and has the data's classes: leave classes out")
        return self


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.05, "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4},
    "adamw": {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
    "lamb": {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.01},
}
"""Optimizers by name: the settings that each has for itself, with their defaults (SGD's are those of the CIFAR
recipes, the others' those of torch and timm)."""
_Beta = Annotated[Number, Field(ge=0, lt=1)]


class Optimizer(Part):
    """How weights are updated.

    Attributes:
        name: ``sgd`` (with momentum), ``adamw`` (Loshchilov & Hutter 2019), ``lamb`` (You et al. 2020; timm's), or the
            dotted path of a torch optimizer, ``my_pkg.optimizers:Lion``.
        lr: learning rate before the schedule; one's own optimizer has no default.
        momentum, nesterov: of ``sgd``.
        betas, eps: of ``adamw`` and ``lamb``: shares that the running means of the gradient and of its square keep at
            every step; what is added to the root of the latter.
        weight_decay: > 0 pulls weights to zero: added to the gradient (``sgd``), or to the step.
        options: further keyword arguments of one's own optimizer.
        no_decay: which parameters weight decay leaves alone: ``norm`` (those of normalisation layers), ``bias``,
            ``embedding`` (class tokens, embeddings of positions, tables of embeddings).
        clip: largest norm of the gradient of all parameters together; a larger one is scaled down.

    None stands for a setting that the optimizer does not have.
    """

    name: str = "sgd"
    lr: Annotated[Number, Field(gt=0)]
    momentum: Annotated[Number, Field(ge=0, lt=1)] | None = None
    nesterov: bool | None = None
    betas: tuple[_Beta, _Beta] | None = None
    eps: Annotated[Number, Field(gt=0)] | None = None
    weight_decay: NotNegative = 0.0
    options: dict[str, Any] | None = None
    no_decay: list[Literal["norm", "bias", "embedding"]] | None = None
    clip: Annotated[Number, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_what_its_name_says(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not value.keys() <= cls.model_fields.keys():
            return value
        name = value.get("name", "sgd")
        if not isinstance(name, str):
            return value
        if ":" in name:
            own: dict[str, Any] = {"lr": None, "weight_decay": 0.0, "options": {}}
            if value.get("lr") is None:
                raise ValueError(f"lr is missing: only {', '.join(OPTIMIZERS)} have a default")
        elif name in OPTIMIZERS:
            own = OPTIMIZERS[name]
        else:
            raise ValueError(f"unknown optimizer {quoted(name)}: {nearest(name, OPTIMIZERS)}, or a dotted path")
        given = {key: one for key, one in value.items() if one is not None}
        for key in given:
            if key not in (*own, "name", "no_decay", "clip"):
                raise ValueError(
                    f"{name} has no {key}; its settings are {', '.join(own)}, no_decay, clip. To replace another "
                    f"optimizer as a whole: optimizer={{name: {name}, lr: ...}}"
                )
        return {**own, **given, "name": name}

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Optimizer:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Schedule(Part):
    """Learning rate over the epochs.

    Attributes:
        name: ``step`` (times gamma after each milestone), ``cosine`` (to ``end_factor``), ``constant``.
        milestones: epochs.
        gamma: factor.
        warmup: epochs of linear warm-up, before anything else.
        start_factor: share of the rate at which the warm-up begins.
        end_factor: share of the rate at which a cosine ends.
    """

    name: Literal["step", "cosine", "constant"] = "step"
    milestones: list[Positive] = []
    gamma: Annotated[Number, Field(gt=0, le=1)] = 0.1
    warmup: NotNegative = 0.0
    start_factor: _Mean = 0.0
    end_factor: _Mean = 0.0

    @model_validator(mode="after")
    def _factors_are_of_something(self) -> Schedule:
        if self.start_factor and not self.warmup:
            raise ValueError("start_factor is where a warm-up begins, and there is none: set warmup")
        if self.end_factor and self.name != "cosine":
            raise ValueError(f"end_factor is where a cosine ends, and the schedule is {self.name}")
        return self


class EarlyStop(Part):
    """When a training ends before its last epoch.

    Attributes:
        patience: so many evaluations in a row (``eval_every``) without a better top-1 on the validation split end the
            main phase.
        min_delta: percentage points by which a top-1 must exceed the best one before it to be better.
    """

    patience: Positive
    min_delta: NotNegative = 0.0


def _seeds(value: Any) -> Any:
    several = isinstance(value, list) and value
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in (value if several else [value]))
    if value is not None and not (whole and (several or value >= 1)):
        raise ValueError("it is how many, as 5, or a list of whole numbers, as [0, 1, 2]")
    if several and len(set(value)) < len(value):
        raise ValueError("a seed stands there twice")
    return value


def _as_loss(value: Any) -> Any:
    return {value: 1.0} if isinstance(value, str) else value


FREE = (
    *("name", "out", "workers", "cache", "eval_batch_size", "checkpoint_gradients", "checkpoint_seconds"),
    *("track", "tensorboard", "runs", "seeds"),
)
"""Settings of a recipe that decide nothing of what a single training gives."""


class Recipe(Part):
    """One job: data, networks, stream, loss, schedule. Every field but the last four groups decides the result.

    Attributes:
        name: of the job; default: the file's.
        data, teacher, student: see their classes; the teacher may be missing where no term of the loss needs one.
        assistants: networks by which the teacher's knowledge reaches the student step by step (TAKD), largest first:
            each learns with this recipe from the one before it, the student from the last. Like the teacher, they are
            trained once for all ``runs``: with the recipe's own settings, not with those of a run.
        stream: the training chain (:mod:`kdstream.stream.language`). ``teacher`` and ``normalize`` are appended where
            missing; ``coded`` and ``teacher`` are left out where no term of the loss looks at the teacher.
        eval_stream: the evaluation chain; default ``decode``, with ``augment(eval, SIZE)``, of the same interpolation,
            where training has ``augment(inception, SIZE)``.
        loss: term -> weight, or -> {weight: ..., settings}.
        relations: over which samples the terms run that compare the samples of a batch (``kdstream objectives`` marks
            them "over the batch"): "global" = the batch of all processes together, so that any number of processes
            learns the same (each computes the relations of all samples); "local" = each process's slice of it, as
            where an authors' code gathers nothing.
        epochs, batch_size, seed: batch_size counts all processes together.
        optimizer, schedule: see their classes.
        eval_every: epochs from one evaluation to the next; the last epoch of all is always evaluated. The best epoch is
            one of those.
        early_stop: see its class; None = all epochs. The network that would be exported counts. Like ``export: best``,
            it chooses by the validation split: ``data.hold_out`` holds out one to choose by.
        accumulate: batches whose gradients are added up before each step of the optimizer.
        precision: "no" (float32), "bf16" or "fp16" (not on a CPU); None = the launcher's (``accelerate launch
            --mixed_precision``, ``accelerate config``), which is "no" where it says nothing.
        sync_batchnorm: BatchNorm of student and terms over the batch of all processes (torch's SyncBatchNorm, for GPUs)
            instead of each process's slice; of no effect with one process.
        channels_last: keep images and weights in that memory format, which suits GPUs; None = on GPUs.
        compile: torch.compile for the forward passes of teacher and student.
        checkpoint_gradients: the student's blocks keep only what enters them and compute the rest again for the
            gradient: less memory, more time, the same result.
        export: which weights become ``student.safetensors``: those of the "last" epoch, or of the "best" one by
            validation accuracy (which then is no longer an unbiased estimate).
        ema: decay of an exponential moving average of the student's weights, as 0.9999: at every step of the main phase
            it keeps this share of itself and takes the rest from the student. It is evaluated beside the student, as
            the network "ema".
        export_network: where there are several networks, as in mutual learning or with ``ema``, which of them is
            exported: the "student" that the recipe asks for, its average "ema", or the "best" of all by validation
            accuracy, whatever its architecture.
        export_all: of several networks, write every one, to peers/NAME in the run's folder ("best": as they were in
            the epoch of the best).
        runs: several students from one teacher: name -> settings that replace the recipe's.
        seeds: each run is trained once for each of these seeds, with the one teacher (of ``seed``): a list, or a
            number: so many, from ``seed`` on. None = once, with ``seed``.
        out: folder for results; default runs/NAME.
        workers: reader processes of each process; where a split is kept in memory they only decode it, once.
        cache: where decoded splits are kept (:mod:`kdstream.stream.cache`): in memory of the "host", on the "device" of
            the training, "off" = nowhere; an epoch is then a gather a batch, and gives the same batches. "auto" = for
            images of one size, without stages of one's own or random boxes before ``augment``, on a GPU, else on the
            host, where they take at most a quarter of the memory that is free; the processes of a host share it.
        eval_batch_size: in evaluation, of each process.
        checkpoint_seconds: time between checkpoints inside of an epoch; there is one after every epoch in any case.
        track: trackers that are given the rows of metrics.jsonl: any of those that Accelerate knows (wandb, mlflow,
            tensorboard, comet_ml, aim, clearml, dvclive, swanlab, trackio), or one of your own by dotted path. The
            recipe is a project, each training a run of it.
        tensorboard: true is what earlier versions called ``track: [tensorboard]``.
    """

    name: str = "recipe"
    data: Data
    teacher: Teacher | None = None
    assistants: Annotated[
        list[Assistant], BeforeValidator(lambda v: [v] if isinstance(v, str | dict) else v)  # one needs no list
    ] = []
    student: Model
    stream: str = "decode | augment(cifar)"
    eval_stream: str | None = None
    loss: Annotated[dict[str, Any], BeforeValidator(_as_loss)] = {"ce": 1.0}
    relations: Literal["global", "local"] = "global"
    epochs: Positive = 240
    eval_every: Positive = 1
    early_stop: EarlyStop | None = None
    batch_size: Positive = 64
    seed: Integer = 0
    accumulate: Positive = 1
    precision: Annotated[
        Literal["no", "bf16", "fp16"] | None,
        BeforeValidator(lambda v: "no" if v is False else v),  # YAML reads `no` as False
    ] = None
    sync_batchnorm: bool = False
    channels_last: bool | None = None
    compile: bool = False
    checkpoint_gradients: bool = False
    optimizer: Optimizer = Optimizer.model_validate({})
    schedule: Schedule = Schedule()
    export: Literal["last", "best"] = "last"
    ema: Annotated[Number, Field(gt=0, lt=1)] | None = None
    export_network: Literal["student", "ema", "best"] = "student"
    export_all: bool = False
    runs: dict[str, dict[str, Any]] = {}
    seeds: Annotated[int | list[int] | None, BeforeValidator(_seeds)] = None
    out: str | None = None
    workers: Annotated[Integer, Field(ge=0)] = 2
    cache: Annotated[
        Literal["auto", "off", "host", "device"],
        BeforeValidator(lambda v: "off" if v is False else v),  # YAML reads `off` as False
    ] = "auto"
    eval_batch_size: Positive = 256
    checkpoint_seconds: NotNegative = 60.0
    track: Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = []
    tensorboard: bool | None = None

    @property
    def trackers(self) -> list[str]:
        """The names in ``track``, each once, and what ``tensorboard`` stands for."""
        return list(dict.fromkeys([*self.track, *(["tensorboard"] if self.tensorboard else [])]))

    def fingerprint(self) -> str:
        """Hash of everything that decides the result (hex, 16 digits).

        Of the address of weights it takes what :func:`kdstream.addresses.public` leaves, so that a new token makes no
        other training: a teacher's weights are known by their own hash; for a student's, which are not, its query
        counts too. An open precision counts as "no"; :func:`kdstream.training.accelerator.settle` puts the launcher's
        in its place.
        """
        deciding = self.model_dump(mode="json", exclude=set(FREE)) | {"precision": self.precision or "no"}
        if self.export_network == "student":  # as below: it changes no older fingerprint
            del deciding["export_network"]
        del deciding["data"]["on_error"]  # where it decides anything, there is no result without it
        deciding["data"]["path"] = public(self.data.path)
        if self.ema is None:
            del deciding["ema"]
        if self.eval_every == 1:
            del deciding["eval_every"]
        if self.early_stop is None:
            del deciding["early_stop"]
        if self.relations == "global":
            del deciding["relations"]
        if not self.sync_batchnorm:
            del deciding["sync_batchnorm"]
        for group in ("optimizer", "schedule"):
            for key, value in _SILENT[group].items():
                if deciding[group][key] == value:
                    del deciding[group][key]
        for group, key in _LATER:
            for part in deciding[group] if isinstance(deciding[group], list) else [deciding[group]]:
                if part is not None and part[key] is None:
                    del part[key]
        for other in (deciding["teacher"] or {}).get("others") or []:
            if is_url(other["weights"]):
                other["weights"] = public(other["weights"])
        for role in ("teacher", "student"):
            if is_url(weights := (deciding[role] or {}).get("weights")):
                deciding[role]["weights"] = public(weights)
                if role == "student" and (query := urlsplit(weights).query):
                    deciding[role]["query"] = hashlib.sha256(query.encode()).hexdigest()
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]

    def folder(self) -> Path:
        """Where results go."""
        return Path(at_home(self.out or f"runs/{self.name}"))

    def each_seed(self) -> list[int]:
        """The seeds of ``seeds``; none where that is left out."""
        if isinstance(self.seeds, int):
            return list(range(self.seed, self.seed + self.seeds))
        return list(self.seeds or [])

    def to_yaml(self) -> str:
        """The recipe, complete, as YAML; addresses as :meth:`shown` has them."""
        return yaml.safe_dump(self.shown(), sort_keys=False)

    def shown(self) -> dict[str, Any]:
        """The recipe in plain values, as it may be kept and shown: addresses without what gives access to them."""
        return public_values(self.model_dump(mode="json", exclude_none=True))

    def variant(self, settings: Mapping[str, Any], name: str, what: str) -> Recipe:
        """A recipe with some settings replaced, for one run of several or for the teacher's training.

        Raises:
            UserError: settings that no recipe has; ``what`` names the place.
        """
        base = self.model_dump(mode="json", exclude={"runs", "seeds"})
        return make_recipe({**merge(base, settings), "name": name}, what)


_LATER = (
    *(("data", key) for key in ("num_classes", *ALTERING, "hold_out", "order")),
    ("teacher", "classes"),
    ("teacher", "seeds"),
    ("teacher", "others"),
    ("student", "classes"),
    ("assistants", "classes"),
)
"""Settings that did not always exist; at None they leave a fingerprint as it was, so that what was trained before is
found again."""


_SILENT: dict[str, dict[str, Any]] = {
    "optimizer": {"name": "sgd", **dict.fromkeys(("momentum", "nesterov", "betas", "eps", "options", "no_decay"))},
    "schedule": {"start_factor": 0.0, "end_factor": 0.0},
}
"""Likewise, with the values at which they leave it so."""


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid over it, groups merged key by key; ``loss`` is replaced as a whole, and so is an
    optimizer by another one."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _is_another(key, old, value):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def _is_another(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a group takes nothing over from the one that it replaces."""
    return key == "loss" or (key == "optimizer" and new.get("name") not in (None, old.get("name", "sgd")))


def make_recipe(
    settings: Mapping[str, Any], what: str, place: Callable[[Sequence[str | int]], str] = lambda keys: ""
) -> Recipe:
    """A checked recipe.

    Args:
        settings: as YAML gives them: plain values, see :func:`kdstream.safe_yaml.plain`, so that what is written to
            recipe.yaml, hashed, and handed on to runs and teachers is what was meant.
        what: names the recipe in messages.
        place: where a setting stands, by its keys, as "line 7: "; empty where nobody knows.

    Raises:
        UserError: the first thing that is wrong, with the nearest right name for an unknown key.
    """
    settings = plain(settings, what)
    try:
        recipe = Recipe.model_validate(settings)
    except ValidationError as error:
        first = _first(error)
        raise UserError(f"{what}: {place(first['loc'])}{_explain(first)}") from None
    if recipe.export_network == "ema" and recipe.ema is None:
        raise UserError(f"{what}: export_network: there is no average of the weights: set its decay, as ema: 0.9999")
    if recipe.compile and recipe.checkpoint_gradients:
        raise UserError(f"{what}: compile chooses for itself what to compute again: leave checkpoint_gradients out")
    places: dict[str, str] = {}
    for name, over in recipe.runs.items():
        if not re.fullmatch(r"[\w][\w .+-]*", name):
            raise UserError(f"{what}: runs: {name!r} is no name for a run: letters, digits, space, '.', '+', '-' only")
        if (other := places.setdefault(run_folder(name), name)) != name:
            raise UserError(f"{what}: runs {other!r} and {name!r} would share a folder: rename one of them")
        _refuse(over, SHARED, f"{what}: runs.{name}", "it is one for the whole recipe")
        if recipe.seeds is not None:
            _refuse(over, ("seed",), f"{what}: runs.{name}", "seeds gives all runs theirs")
        recipe.variant(over, name, f"{what}: runs.{name}")
    if recipe.teacher is not None and recipe.teacher.train is not None:
        own = _beside_its_images(recipe.teacher.train)
        _refuse(own, SHARED, f"{what}: teacher.train", "it is one for the whole recipe")
        if "data" in recipe.teacher.train and recipe.data.hold_out is not None:
            raise UserError(
                f"{what}: teacher.train.data would let the teacher see what data.hold_out holds out: leave one out"
            )
    for i, assistant in enumerate(recipe.assistants):
        where = f"{what}: assistants.{i}.train"
        _refuse(assistant.train, SHARED, where, "it is one for the whole recipe")
        _refuse(assistant.train, ("student", "assistants"), where, "the list of assistants says who learns from whom")
    return recipe


def run_folder(name: str) -> str:
    """The name of the folder of one run of several."""
    return name.replace(" ", "_")


SHARED = ("data", "teacher", "precision", "out", "name", "runs", "seeds")
"""What all trainings of a job share and none of them can have for itself."""


def _beside_its_images(train: Mapping[str, Any]) -> dict[str, Any]:
    """A teacher's own settings without a ``data`` that only says what is left of the recipe's training split."""
    data = train.get("data")
    own = isinstance(data, Mapping) and set(data) <= set(ALTERING)
    return {key: value for key, value in train.items() if key != "data" or not own}


def _refuse(over: Mapping[str, Any], keys: Sequence[str], where: str, why: str) -> None:
    for key in keys:
        if key in over:
            raise UserError(f"{where} cannot have its own {key!r}: {why}")


def _first(error: ValidationError) -> Any:
    return min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")


def _explain(first: Any) -> str:
    path = [str(part) for part in first["loc"]]
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        part: Any = Recipe
        for name in path[:-1]:
            if name.isdigit():  # within a list
                continue
            part = _part_class(part.model_fields[name].annotation)
        return f"unknown setting {public_quoted(where)}: {nearest(path[-1], part.model_fields)}"
    if first["type"] == "missing":
        return f"{where} is missing"
    said = first["msg"].removeprefix("Value error, ")
    text = f"{where}: {said[:1].lower()}{said[1:]}"
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):
        return text  # said of a whole group by a validator of ours, which names what it means
    text = f"{text}; it is {public(repr(first['input']))[:60]}"
    if first["type"] == "string_type" and isinstance(first["input"], bool | int | float):
        text += ": put it in quotes" + (
            "; YAML reads yes, no, on and off so" if isinstance(first["input"], bool) else ""
        )
    return text


def _part_class(annotation: Any) -> Any:
    """The group of settings that a type names; None: it names none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_part_class, getattr(annotation, "__args__", ()))), None)


def public_quoted(text: str) -> str:
    """A text of the user's in a message, without a token that it may hold."""
    return quoted(public(text), most=100)


def at_home(path: str) -> str:
    """A path whose leading ``~`` is the home folder's, also behind a source's name (``imagefolder:~/birds``)."""
    source, colon, place = path.rpartition(":")
    return f"{source}{colon}{os.path.expanduser(place)}" if place.startswith("~") else path


def model_of(text: str) -> dict[str, str]:
    """The group that a network in one word stands for: its name, or weights by file, address or published name."""
    if is_published(text):
        return {"weights": text}
    is_file = "/" in text or "\\" in text or Path(text).suffix in {".pth", ".pt", ".th", ".safetensors", ".json"}
    is_address = "://" in text
    return {"weights" if is_address or (is_file and ":" not in text) else "model": text}
