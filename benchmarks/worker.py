"""Runs a contestant in a separate process: it prepares the work, then does it once for each line on stdin."""

import dataclasses
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from benchmarks.contestants import CONTESTANTS, Work

WARM_UP = 2  # repetitions: compilation, then the memory of the first real step


class Worker:
    """The controlling end of the process. Use it as a context manager; `failure` is the reason if it cannot run."""

    def __init__(self, library: str, work: Work, shared: Path):
        """Starts the process and waits for the warm-up.

        Args:
          library: a key of `CONTESTANTS`.
          work: the work to do.
          shared: a folder for the weights of "ours", which must be started first.
        """
        command = [
            sys.executable,
            "-m",
            "benchmarks.worker",
            library,
            json.dumps(dataclasses.asdict(work)),
            str(shared),
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        line = self._process.stdout.readline()
        self.failure = None if line else self._process.communicate()[1].strip().splitlines()[-1]
        self.peak_mb = json.loads(line)["peak_mb"] if line else float("nan")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ms(self) -> float:
        """Returns the milliseconds of one repetition."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())["ms"]


def main() -> None:
    """The process itself; its arguments are library, work as JSON, and the shared folder."""
    library, work, shared = sys.argv[1:]
    run = CONTESTANTS[library](Work(**json.loads(work)), Path(shared))
    for _ in range(WARM_UP):
        run()
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        run()
        print(json.dumps({"ms": 1e3 * (time.perf_counter() - started)}), flush=True)


if __name__ == "__main__":
    main()
