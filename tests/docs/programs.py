"""Programs that the shell of the documents runs in place of larger machines, or of several machines.

Two processes replace eight. This machine replaces two: node1 and node2 are both 127.0.0.1, with one process each. The
launchers are those of torch and DeepSpeed. Short scripts replace SLURM, pdsh, ssh, numactl and the index of pip, and do
only what the commands of the documents need.
"""

import shlex
import sys
from sysconfig import get_path

import short_radfm

_BRIEF = " ".join(map(shlex.quote, short_radfm.SHORTER["train", "diagnosis"]))
_BRIEF_TEXT = " ".join(map(shlex.quote, short_radfm.SHORTER["train", "text"]))

# `short_radfm` shortens only commands of radfm. The launchers start modules such as radfm.train.diagnosis.
_SHORTER = f"""#!/bin/bash
export OMP_NUM_THREADS=1
case "$*" in
    *radfm.train.diagnosis*) brief=({_BRIEF}) ;;
    *radfm.train.text*) brief=({_BRIEF_TEXT}) ;;
    *) brief=() ;;
esac
[[ ${{#brief[@]}} == 0 || "$*" == *output=* ]] || brief+=(output=runs/${{SLURM_JOB_ID:-$$}})
"""

TORCHRUN = f"""{_SHORTER}
if [[ "$*" != *"--nnodes 2"* ]]; then
    exec PYTHON -m torch.distributed.run "${{@/#8/2}}" "${{brief[@]}}"
fi
words=("${{@/#8/1}}")
words=("${{words[@]/#node1/127.0.0.1}}")
if [[ $SLURM_JOB_ID ]]; then  # SLURM has already started this on each node
    exec PYTHON -m torch.distributed.run "${{words[@]}}" "${{brief[@]}}"
fi
PYTHON -m torch.distributed.run "${{words[@]}}" "${{brief[@]}}" &
PYTHON -m torch.distributed.run "${{words[@]}}" "${{brief[@]}}" || exit
wait $!
"""

DEEPSPEED = f"""{_SHORTER}
words=() hosts=$(mktemp)
printf 'node1 slots=1\\nnode2 slots=1\\n' > "$hosts"
for word in "$@"; do
    case "$word" in
        8) word=2 ;;
        */hostfile) word=$hosts ;;
        node1) word=127.0.0.1 ;;
    esac
    words+=("$word")
done
if [[ "$*" == *"--node_rank 0"* ]]; then
    other=("${{words[@]/#0/1}}")
    PYTHON -m deepspeed.launcher.runner "${{other[@]}}" "${{brief[@]}}" &
    PYTHON -m deepspeed.launcher.runner "${{words[@]}}" "${{brief[@]}}" || exit
    wait $!
    exit
fi
exec PYTHON -m deepspeed.launcher.runner "${{words[@]}}" "${{brief[@]}}"
"""

SBATCH = """#!/bin/bash
export SLURM_JOB_ID=7 SLURM_NNODES=2 SLURM_JOB_NODELIST=node[1-2] SLURM_GPUS_ON_NODE=1
exec bash "$@"
"""

SCONTROL = """#!/bin/bash
[[ "$*" == "show hostnames node[1-2]" ]] && printf 'node1\\nnode2\\n'
"""

SRUN = """#!/bin/bash
"$@" &
"$@" || exit
wait $!
"""

SSH = """#!/bin/bash
[[ "$*" == *" hostname -I" ]] && echo 127.0.0.1
[[ "$*" == *" hostname"* ]]
"""

PDSH = """#!/bin/bash
while [[ $1 == -* ]]; do
    [[ $1 == -S ]] || { [[ $1 == -w ]] && IFS=, read -ra hosts <<< "$2"; shift; }
    shift
done
for node in "${!hosts[@]}"; do
    bash -c "${*//%n/$node}" &
    started+=($!)
done
for one in "${started[@]}"; do wait "$one" || exit; done
"""

NUMACTL = """#!/bin/bash
if [[ $1 == --hardware ]]; then
    printf 'available: 1 nodes (0)\\nnode 0 cpus:%s\\n' "$(printf ' %d' $(seq 0 $(($(nproc) - 1))))"
    exit
fi
while [[ $1 == -* ]]; do shift 2; done
exec "$@"
"""

# Installs from the current folder and without an index, into an environment that also sees the packages of this one.
PIP = f"""#!/bin/bash
own=$(dirname "$0")/../installed
if [ ! -d "$own" ]; then
    '{sys.executable}' -m venv --without-pip "$own"
    echo '{get_path("purelib")}' > "$(echo "$own"/lib/python*/site-packages)/all.pth"
fi
exec "$own/bin/python" -m pip "$1" --no-index --no-build-isolation --disable-pip-version-check "${{@:2}}"
"""

# Name -> program. PYTHON is replaced by the Python of `tests/forked_python.py`.
PROGRAMS = {
    "python": '#!/bin/bash\nexec PYTHON "$@"\n',
    "radfm": f"#!/bin/bash\nexec PYTHON '{short_radfm.__file__}' \"$@\"\n",
    "torchrun": TORCHRUN,
    "deepspeed": DEEPSPEED,
    "sbatch": SBATCH,
    "scontrol": SCONTROL,
    "srun": SRUN,
    "ssh": SSH,
    "pdsh": PDSH,
    "numactl": NUMACTL,
    "pip": PIP,
}
