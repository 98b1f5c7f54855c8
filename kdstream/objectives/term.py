"""What a distillation objective is: a term of the loss, and the optional hooks of those that need more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.gather import gather
from kdstream.objectives.common.settings import declared
from kdstream.objectives.common.tap_groups import settling

Relations = Literal["global", "local"]
Build = Callable[..., Any]
""":func:`kdstream.models.build`: it gives the network that is asked for, an ``nn.Module`` of whatever class."""


class Network(Protocol):
    """A network as a term sees it: images [N,3,H,W], standardised as ``Batch.image`` is -> Outputs."""

    @property
    def module(self) -> nn.Module:
        """The plain network."""

    @property
    def classifier(self) -> nn.Linear:
        """Its last linear layer."""

    @property
    def paths(self) -> dict[str, str]:
        """Tap name -> module path, of the taps that the loss asked for."""

    def __call__(self, images: Tensor) -> Outputs: ...


@dataclass(frozen=True)
class Task:
    """What a term may know when it is set up.

    Attributes:
        num_classes: C.
        num_samples: size of the training set; ``Batch.index`` runs over 0..num_samples-1.
        epochs: length of the main phase.
        student_outputs: the student's answer to a probe batch (N=2): the shapes of the taps that the term asked for.
        teacher_outputs: the teacher's answer to the same probe, or None when the job has no teacher.
        student: images [N,3,H,W], standardised as ``Batch.image`` is -> Outputs; the network in training. A term that
            needs a further forward pass (on attacked inputs, say) calls it inside :meth:`Term.forward`; it works under
            several processes. See :class:`Network`.
        teacher: the same for the teacher, frozen and in eval mode; takes the same images (where its own mean and
            standard deviation differ it converts them) and lets gradients through to them. None without a teacher.
        labels: int64 [num_samples], the class of every training sample by index, read-only; None when unknown.
        build: :func:`kdstream.models.build`, for terms that bring networks of their own.
        mean, std: by channel, in [0,1], what the images were standardised with; None when unknown.
        smallest_batch: the fewest samples that one process sees in one forward pass of an epoch: the smallest batch
            divided among the processes, rounded down. Stages that drop samples make it smaller still. None when
            unknown.
        smallest_related: the fewest samples that a term ``over_batch`` compares: those of the smallest batch, or
            ``smallest_batch`` where ``relations`` is "local". None when unknown.
        relations: the recipe's, see :attr:`Term.over_batch`.

    Keep the task itself (``self.task = task``) rather than its networks: a network assigned to a term becomes a part
    of it, with its parameters.
    """

    num_classes: int
    num_samples: int
    epochs: int
    student_outputs: Outputs
    teacher_outputs: Outputs | None = None
    student: Network = None  # type: ignore[assignment]  # every training has one; tests of terms that ask none do not
    teacher: Network | None = None
    labels: Tensor | None = None
    build: Build = None  # type: ignore[assignment]  # as with the student
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    smallest_batch: int | None = None
    smallest_related: int | None = None
    relations: Relations = "global"


@dataclass(frozen=True)
class Phase:
    """A stage of training that runs before the main one, as FitNet, FSP, AB and FT have.

    Attributes:
        name: shown in progress and metrics ("fitnet.hint").
        epochs: its length.
        lr: learning rate at its start; every other optimizer setting is the recipe's.
        milestones: epochs of the phase after which the rate is multiplied by ``gamma``.
        gamma: the factor.
        loss: name of the term's method that gives the phase's loss; same arguments as ``forward``.
        trains: "student" = the student's and the term's parameters that the loss reaches; "term" = the term's only;
            "nothing" = forward passes that fill buffers (each process sees its slice: the term sums over them).
    """

    name: str
    epochs: int
    lr: float
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    loss: str = "forward"
    trains: Literal["student", "term", "nothing"] = "student"


class Term(nn.Module):
    """One term of a loss. A recipe's loss is a weighted sum of terms; the outer weight is not the term's business.

    A subclass takes its hyper-parameters as keyword arguments, whose annotations may say what is allowed
    (:mod:`kdstream.objectives.common.settings`: ``temperature: Positive = 4.0``), names the taps that it reads, creates
    in :meth:`setup` what it trains beside the student, and maps (student, teacher, batch) to a scalar in
    :meth:`forward`. Everything else below is optional.
    """

    student_taps: Sequence[str] = ()
    """Taps of the student that ``forward`` reads. May be set per instance, in ``__init__``. Groups of them
    (``block*``, ``block*.pre``, ``block.last``: :mod:`kdstream.tap_names`) stand for what the network has; when
    :meth:`setup` begins they are spelled out, here and in ``teacher_taps``."""
    teacher_taps: Sequence[str] = ()
    """Taps of the teacher that ``forward`` reads."""
    uses_teacher: bool = True
    """False for terms of labels alone (cross-entropy and the like)."""
    in_main: bool = True
    """False: the term acts in its phases only and contributes nothing to the main phase."""
    exports: str = ""
    """In words, for display and ``result.json``: what of the student is exported, where that is not all of it, or more
    than the recipe names."""
    builds: Sequence[Mapping[str, Any]] = ()
    """Keyword arguments of ``build`` (without ``num_classes``) for the networks that ``setup`` will build, so that a
    wrong name is found before any work begins."""
    over_batch: bool = False
    """True: the term compares the samples of a batch with each other, so that its value over a slice of the batch is
    another one than over all of it. Its ``forward`` puts what it compares through :meth:`whole` first, and with several
    processes learns the same as with one, unless the recipe says ``relations: local``."""
    over_slices: bool = False
    """True: the recipe says ``relations: local``; :meth:`Loss.setup <kdstream.objectives.loss.Loss.setup>` notes it."""
    asks_again: bool = False
    """True: ``forward`` calls the student once more, and not always on all processes."""
    replicated: Sequence[str] = ()
    """Buffers that the term itself keeps equal on all processes (memory banks, tables of the data set), by name or by
    the name of the submodule that holds them. They are not sent to the other processes at every step, as buffers else
    are."""

    keeps: str = ""
    """In words, what the term keeps of single samples or classes from step to step, which an image mixed of two of them
    would spoil: such a term is refused beside mixup and cutmix. Other terms find the mixture's shares of the classes in
    ``batch.target`` and its main class in ``batch.label``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Have what is given to the class's ``__init__`` checked by its annotations, wherever a term is made, and
        groups among its taps spelled out before its ``setup``."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = declared(cls, cls.__init__)  # type: ignore[method-assign]  # the same, behind the check
        if "setup" in vars(cls):
            cls.setup = settling(cls.setup)  # type: ignore[method-assign]  # the same, with taps by name

    @settling
    def setup(self, task: Task) -> None:
        """Create connectors, embeddings, banks. Called once, before training, on the CPU."""

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The term's value.

        Args:
            student: logits [N,C] and the taps named in ``student_taps``, with gradient.
            teacher: the (coded) teacher's, detached. A term whose ``uses_teacher`` is False gets None where
                the job has no teacher, and writes ``Outputs | None`` here.
            batch: labels (``batch.target``: of mixed images, their shares [N,C]), indices, images.

        Returns:
            A scalar, without the outer weight.
        """
        raise TypeError(f"{type(self).__name__} does not define forward(student, teacher, batch)")

    def whole(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Each part [n,...] with the samples of all processes, [N,...], in the order of the batch and with gradient
        (:func:`kdstream.objectives.common.gather.gather`); with ``relations: local`` or one process as it is."""
        return parts if self.over_slices else gather(*parts)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Told at the start of every epoch of the main phase (counted from 0), also after a resume: for ramps."""

    def phases(self) -> Sequence[Phase]:
        """Phases to run before the main one, in order."""
        return ()

    def adapt(self, student: nn.Module, teacher: nn.Module | None, image: Tensor, build: Build) -> nn.Module:
        """Student surgery: the network that is trained and evaluated in place of ``student``.

        Called before :meth:`setup` with the plain networks. Parameters that are frozen here (a reused classifier) stay
        frozen.

        Args:
            student, teacher: images -> logits, on the CPU.
            image: float [2,3,H,W], what both will see.
            build: :func:`kdstream.models.build`. A network that it built (by dotted path with the parts' ``spec`` as
                arguments, say) carries the ``spec``, ``taps`` and ``classifier_path`` that training and export need.
        """
        return student

    def deploy(self, student: nn.Module) -> nn.Module:
        """What is evaluated and exported of the (adapted) student; shares its parameters. The whole of it, unless a
        term takes branches off again."""
        return student

    def peers(self) -> dict[str, nn.Module]:
        """Further networks that this term trains and that may be deployed (mutual learning): name -> plain network.

        They are submodules of the term; each is evaluated beside the student, which is what is exported unless the
        recipe says ``export_network: best`` or ``export_all``.
        """
        return {}
