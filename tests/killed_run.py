"""A training that kills itself with SIGKILL at a chosen moment.

python tests/killed_run.py MOMENT SECONDS [arguments of `brainseg_jax.main`]
"""

import os
import signal
import sys
import time

from absl import flags

from brainseg_jax import cli, main
from brainseg_jax.evaluation.assessment import Assessor
from brainseg_jax.runs.checkpoint import Checkpoints
from brainseg_jax.runs.metrics_log import MetricsLog
from brainseg_jax.training import loop

# Moment: (function, number of its call in this process, at its start or end).
MOMENTS = {
    "before the first step": (loop, "_train_epoch", 1, "start"),
    "in the second epoch": (loop, "_check_reports", 4, "end"),  # checks: after steps 2, 4, 5, 7, ...
    "before the second validation": (loop, "_validate", 2, "start"),
    "after the second validation": (loop, "_validate", 2, "end"),
    "with a row and no checkpoint": (MetricsLog, "end_epoch", 2, "end"),
    "in the second save": (Checkpoints, "save", 2, "end"),  # it writes after it has returned
    "before the results": (Checkpoints, "wait", 1, "end"),
    "in the results": (Assessor, "assess", 1, "end"),
}


def kill_at(moment: str, seconds: float) -> None:
    """Installs the kill, `seconds` after the moment."""
    owner, name, at, where = MOMENTS[moment]
    original, calls = getattr(owner, name), []

    def killed(*args: object, **options: object) -> object:
        calls.append(None)
        if where == "start" and len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **options)
        if len(calls) == at:
            print(f"killed {moment}", flush=True)
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, killed)


if __name__ == "__main__":
    kill_at(sys.argv.pop(1), float(sys.argv.pop(1)))
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main.main)
