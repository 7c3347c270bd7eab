"""What training costs beyond the slice encoder: waiting for data, the rest of a step, a second process, memory.

    python benchmarks/train.py [--data datasets/phantoms] [--config FILE] [--steps 40] [KEY=VALUE ...]

Targets, on two cores: slices per second at least 0.85 of the tower's own forward and backward pass, under 5% of the
time waiting for data, two processes at least 0.9 x as fast as two towers side by side against one. The baseline is the
tower alone, on the same slices, under the same autocast, in the same process: some steps and some passes take turns, as
machines are noisy; what is printed is the median over the turns. On a machine that others use, too, read the ratio of
the processor's time: it counts what both cost, whoever else computes. All cores, then one alone: what a step does
besides the tower is small operations, which two cores do no faster, and the data are read on the same cores. The larger
the tower, the less that is: diagnosis.yaml has a small one. One process against two is held to one core, or it would
read its data on the other. The two towers side by side have a step each, so the two processes have, too: a budget twice
as large. What they make of sharing the step of the one stands below it: all that a process does once in a step, however
small its share, is then done twice. All processes keep the memory that they free (`radfm.cli.memory`), as radfm's
commands do, the towers' too; the last line says what that changes.
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
STEPS, PASSES = 4, 3  # in a turn: of training, of the tower alone


class Setting(NamedTuple):
    data: Path
    config: Path
    changes: list[str]  # of the config, KEY=VALUE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared data set; unset, 200 phantoms are generated")
    parser.add_argument("--config", type=Path, default=CONFIG, help="an experiment; unset, diagnosis.yaml")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="of the experiment, another tower for one")
    parser.add_argument("--worker", choices=["turns", "steps", "tower"], help=argparse.SUPPRESS)
    parser.add_argument("--slices", type=int, default=0, help="of a step; 0: as in the config")
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
    both = os.cpu_count()
    named = " ".join([setting.config.name, *setting.changes])
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {both} cores, {named}")
    for threads in dict.fromkeys((both, 1)):
        figures = measured("turns", setting, count, threads)
        print(f"on {threads} core{'s' if threads > 1 else ''}")
        print(f"  tower, forward and backward      {figures['tower']:7.0f} slices/s")
        print(f"  training                         {figures['slices_per_s']:7.0f} slices/s,", end=" ")
        print(f"{figures['share']:.2f} of it (target 0.85; quarters {figures['low']:.2f} and {figures['high']:.2f})")
        print(f"  by the processor's time          {figures['processor']:7.2f} of it")
        print(f"  waiting for data                 {figures['waiting']:7.1%} of the time (target 5%)")

    one, one_tower = measured("steps", setting, count, 1), measured("tower", setting, count, 1)
    step = read_diagnosis_config(setting.config, setting.changes).sampling.slices_per_step
    cores = side_by_side(setting, count) / one_tower["slices_per_s"]
    for slices, how in ((2 * step, "a step each"), (step, "sharing one's step")):
        two = measured("steps", setting, count, 1, processes=2, slices=slices)
        scaling = two["slices_per_s"] / one["slices_per_s"]
        print(f"two processes against one          {scaling:7.2f}x {how}; two towers {cores:.2f}x:", end=" ")
        print(f"{scaling / cores:.2f} of what the cores give (target 0.9)")

    few, many = (measured("steps", setting, 12, both, slices=slices) for slices in (64, 256))
    each = (many["peak_MiB"] - few["peak_MiB"]) / (256 - 64)
    print(f"memory                             {each:7.1f} MiB per slice; {many['peak_MiB']:,.0f} MiB with 256 slices")
    plain = measured("steps", setting, 12, both, slices=256, keep=False)
    speed, memory = (many[figure] / plain[figure] for figure in ("slices_per_s", "peak_MiB"))
    print(f"with the memory that is freed given back {1 / speed:7.2f}x as fast, {1 / memory:.2f}x the memory")


def measured(
    work: str, setting: Setting, count: int, threads: int, processes: int = 1, slices: int = 0, keep: bool = True
) -> dict:
    return finished(start(work, setting, count, threads, processes, slices, keep=keep))


def side_by_side(setting: Setting, count: int) -> float:
    runs = [start("tower", setting, count, 1, core=core) for core in range(2)]
    return sum(finished(run)["slices_per_s"] for run in runs)


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
    """threads: of each process. One process with one thread is held to `core`. keep: the memory that is freed."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), __file__, "--worker", work]
    command += ["--data", str(setting.data), "--config", str(setting.config)]
    command += ["--steps", str(count), "--slices", str(slices), *setting.changes]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    environment |= {} if keep else {"MALLOC_MMAP_MAX_": "65536"}  # glibc's own
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if threads == processes == 1:
        psutil.Process(run.pid).cpu_affinity([core])
    return run


def finished(run: subprocess.Popen) -> dict:
    out, error = run.communicate()
    if run.returncode:
        sys.exit(error)
    return json.loads(out.strip().splitlines()[-1])


def configured(setting: Setting, count: int, slices: int, output: str) -> DiagnosisTraining:
    changes = [*setting.changes, f"data={setting.data}", f"output={output}", f"training.max_steps={count}"]
    changes += ["training.report_to=[]", "training.eval_strategy=no"]
    changes += ["training.save_strategy=no", "training.disable_tqdm=true"]
    changes += [f"sampling.slices_per_step={slices}"] if slices else []
    return read_diagnosis_config(setting.config, changes)


class Clock(TrainerCallback):
    """When the steps that count began and ended."""

    def __init__(self):
        self.began = self.ended = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        self.ended = time.perf_counter()
        if state.global_step == WARM_UP:
            self.began = self.ended


