"""Memory of weights, gradients and optimizer state with DDP and ZeRO, per process of two, compared with theory.

    python benchmarks/zero.py

For each mode `diagnosis.yaml` is trained for two steps on phantoms. The bytes of the tensors are counted when the
optimizer is about to step for the second time. The expected values follow from the numbers of weights (Rajbhandari et
al., ZeRO, SC 2020, https://arxiv.org/abs/1910.02054): one float32 number for each weight and each gradient, and two for
each weight that Adam trains. DeepSpeed also keeps a copy of the weights for the optimizer, which counts as its state.
The table has the measured and the expected MiB of each mode.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor, distributed

from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.train import diagnosis
from radfm.train.config import packaged_config
from radfm.train.diagnosis_config import read_diagnosis_config
from radfm.train.diagnosis_trainer import DiagnosisTrainer

MODES = {"DDP": None, "ZeRO-1": "zero1.json", "ZeRO-2": "zero2.json", "ZeRO-3": "zero3.json"}
PROCESSES = 2
KINDS = ("weights", "gradients", "state")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "phantoms"
        prepare(Phantoms(20, size=96), data, Settings(size=96, fractions=(0.8, 0.2, 0.0)))
        measured = {mode: train_in_mode(mode, data, Path(scratch) / mode) for mode in MODES}
    trained, frozen = measured["DDP"]["trained"], measured["DDP"]["frozen"]
    print(f"{PROCESSES} processes, {trained / 2**18:.1f} MiB of trained weights", end=", ")
    print(f"{frozen / 2**18:.1f} MiB of frozen weights\n")
    print(f"{'MiB per process':16}" + "".join(f"{kind:>12}{'(expected)':>11}" for kind in KINDS) + f"{'total':>12}")
    for mode, sizes in measured.items():
        cells = [
            f"{sizes[kind] / 2**20:12.1f}{expected_bytes(mode, kind, trained, frozen) / 2**20:11.1f}" for kind in KINDS
        ]
        print(f"{mode:16}" + "".join(cells) + f"{sum(sizes[kind] for kind in KINDS) / 2**20:12.1f}")


def expected_bytes(mode: str, kind: str, trained: int, frozen: int) -> float:
    """Expected bytes per process, from the numbers of trained and frozen weights."""
    whole = {"weights": 4 * (trained + frozen), "gradients": 4 * trained, "state": 8 * trained}[kind]
    if mode == "DDP":
        return whole
    copies = 4 * trained if kind == "state" else 0
    stage, first_stage = int(mode[-1]), {"state": 1, "gradients": 2, "weights": 3}[kind]
    return (whole + copies) / (PROCESSES if stage >= first_stage else 1)


def train_in_mode(mode: str, data: Path, output: Path) -> dict[str, int]:
    """Trains with two processes and returns the byte counts of the first."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    command = [sys.executable, *launch, __file__, mode, str(data), str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        sys.exit(process.stderr[-3000:])
    return json.loads(next(line for line in process.stdout.splitlines() if line.startswith('{"weights"')))


def count(mode: str, data: str, output: str) -> None:
    """Trains in this process and counts its bytes. The first process prints them as JSON."""
    changes = [
        f"data={data}",
        f"output={output}",
        "sampling.slices_per_step=32",
        "training.max_steps=2",
        "training.bf16=false",
    ]
    changes += ["training.eval_strategy=no", "training.save_steps=2", "training.disable_tqdm=true"]
    changes += [f"training.deepspeed={packaged_config(MODES[mode])}"] if MODES[mode] else []
    create = DiagnosisTrainer.create_optimizer
    sizes = {}

    def create_and_watch(self, *arguments):
        optimizer = create(self, *arguments)
        return optimizer if self.is_deepspeed_enabled else watch(optimizer, self.model)

    def watch(optimizer, model):
        step = optimizer.step

        def count_and_step(*arguments, **options):
            sizes.update(byte_counts(model, optimizer))
            return step(*arguments, **options)

        optimizer.step = count_and_step
        return optimizer

    def prepare_and_watch(self, *arguments, **options):
        result = prepare_for_training(self, *arguments, **options)
        if self.is_deepspeed_enabled:
            watch(self.model_wrapped.optimizer, self.model)
        return result

    prepare_for_training = DiagnosisTrainer._prepare_for_training
    DiagnosisTrainer.create_optimizer = create_and_watch
    DiagnosisTrainer._prepare_for_training = prepare_and_watch
    diagnosis.train(read_diagnosis_config("diagnosis.yaml", changes))
    if distributed.get_rank() == 0:
        print(json.dumps(sizes))


def byte_counts(model, optimizer) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer state here, and the numbers of trained and frozen weights."""
    parameters = list(model.parameters())
    names = ("averaged_gradients", "_DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition")
    names += ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")
    averaged, partitions, *masters = (getattr(optimizer, name, None) for name in names)
    inner = getattr(optimizer, "optimizer", optimizer)
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in parameters]
    return {
        "weights": storage_bytes([*parameters, *(getattr(p, "ds_tensor", None) for p in parameters)]),
        "gradients": storage_bytes([*(p.grad for p in parameters), averaged, partitions]),
        "state": storage_bytes([dict(inner.state), *masters]),
        "trained": sum(numel for numel, trainable in sizes if trainable),
        "frozen": sum(numel for numel, trainable in sizes if not trainable),
    }


def storage_bytes(values: Iterable) -> int:
    """Bytes of all tensors in a nested structure. Storage that tensors share is counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(values)}.values())


def tensors(values) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values.detach()
    elif isinstance(values, dict):
        yield from tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors(value)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        count(*sys.argv[1:])
    else:
        main()
