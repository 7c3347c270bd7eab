"""Speed and memory of training, compared with the tower alone.

    python benchmarks/train.py [--data datasets/phantoms] [--config FILE] [--steps 40] [KEY=VALUE ...]

The baseline is the forward and backward pass of the tower alone, on the same slices, under the same autocast and in the
same process. Some training steps and some passes of the tower alternate, because machines are noisy. The medians over
these turns are printed. All targets are for two cores.

- "training" is measured on all cores and on one core, in slices per second and as a ratio to the tower (target 0.85).
  The other operations of a step are small and no faster on two cores, and the data are read on the same cores. They
  matter less for a larger tower than the small one of diagnosis.yaml.
- "ratio in CPU time" is the same ratio in CPU time. It does not depend on other programs, so read it on a machine that
  others use.
- "waiting for data" is the share of the time that training waits for its loader (target under 5%).
- "two processes" is their speed relative to one process. It is divided by the speed of two towers side by side, on one
  core each, relative to one tower (target 0.9). First each process has a full step, as each tower has, which doubles
  the slices of a step. Then the two processes share the step of one, and everything that a process does once per step
  is done twice. One process is pinned to one core: otherwise it would read its data on the other core.
- "memory" is the peak beyond the memory before training, per slice and with 256 slices.
- The last line compares with glibc's default, which returns freed memory to the system. All other runs keep freed
  memory, as the commands of radfm do (`radfm.cli.memory`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from transformers import TrainerCallback

from radfm.cli.memory import keep_freed_memory
from radfm.data_prep.batches.case_dataset import CaseDataset, Sampling, step_loader
from radfm.data_prep.batches.sampling import StepSampler
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.data_prep.stored_cases import load
from radfm.train.config import packaged_config
from radfm.train.diagnosis import trainer_settings
from radfm.train.diagnosis_config import TRAINING, DiagnosisTraining, read_diagnosis_config
from radfm.train.diagnosis_model import build
from radfm.train.diagnosis_trainer import DiagnosisTrainer

CONFIG = packaged_config("diagnosis.yaml")
WARM_UP = 5  # steps
STEPS, PASSES = 4, 3  # training steps and passes of the tower in one turn


class Setting(NamedTuple):
    data: Path
    config: Path
    changes: list[str]  # KEY=VALUE, applied to the config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared data set (default: 200 phantoms are generated)")
    parser.add_argument("--config", type=Path, default=CONFIG, help="a training config (default: diagnosis.yaml)")
    parser.add_argument("--steps", type=int, default=40, help="number of measured steps or turns (default: 40)")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="changes of the config, such as another tower")
    parser.add_argument("--worker", choices=["turns", "steps", "tower"], help=argparse.SUPPRESS)
    parser.add_argument("--slices", type=int, default=0, help="slices per step (default: as in the config)")
    arguments = parser.parse_args()
    if arguments.worker:
        keep_freed_memory()
        with tempfile.TemporaryDirectory() as scratch:
            work = {"turns": turns, "steps": steps, "tower": tower}[arguments.worker]
            setting = Setting(arguments.data, arguments.config, arguments.changes)
            figures = work(setting, arguments.steps, arguments.slices, scratch)
        if int(os.environ.get("RANK", 0)) == 0:
            print(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = arguments.data
        if data is None:
            data = Path(scratch) / "phantoms"
            prepare(Phantoms(200), data, Settings(size=96))
        compare(Setting(data, arguments.config, arguments.changes), arguments.steps)


def compare(setting: Setting, count: int) -> None:
    cores = os.cpu_count()
    title = " ".join([setting.config.name, *setting.changes])
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {cores} cores, {title}")
    for threads in dict.fromkeys((cores, 1)):
        figures = measure("turns", setting, count, threads)
        print(f"on {threads} core{'s' if threads > 1 else ''}")
        print(f"  tower, forward and backward      {figures['tower']:7.0f} slices/s")
        print(f"  training                         {figures['slices_per_s']:7.0f} slices/s,", end=" ")
        print(f"ratio {figures['ratio']:.2f} (target 0.85; quartiles {figures['low']:.2f} and {figures['high']:.2f})")
        print(f"  ratio in CPU time                {figures['cpu_ratio']:7.2f}")
        print(f"  waiting for data                 {figures['waiting']:7.1%} of the time (target 5%)")

    one, one_tower = measure("steps", setting, count, 1), measure("tower", setting, count, 1)
    step = read_diagnosis_config(setting.config, setting.changes).sampling.slices_per_step
    tower_scaling = two_towers_rate(setting, count) / one_tower["slices_per_s"]
    for slices, how in ((2 * step, "with a full step each"), (step, "sharing one step")):
        two = measure("steps", setting, count, 1, processes=2, slices=slices)
        scaling = two["slices_per_s"] / one["slices_per_s"]
        print(f"two processes, relative to one     {scaling:7.2f}x {how}; two towers {tower_scaling:.2f}x;", end=" ")
        print(f"ratio {scaling / tower_scaling:.2f} (target 0.9)")

    few, many = (measure("steps", setting, 12, cores, slices=slices) for slices in (64, 256))
    each = (many["peak_MiB"] - few["peak_MiB"]) / (256 - 64)
    print(f"memory                             {each:7.1f} MiB per slice; {many['peak_MiB']:,.0f} MiB with 256 slices")
    plain = measure("steps", setting, 12, cores, slices=256, keep=False)
    speed, memory = (many[figure] / plain[figure] for figure in ("slices_per_s", "peak_MiB"))
    print(f"when freed memory is returned      {1 / speed:7.2f}x the speed, {1 / memory:.2f}x the memory")


def measure(
    work: str, setting: Setting, count: int, threads: int, processes: int = 1, slices: int = 0, keep: bool = True
) -> dict:
    return result_of(start(work, setting, count, threads, processes, slices, keep=keep))


def two_towers_rate(setting: Setting, count: int) -> float:
    """Slices per second of two towers that run at the same time, on one core each."""
    runs = [start("tower", setting, count, 1, core=core) for core in range(2)]
    return sum(result_of(run)["slices_per_s"] for run in runs)


def start(
    work: str,
    setting: Setting,
    count: int,
    threads: int,
    processes: int = 1,
    slices: int = 0,
    core: int = 0,
    keep: bool = True,
) -> subprocess.Popen:
    """Starts this file as a worker.

    Args:
        threads: Number of threads of each process. One process with one thread is pinned to `core`.
        keep: Whether freed memory is kept.
    """
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), __file__, "--worker", work]
    command += ["--data", str(setting.data), "--config", str(setting.config)]
    command += ["--steps", str(count), "--slices", str(slices), *setting.changes]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    environment |= {} if keep else {"MALLOC_MMAP_MAX_": "65536"}  # the default of glibc
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if threads == processes == 1:
        psutil.Process(run.pid).cpu_affinity([core])
    return run


def result_of(run: subprocess.Popen) -> dict:
    """Waits for a worker and returns the figures that it prints as JSON."""
    out, error = run.communicate()
    if run.returncode:
        sys.exit(error)
    return json.loads(out.strip().splitlines()[-1])


def benchmark_config(setting: Setting, count: int, slices: int, output: str) -> DiagnosisTraining:
    changes = [*setting.changes, f"data={setting.data}", f"output={output}", f"training.max_steps={count}"]
    changes += ["training.report_to=[]", "training.eval_strategy=no"]
    changes += ["training.save_strategy=no", "training.disable_tqdm=true"]
    changes += [f"sampling.slices_per_step={slices}"] if slices else []
    return read_diagnosis_config(setting.config, changes)


class StepClock(TrainerCallback):
    """The start and end of the measured steps, without the warm-up."""

    def __init__(self):
        self.start = self.end = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        self.end = time.perf_counter()
        if state.global_step == WARM_UP:
            self.start = self.end


class TurnTimer(TrainerCallback):
    """Runs the tower alone after every few training steps, on the slices of the last step.

    Attributes:
        turns: For each turn the slices per second of training and of the tower, the ratio of both in CPU time, and the
            share of the time that training waited for data.
    """

    def __init__(self, loader: "TimedLoader", network, bf16: bool):
        self.loader, self.network, self.bf16 = loader, network, bf16
        self.turns: list[tuple[float, float, float, float]] = []

    def on_step_end(self, args, state, control, **kwargs):
        measured_steps = state.global_step - WARM_UP
        if measured_steps >= 0 and measured_steps % STEPS == 0:
            now, cpu_now = time.perf_counter(), time.process_time()
            last, loader = self.loader.last, self.loader
            passes = [tower_pass(self.network, last, self.bf16) for _ in range(1 + PASSES)]
            if measured_steps:
                tower_rate, tower_cpu_rate = (
                    len(last) / statistics.median(column) for column in zip(*passes[1:], strict=True)
                )
                seconds, cpu_seconds = now - self._start, cpu_now - self._cpu_start
                cpu_ratio = loader.slices / cpu_seconds / tower_cpu_rate
                self.turns.append((loader.slices / seconds, tower_rate, cpu_ratio, loader.waited / seconds))
            loader.slices = loader.waited = 0
            self._start, self._cpu_start = time.perf_counter(), time.process_time()


class TimedLoader:
    """A loader that measures how long training waits for its batches after the warm-up."""

    def __init__(self, loader):
        self.loader, self.waited, self.slices, self.batches, self.last = loader, 0.0, 0, 0, None

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        batches = iter(self.loader)
        while True:
            requested = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if self.batches >= WARM_UP:
                self.waited += time.perf_counter() - requested
                self.slices += len(batch["pixel_values"])
            self.batches, self.last = self.batches + 1, batch["pixel_values"]
            yield batch


def turns(setting: Setting, count: int, slices: int, output: str) -> dict:
    """Figures of training and of the tower alone, as medians over the turns."""
    config = benchmark_config(setting, WARM_UP + count * STEPS, slices, output)
    trainer, loader = make_trainer(config)
    network = trainer.model.radfm.slice_encoder.tower
    timer = TurnTimer(loader, network, (TRAINING | config.training)["bf16"])
    trainer.add_callback(timer)
    trainer.train()
    training, tower_rate, cpu_ratio, waiting = (statistics.median(column) for column in zip(*timer.turns, strict=True))
    low, ratio, high = statistics.quantiles([turn[0] / turn[1] for turn in timer.turns], n=4)
    figures = {"slices_per_s": training, "tower": tower_rate, "cpu_ratio": cpu_ratio, "waiting": waiting}
    return figures | {"low": low, "ratio": ratio, "high": high}


def steps(setting: Setting, count: int, slices: int, output: str) -> dict:
    """Slices per second of all processes, and the peak memory of this one."""
    trainer, loader = make_trainer(benchmark_config(setting, WARM_UP + count, slices, output))
    clock = StepClock()
    trainer.add_callback(clock)
    with PeakMemory() as peak:
        trainer.train()
    seconds = clock.end - clock.start
    total_slices = torch.tensor(loader.slices)
    if trainer.args.world_size > 1:
        torch.distributed.all_reduce(total_slices)
    return {"slices_per_s": total_slices.item() / seconds, "peak_MiB": peak.mebibytes}


def make_trainer(config: DiagnosisTraining) -> tuple[DiagnosisTrainer, TimedLoader]:
    stored = [load(config.data.path, split, labelled=True) for split in ("train", "validation")]
    model, processor = build(config, stored[0].vocabulary, 0.02)
    sampling = Sampling(config.augmentation, None, config.sampling.slices_per_scan, config.seed)
    data, validation = CaseDataset(stored[0], processor, sampling), CaseDataset(stored[1], processor)
    trainer = DiagnosisTrainer(trainer_settings(config), model, processor, data, validation)
    loader = TimedLoader(trainer.get_train_dataloader())
    trainer.get_train_dataloader = lambda: loader
    return trainer, loader


def tower(setting: Setting, count: int, slices: int, output: str) -> dict:
    """Slices per second of forward and backward of the tower alone, on slices of the data, as the model calls it."""
    config = benchmark_config(setting, count, slices, output)
    stored = load(setting.data, "train", labelled=True)
    model, processor = build(config, stored.vocabulary, 0.02)
    data = CaseDataset(stored, processor, Sampling(slices_per_scan=config.sampling.slices_per_scan))
    sampler = StepSampler(data.slice_counts, data.labels, config.sampling.slices_per_step, 0.0, 0)
    batches = iter(step_loader(data, sampler))
    pictures = [next(batches)["pixel_values"] for _ in range(4)]
    network = model.radfm.slice_encoder.tower.train()
    seconds = [
        tower_pass(network, pictures[number % 4], (TRAINING | config.training)["bf16"])[0] / len(pictures[number % 4])
        for number in range(WARM_UP + count)
    ]
    return {"slices_per_s": 1 / statistics.mean(seconds[WARM_UP:])}


def tower_pass(network, pictures: torch.Tensor, bf16: bool) -> tuple[float, float]:
    """Seconds of one forward and backward pass, and CPU seconds."""
    start, cpu_start = time.perf_counter(), time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = network(pictures.to(torch.float32, memory_format=torch.channels_last))
    output.float().square().mean().backward()
    network.zero_grad()
    return time.perf_counter() - start, time.process_time() - cpu_start


class PeakMemory:
    """The peak resident memory of this process, beyond its memory when the measurement starts."""

    def __enter__(self):
        self._process, self._done = psutil.Process(), threading.Event()
        self._before = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._done.wait(0.02):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *error):
        self._done.set()
        self._thread.join()
        self.mebibytes = (self._peak - self._before) / 2**20


if __name__ == "__main__":
    main()