class Turns(TrainerCallback):
    """After some steps of training, some passes of the tower alone over the slices of the last.

    Attributes:
        turns: of each, slices per second of training and of the tower, how much of a step's processor time the tower
            would take, and the share of the time of waiting.
    """

    def __init__(self, loader: "Watched", network, bf16: bool):
        self.loader, self.network, self.bf16 = loader, network, bf16
        self.turns: list[tuple[float, float, float, float]] = []

    def on_step_end(self, args, state, control, **kwargs):
        done = state.global_step - WARM_UP
        if done >= 0 and done % STEPS == 0:
            now, processor = time.perf_counter(), time.process_time()
            last, loader = self.loader.last, self.loader
            passes = [bare_pass(self.network, last, self.bf16) for _ in range(1 + PASSES)]
            if done:
                seconds, alone = (len(last) / statistics.median(column) for column in zip(*passes[1:], strict=True))
                rate, cost = loader.slices / (now - self._began), loader.slices / (processor - self._processor)
                self.turns.append((rate, seconds, cost / alone, loader.waited / (now - self._began)))
            loader.slices = loader.waited = 0
            self._began, self._processor = time.perf_counter(), time.process_time()


class Watched:
    """A loader, and how long was waited for it after the warm-up."""

    def __init__(self, loader):
        self.loader, self.waited, self.slices, self.taken, self.last = loader, 0.0, 0, 0, None

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
            if self.taken >= WARM_UP:
                self.waited += time.perf_counter() - requested
                self.slices += len(batch["pixel_values"])
            self.taken, self.last = self.taken + 1, batch["pixel_values"]
            yield batch


def turns(setting: Setting, count: int, slices: int, output: str) -> dict:
    """Of training and of the tower alone, medians over the turns."""
    config = configured(setting, WARM_UP + count * STEPS, slices, output)
    trainer, watched = prepared(config)
    network = trainer.model.radfm.slice_encoder.tower
    clock = Turns(watched, network, (TRAINING | config.training)["bf16"])
    trainer.add_callback(clock)
    trainer.train()
    training, alone, processor, waiting = (statistics.median(column) for column in zip(*clock.turns, strict=True))
    low, share, high = statistics.quantiles([turn[0] / turn[1] for turn in clock.turns], n=4)
    figures = {"slices_per_s": training, "tower": alone, "processor": processor, "waiting": waiting}
    return figures | {"low": low, "share": share, "high": high}


def steps(setting: Setting, count: int, slices: int, output: str) -> dict:
    """Of the process that it runs in; slices of all processes."""
    trainer, watched = prepared(configured(setting, WARM_UP + count, slices, output))
    clock = Clock()
    trainer.add_callback(clock)
    with Peak() as peak:
        trainer.train()
    seconds = clock.ended - clock.began
    everyones = torch.tensor(watched.slices)
    if trainer.args.world_size > 1:
        torch.distributed.all_reduce(everyones)
    return {"slices_per_s": everyones.item() / seconds, "peak_MiB": peak.mebibytes}


def prepared(config: DiagnosisTraining) -> tuple[DiagnosisTrainer, Watched]:
    stored = [load(config.data.path, split, labelled=True) for split in ("train", "validation")]
    model, processor = build(config, stored[0].vocabulary, 0.02)
    sampling = Sampling(config.augmentation, None, config.sampling.slices_per_scan, config.seed)
    data, validation = CaseDataset(stored[0], processor, sampling), CaseDataset(stored[1], processor)
    trainer = DiagnosisTrainer(trainer_settings(config), model, processor, data, validation)
    watched = Watched(trainer.get_train_dataloader())
    trainer.get_train_dataloader = lambda: watched
    return trainer, watched


def tower(setting: Setting, count: int, slices: int, output: str) -> dict:
    """Forward and backward alone, on slices of the data, as the model calls it."""
    config = configured(setting, count, slices, output)
    stored = load(setting.data, "train", labelled=True)
    model, processor = build(config, stored.vocabulary, 0.02)
    data = CaseDataset(stored, processor, Sampling(slices_per_scan=config.sampling.slices_per_scan))
    sampler = StepSampler(data.slice_counts, data.labels, config.sampling.slices_per_step, 0.0, 0)
    batches = iter(step_loader(data, sampler))
    pictures = [next(batches)["pixel_values"] for _ in range(4)]
    network = model.radfm.slice_encoder.tower.train()
    seconds = [
        bare_pass(network, pictures[number % 4], (TRAINING | config.training)["bf16"])[0] / len(pictures[number % 4])
        for number in range(WARM_UP + count)
    ]
    return {"slices_per_s": 1 / statistics.mean(seconds[WARM_UP:])}


def bare_pass(network, pictures: torch.Tensor, bf16: bool) -> tuple[float, float]:
    """Seconds, and those of the processor."""
    began, processor = time.perf_counter(), time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = network(pictures.to(torch.float32, memory_format=torch.channels_last))
    output.float().square().mean().backward()
    network.zero_grad()
    return time.perf_counter() - began, time.process_time() - processor


class Peak:
    """The most memory that the process held, beyond what it held before."""

    def __enter__(self):
        self._process, self._done = psutil.Process(), threading.Event()
        self._before = self._most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._done.wait(0.02):
            self._most = max(self._most, self._process.memory_info().rss)

    def __exit__(self, *error):
        self._done.set()
        self._thread.join()
        self.mebibytes = (self._most - self._before) / 2**20


if __name__ == "__main__":
    main()
