"""Where and in which precision a training runs: what Accelerate offers, checked against what kdstream can do."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType, DynamoBackend, GradientAccumulationPlugin, TorchDynamoPlugin

from kdstream.errors import UserError
from kdstream.recipe import Recipe

PRECISIONS = ("no", "bf16", "fp16")
PRECISION = "ACCELERATE_MIXED_PRECISION"
"""Where ``accelerate launch`` leaves --mixed_precision, and what ``accelerate config`` asked for."""
_REFUSED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "Accelerate's parallelism config",
}
_KINDS = {
    DistributedType.FSDP: "FSDP",
    DistributedType.DEEPSPEED: "DeepSpeed",
    DistributedType.MEGATRON_LM: "Megatron-LM",
    DistributedType.XLA: "TPU (XLA)",
}
_INSTEAD = (
    "kdstream keeps the networks whole on every device (DDP); choose no such plugin in `accelerate config` or on the "
    "command line of `accelerate launch` (--multi_gpu is fine)"
)


def make_accelerator(cpu: bool, precision: str | None) -> Accelerator:
    """This process's place among those that the launcher started, its device and its precision.

    The launcher decides processes and devices, and the precision where the recipe leaves it open. What else its
    environment could change about a training is the recipe's to say: it is left out, and that is said.

    Args:
        cpu: use no GPU.
        precision: the recipe's; None = the launcher's.

    Raises:
        UserError: a precision that the device does not have; a plugin that shards the networks; processes that do not
            know of each other.
    """
    for name, plugin in _REFUSED.items():
        if _is_on(os.environ.get(name, "")):
            raise UserError(f"{plugin} ({name}) is not supported: {_INSTEAD}")
    wanted = precision or _launchers_precision()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    # Accelerate joins processes without an accelerator only where the CPU is asked for; it leaves them strangers, each
    # of which takes itself for the first, otherwise.
    cpu = cpu or (world > 1 and not torch.accelerator.is_available())
    here, found = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if 0 < found < here and not cpu and not _is_on(os.environ.get("ACCELERATE_USE_CPU", "")):
        raise UserError(
            f"{here} processes were launched on a machine with {found} GPU{'s' if found > 1 else ''}, and each needs "
            f"its own: launch {found}, or train on the CPU with --cpu"
        )
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=wanted,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_plugin=TorchDynamoPlugin(backend="no", mode="default", fullgraph=False, dynamic=False),
            # The first process may be making shards.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
        )
    except (ValueError, ImportError) as error:
        place = f"one of {world} processes" if world > 1 else "this device"
        raise UserError(f"Accelerate cannot start with precision={wanted} on {place}: {error}") from None
    if accelerator.num_processes < world:
        raise UserError(
            f"{world} processes were launched, Accelerate joins {accelerator.num_processes}: launch them with "
            "`torchrun --nproc-per-node N`, or with one process for each accelerator"
        )
    _check(accelerator)
    if accelerator.is_main_process:
        for line in _left_out():
            print(f"note: {line}", file=sys.stderr, flush=True)
    return accelerator


def settle(recipe: Recipe, accelerator: Accelerator) -> Recipe:
    """The recipe with the precision in which it will run.

    Raises:
        UserError: a place that kdstream does not train in; another precision than the recipe's.
    """
    _check(accelerator)
    running = accelerator.mixed_precision
    if recipe.precision not in (None, running):
        raise UserError(
            f"recipe {recipe.name}: precision is {recipe.precision}, but Accelerate was started with {running}"
        )
    return recipe.model_copy(update={"precision": running})


def _check(accelerator: Accelerator) -> None:
    kind = _KINDS.get(accelerator.distributed_type)
    if kind is not None or accelerator.device.type == "xla":
        raise UserError(f"{kind or 'TPU (XLA)'} is not supported: {_INSTEAD}")
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise UserError(
            "Accelerate was started with a dynamo backend, which would compile what the recipe does not say: start it "
            "without (ACCELERATE_DYNAMO_BACKEND)"
        )
    precision = accelerator.mixed_precision
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision} is not supported: take one of {', '.join(PRECISIONS)}")
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError(
            "fp16 needs a GPU, this is a CPU (Accelerate would train in float32): set precision=bf16 or precision=no"
        )


def _launchers_precision() -> str:
    value = os.environ.get(PRECISION, "").strip().lower() or "no"
    if value not in PRECISIONS:
        raise UserError(
            f"the launcher asks for precision {value!r} ({PRECISION}), kdstream trains in {', '.join(PRECISIONS)}: "
            "choose one by `accelerate launch --mixed_precision` or by precision in the recipe"
        )
    return value


def _left_out() -> list[str]:
    """What the environment asks for and only a recipe decides."""
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    lines = []
    if steps != "1":
        lines.append(f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={steps} is left out: the recipe's accumulate decides")
    if compiler.lower() != "no":
        lines.append(f"ACCELERATE_DYNAMO_BACKEND={compiler} is left out: the recipe's compile decides")
    return lines


def _is_on(value: str) -> bool:
    return value.strip().lower() in ("1", "true", "t", "yes", "y", "on")
