#!/bin/bash
# Two machines of eight GPUs each; a job that is requeued goes on where it stopped.
#   sbatch train/configs/slurm.sh train/configs/diagnosis.yaml training.bf16=true
#SBATCH --job-name=radfm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --requeue

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29500" \
    -m radfm.train.diagnosis "$@"
