"""What each of two processes keeps of the weights, gradients and optimizer's state, beside what ZeRO promises.

    python benchmarks/zero.py

Bytes of tensors, counted in a training run of `diagnosis.yaml` when its optimizer is about to step for the second time.
The promise (Rajbhandari et al., ZeRO, SC 2020, https://arxiv.org/abs/1910.02054) is of one number in float32 for each
weight and gradient and two for each of Adam's; DeepSpeed keeps a copy of the weights for the optimizer beside them,
which counts as its state.
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
        held = {mode: measured(mode, data, Path(scratch) / mode) for mode in MODES}
    learned, frozen = held["DDP"]["learned"], held["DDP"]["frozen"]
    print(f"{PROCESSES} processes, {learned / 2**18:.1f} MiB of weights that learn, {frozen / 2**18:.1f} MiB frozen\n")
    print(f"{'MiB per process':16}" + "".join(f"{kind:>12}{'(promise)':>11}" for kind in KINDS) + f"{'together':>12}")
    for mode, sizes in held.items():
        cells = [f"{sizes[kind] / 2**20:12.1f}{promise(mode, kind, learned, frozen) / 2**20:11.1f}" for kind in KINDS]
        print(f"{mode:16}" + "".join(cells) + f"{sum(sizes[kind] for kind in KINDS) / 2**20:12.1f}")


def promise(mode: str, kind: str, learned: int, frozen: int) -> float:
    """Bytes per process, from how many weights there are."""
    whole = {"weights": 4 * (learned + frozen), "gradients": 4 * learned, "state": 8 * learned}[kind]
    if mode == "DDP":
        return whole
    copies = 4 * learned if kind == "state" else 0
    stage, split_from = int(mode[-1]), {"state": 1, "gradients": 2, "weights": 3}[kind]
    return (whole + copies) / (PROCESSES if stage >= split_from else 1)


def measured(mode: str, data: Path, output: Path) -> dict[str, int]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    command = [sys.executable, *launch, __file__, mode, str(data), str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"weights"')))


def count(mode: str, data: str, output: str) -> None:
    """Of the process that it runs in; the first prints."""
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

    def watched(self, *arguments):
        optimizer = create(self, *arguments)
        return optimizer if self.is_deepspeed_enabled else watch(optimizer, self.model)

    def watch(optimizer, model):
        step = optimizer.step

        def counted(*arguments, **options):
            sizes.update(tally(model, optimizer))
            return step(*arguments, **options)

        optimizer.step = counted
        return optimizer

    def began(self, *arguments, **options):
        result = wrap(self, *arguments, **options)
        if self.is_deepspeed_enabled:
            watch(self.model_wrapped.optimizer, self.model)
        return result

    wrap = DiagnosisTrainer._prepare_for_training
    DiagnosisTrainer.create_optimizer = watched
    DiagnosisTrainer._prepare_for_training = began
    diagnosis.train(read_diagnosis_config("diagnosis.yaml", changes))
    if distributed.get_rank() == 0:
        print(json.dumps(sizes))


def tally(model, optimizer) -> dict[str, int]:
    parameters = list(model.parameters())
    names = ("averaged_gradients", "_DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition")
    names += ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")
    averaged, partitions, *masters = (getattr(optimizer, name, None) for name in names)
    inner = getattr(optimizer, "optimizer", optimizer)
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in parameters]
    return {
        "weights": size([*parameters, *(getattr(p, "ds_tensor", None) for p in parameters)]),
        "gradients": size([*(p.grad for p in parameters), averaged, partitions]),
        "state": size([dict(inner.state), *masters]),
        "learned": sum(numel for numel, learns in sizes if learns),
        "frozen": sum(numel for numel, learns in sizes if not learns),
    }


def size(held: Iterable) -> int:
    """Bytes, each only once however many tensors share them."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(held)}.values())


def tensors(held) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held.detach()
    elif isinstance(held, dict):
        yield from tensors(list(held.values()))
    elif isinstance(held, list | tuple):
        for each in held:
            yield from tensors(each)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        count(*sys.argv[1:])
    else:
        main()
