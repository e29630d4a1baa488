"""A fake `srun`: starts the command of each task with SLURM's variables on this machine."""

import os
import subprocess
import sys

command = sys.argv[1:]
while command[0].startswith("--"):
    command = command[1:]
tasks = []
for index in range(int(os.environ["SLURM_NTASKS"])):
    of_task = {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index), "SLURM_STEP_NODELIST": "127.0.0.1"}
    tasks.append(subprocess.Popen(command, env={**os.environ, **of_task}))
sys.exit(max(task.wait() for task in tasks))
