"""The loss of a recipe: a weighted sum of terms, read once; and the table of the objectives that it may name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.objectives.common.settings import NotNegative, checked
from kdstream.objectives.presets import expanded
from kdstream.objectives.term import Build, Phase, Task, Term
from kdstream.registry import Registry, nearest

OBJECTIVES = Registry(
    "objective",
    {
        "ab": "kdstream.objectives.ab:ActivationBoundary",
        "at": "kdstream.objectives.at:AttentionTransfer",
        "bss": "kdstream.objectives.bss:BoundarySupportingSamples",
        "cc": "kdstream.objectives.cc:CorrelationCongruence",
        "ce": "kdstream.objectives.ce:CrossEntropy",
        "cmkd": "kdstream.objectives.cmkd:CorrelationMatching",
        "confidence_penalty": "kdstream.objectives.confidence_penalty:ConfidencePenalty",
        "crd": "kdstream.objectives.crd:CRD",
        "ctkd": "kdstream.objectives.ctkd:CurriculumTemperature",
        "dist": "kdstream.objectives.dist:DIST",
        "dkd": "kdstream.objectives.dkd:DecoupledKD",
        "dml": "kdstream.objectives.dml:DeepMutualLearning",
        "fitnet": "kdstream.objectives.fitnet:FitNet",
        "fsp": "kdstream.objectives.fsp:FlowOfSolution",
        "ft": "kdstream.objectives.ft:FactorTransfer",
        "ijckd": "kdstream.objectives.ijckd:IJCKD",
        "itrd": "kdstream.objectives.itrd:ITRD",
        "kd": "kdstream.objectives.kd:KnowledgeDistillation",
        "kdpp": "kdstream.objectives.kdpp:NormAndDirection",
        "kdsvd": "kdstream.objectives.kdsvd:SingularValueTransfer",
        "label_smoothing": "kdstream.objectives.label_smoothing:LabelSmoothing",
        "logit_mse": "kdstream.objectives.logit_mse:LogitMatching",
        "nkd": "kdstream.objectives.nkd:NormalisedKD",
        "nst": "kdstream.objectives.nst:NeuronSelectivity",
        "ofd": "kdstream.objectives.ofd:OverhaulOfFeatureDistillation",
        "one": "kdstream.objectives.one:OnTheFlyNativeEnsemble",
        "pearson": "kdstream.objectives.pearson:Pearson",
        "pkt": "kdstream.objectives.pkt:ProbabilisticTransfer",
        "renyi": "kdstream.objectives.renyi:RenyiRegularisedKD",
        "reviewkd": "kdstream.objectives.reviewkd:ReviewKD",
        "rkd": "kdstream.objectives.rkd:RelationalKD",
        "simkd": "kdstream.objectives.simkd:SimKD",
        "sp": "kdstream.objectives.sp:SimilarityPreserving",
        "spearman": "kdstream.objectives.spearman:Spearman",
        "srrl": "kdstream.objectives.srrl:SRRL",
        "tald": "kdstream.objectives.tald:AdversarialLocalDistribution",
        "ttm": "kdstream.objectives.ttm:TransformedTeacherMatching",
        "vid": "kdstream.objectives.vid:VariationalInformation",
        "vitkd": "kdstream.objectives.vitkd:ViTKD",
        "wsld": "kdstream.objectives.wsld:WeightedSoftLabels",
        "wttm": "kdstream.objectives.wttm:WeightedTransformedTeacherMatching",
    },
)


class WeightedTerm(NamedTuple):
    """One summand of a loss: its name in the recipe (short or dotted), its outer weight >= 0, and the term."""

    name: str
    weight: float
    term: Term


class Loss(Sequence[WeightedTerm]):
    """A weighted sum of terms, in the recipe's order; what they need of a training, asked of all of them together.

    Args:
        terms: the summands.
    """

    def __init__(self, terms: Iterable[WeightedTerm]):
        self._summands = tuple(terms)

    def __getitem__(self, place: Any) -> Any:
        return self._summands[place]

    def __len__(self) -> int:
        return len(self._summands)

    def __iter__(self) -> Iterator[WeightedTerm]:
        return iter(self._summands)

    @property
    def terms(self) -> list[Term]:
        """The terms, without names and weights."""
        return [summand.term for summand in self._summands]

    @property
    def asking(self) -> list[str]:
        """Names of the terms that look at a teacher."""
        return [summand.name for summand in self._summands if summand.term.uses_teacher]

    @property
    def uses_teacher(self) -> bool:
        """Whether any term looks at a teacher."""
        return bool(self.asking)

    @property
    def student_taps(self) -> list[str]:
        """Taps of the student that the terms read."""
        return list(dict.fromkeys(tap for term in self.terms for tap in term.student_taps))

    @property
    def teacher_taps(self) -> list[str]:
        """Taps of the teacher that the terms read."""
        return list(dict.fromkeys(tap for term in self.terms for tap in term.teacher_taps))

    @property
    def main(self) -> Loss:
        """The terms that act in the main phase."""
        return Loss(summand for summand in self._summands if summand.term.in_main)

    @property
    def builds(self) -> list[dict[str, Any]]:
        """Arguments of ``build`` for the networks that the terms will build in their set-up."""
        return [dict(spec) for term in self.terms for spec in term.builds]

    @property
    def exports(self) -> list[str]:
        """In words, what the terms make of the student that is exported."""
        return [term.exports for term in self.terms if term.exports]

    def phases(self) -> list[tuple[WeightedTerm, Phase]]:
        """The phases before the main one, in order, each with the summand whose it is."""
        return [(summand, phase) for summand in self._summands for phase in summand.term.phases()]

    def adapt(self, student: nn.Module, teacher: nn.Module | None, image: Tensor, build: Build) -> nn.Module:
        """The student after the surgery of every term, see :meth:`Term.adapt`."""
        for term in self.terms:
            student = term.adapt(student, teacher, image, build)
        return student

    def setup(self, task: Task) -> None:
        """Set every term up, see :meth:`Term.setup`."""
        for term in self.terms:
            term.over_slices = task.relations == "local"
            term.setup(task)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Tell every term of a new epoch of the main phase, see :meth:`Term.begin_epoch`."""
        for term in self.terms:
            term.begin_epoch(epoch, epochs)

    def deploy(self, student: nn.Module) -> nn.Module:
        """What is evaluated and exported of the adapted student; what was put on last comes off first."""
        for term in reversed(self.terms):
            student = term.deploy(student)
        return student

    def peers(self) -> dict[str, nn.Module]:
        """The other networks that are trained beside the student: name -> plain network."""
        return {name: peer for term in self.terms for name, peer in term.peers().items()}

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> tuple[Tensor, Tensor]:
        """Total (scalar) and the unweighted value of each term (float32 [T], detached); see :func:`weighted_sum`."""
        return weighted_sum([(w, term) for _, w, term in self._summands], student, teacher, batch)


