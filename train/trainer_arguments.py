"""transformers' TrainingArguments of a stage, accelerate's Accelerator, and how a module is started by torchrun."""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import TrainingArguments

from radfm.cli.console import one_line
from radfm.cli.memory import keep_freed_memory
from radfm.train.config import own_or_packaged

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for another, and warn that there is none

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def trainer_arguments(kind: type[Arguments], given: dict[str, Any], **defaults: Any) -> Arguments:
    """The Trainer's arguments: `given`, else `defaults`, else what fits the machine.

    Args:
        given: as in a configuration; `deepspeed` may be the name of a file in `train/configs/`.
    """
    if isinstance(deepspeed := given.get("deepspeed"), str):
        given = given | {"deepspeed": str(own_or_packaged(deepspeed))}
    if "num_train_epochs" in given:
        given = {"max_steps": -1} | given  # a default of max_steps would take precedence
    several_processes, on_cpu = int(os.environ.get("WORLD_SIZE", 1)) > 1, not torch.cuda.is_available()
    machine = {
        "use_cpu": on_cpu,
        "ddp_backend": "gloo" if several_processes and on_cpu else None,
        "report_to": ["tensorboard"],
        "optim": "adamw_torch_fused",  # the same in a fifth of the time, on CPUs too
    }
    return kind(**machine | defaults | given)


def start_accelerator(bf16: bool, **arguments: Any) -> Accelerator:
    """accelerate's `Accelerator` for a loop of our own, whatever another training in this process has set.

    Args:
        bf16: whether to compute in bfloat16.
        arguments: of `Accelerator`.
    """
    AcceleratorState._reset_state()
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16" if bf16 else "no", **arguments)


def run_module(work: Callable[[list[str]], Any], usage: str) -> None:
    """The main function of a module that torchrun and DeepSpeed's launcher start; an error ends in one line.

    Args:
        work: gets the arguments of the command line.
        usage: a description of these arguments.
    """
    given = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]  # added by DeepSpeed
    try:
        if not given:
            raise ValueError(f"no arguments were given; usage: {usage}")
        keep_freed_memory()
        work(given)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # NCCL warns of a group that exists at exit
    except (ValueError, OSError) as error:
        sys.exit(f"radfm: {one_line(error)}")