def weighted_sum(
    losses: Sequence[tuple[float, Callable[..., Tensor]]], student: Outputs, teacher: Outputs | None, batch: Batch
) -> tuple[Tensor, Tensor]:
    """The weighted sum of losses of one batch.

    Args:
        losses: (weight, what gives the loss of (student, teacher, batch)).
        student, teacher, batch: see :meth:`Term.forward`.

    Returns:
        The sum (scalar), and the unweighted values (float32 [T], detached).
    """
    values = [loss(student, teacher, batch) for _, loss in losses]
    total = sum(
        (weight * value for (weight, _), value in zip(losses, values, strict=True)),
        start=torch.zeros((), device=student.logits.device),
    )
    return total, torch.stack([value.detach().float() for value in values])


def parse_loss(loss: str | Mapping[str, Any]) -> Loss:
    """The terms of a recipe's ``loss``, in the recipe's order.

    Args:
        loss: name -> weight, or name -> settings: ``{ce: 0.1, kd: {weight: 0.9, temperature: 4}}``. A name is a
            short one of :data:`OBJECTIVES` or a dotted path ``my_pkg.losses:MyTerm``. ``weight`` is the outer weight,
            a finite number >= 0, 1 where it is not given; every other setting is a keyword argument of the term
            (which therefore cannot have one called ``weight``). Nothing after a name (``kd:`` alone on its line)
            means no settings. A plain text names a single term of weight 1. Published settings
            (:mod:`kdstream.objectives.presets`) go by name, and those beside them go before: of a term,
            ``{ce: 1, wttm: {preset: cifar100/vgg13-vgg8}}``, or of a whole loss,
            ``{preset: ttm/wttm+crd/cifar100/vgg13-vgg8, crd: 0.5}``.

    Returns:
        New terms, before :meth:`Term.setup`.

    Raises:
        UserError: nothing named; every weight 0; an unknown name, preset or setting (the nearest right one is
            proposed); a weight or setting of the wrong type or range; a dotted path to something that is no Term.
    """
    if isinstance(loss, str):
        loss = {loss: 1}
    if not isinstance(loss, Mapping):
        raise UserError(f"loss must map objectives to weights or settings, such as {{ce: 0.1, kd: 0.9}}; got {loss!r}")
    if not loss:
        raise UserError("loss is empty: name at least one objective, such as {ce: 1}")
    terms = Loss(_weighted_term(name, spec) for name, spec in expanded(loss).items())
    if not any(weight for _, weight, _ in terms):
        raise UserError("loss: every weight is 0, which leaves nothing to learn; set one > 0")
    return terms


def _weighted_term(name: Any, spec: Any) -> WeightedTerm:
    if not isinstance(name, str):
        raise UserError(f"loss: the name of an objective must be text, got {name!r}; {nearest(str(name), OBJECTIVES)}")
    try:
        factory = OBJECTIVES.find(name)
    except UserError as error:
        raise UserError(f"loss: {error}") from error
    where = f"loss.{name}"
    if spec is None:
        spec = {}
    settings = dict(spec) if isinstance(spec, Mapping) else {"weight": spec}
    weight = checked(where, "weight", settings.pop("weight", 1), NotNegative)
    if not (inspect.isclass(factory) and issubclass(factory, Term)):
        raise UserError(f"{where}: not a subclass of kdstream.objectives.Term, but {factory!r}")
    _check_settings(where, factory, settings)
    return WeightedTerm(name, weight, factory(**settings))


def _check_settings(where: str, factory: type[Term], settings: Mapping[Any, Any]) -> None:
    """That every setting is a keyword argument of the term, and that none it needs is missing."""
    parameters: Mapping[str, inspect.Parameter] = {}
    if factory.__init__ is not nn.Module.__init__:  # nn.Module's takes anything in its signature, and refuses it later
        parameters = inspect.signature(factory).parameters
    by_name = {
        key: parameter
        for key, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in settings:
        if not isinstance(key, str) or (key not in by_name and not takes_any):
            raise UserError(f"{where}: unknown setting {key!r}: {nearest(str(key), {*by_name, 'weight'})}")
    missing = [
        key for key, parameter in by_name.items() if parameter.default is parameter.empty and key not in settings
    ]
    if missing:
        raise UserError(f"{where}: needs a value for {', '.join(missing)}")
