"""Shares of one prediction, `--shard=i/n`: what each leaves in `OUTPUT/shards`, and the merge of all of them.

A share writes its masks and maps where the whole prediction would, and its rows of the tables into a JSON file of its
own. That file is there from the start, without rows: so a share that was stopped is known, and may replace its results.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from brainseg_jax.errors import InputError, PartlyDone
from brainseg_jax.evaluation.scores import write_json
from brainseg_jax.files import explain
from brainseg_jax.inference.ensemble import Ensemble
from brainseg_jax.prediction.results import SCANS_TABLE, SLICES_TABLE, Wanted, check_tables_free, write_tables
from brainseg_jax.prediction.stream import Outcome
from brainseg_jax.runs.trained import Trained
from brainseg_jax.scans.scan import Source
from brainseg_jax.shards import FOLDER, Shard, parse_shard

DONE, STOPPED, NOTHING = "done", "stopped", "nothing"  # what is left of a share


def command_of(
    trained: Sequence[Trained], scans: Path, sources: Sequence[Source], ensemble: Ensemble, wanted: Wanted
) -> dict:
    """What all shares of one prediction have in common; content for JSON."""
    return {
        "--run": [f"{run.folder.absolute()} {_digest(run.network.variables)}" for run in trained],
        "--input": str(scans.absolute()),
        "cases": [source.name for source in sources],
        "members": ensemble.members,
        "post-processing": [post._asdict() for post in ensemble.posts],
        "files": [*wanted.kinds, *(["overlay"] if wanted.overlays else [])],
    }


class Share:
    """One share of a prediction, and the file that it leaves.

    Attributes:
      shard: which one.
      path: of the file.
    """

    def __init__(self, shard: Shard, command: dict, output: Path) -> None:
        """Writes nothing; `command` is that of `command_of`."""
        self.shard, self.path, self._command = shard, _path(output, shard), command

    def left(self, *, overwrite: bool) -> str:
        """What an earlier process left of this share: `DONE`, `STOPPED`, or `NOTHING` that is not to be overwritten.

        Raises:
          InputError: a share of another command is there, and `overwrite` is not set.
        """
        if overwrite or not self.path.exists():
            return NOTHING
        part = _read(self.path)
        if different := _differences(part["command"], self._command):
            raise InputError(
                f"{self.path}: a share of another command ({different}); give another --output, or --overwrite to "
                "replace it"
            )
        return DONE if part["done"] else STOPPED

    @contextlib.contextmanager
    def writing(self, outcome: Outcome) -> Iterator[None]:
        """Writes the file before the work, without rows, and after it with those of the outcome.

        Raises:
          InputError: it cannot be written.
          KeyboardInterrupt: of the user, or of SIGTERM; the message says how to go on.
        """
        self._write(Outcome(), done=False)
        try:
            yield
        except KeyboardInterrupt:
            words = f"interrupted; share {self.shard} is not done: the same command does it again from its beginning"
            raise KeyboardInterrupt(words) from None
        self._write(outcome, done=True)

    def _write(self, outcome: Outcome, *, done: bool) -> None:
        content = {"shard": str(self.shard), "command": self._command, "done": done}
        content |= {"scans": outcome.scans, "slices": outcome.slices, "faults": outcome.faults}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, content)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({explain(error)})") from error


def merge_shares(output: Path, *, overwrite: bool) -> None:
    """Joins the tables of all shares as one process would have written them, and removes the files of the shares.

    Raises:
      InputError: a share is missing, not done or damaged, or shares do not belong together: all that is wrong; or the
        tables are there, and `overwrite` is not set. Nothing is written then.
      PartlyDone: some scans could not be predicted; the tables list the others.
    """
    paths = sorted((output / FOLDER).glob("predict-*-of-*.json"))
    if not paths:
        raise InputError(
            f"{output / FOLDER}: no share of a prediction in it; run predict with --shard=0/n and on first"
        )
    parts = {path: _read(path) for path in paths}
    if faults := _faults(parts, output):
        raise InputError("the shares cannot be merged:\n" + "\n".join(faults))
    if not overwrite:
        check_tables_free(output)
    order = {case: index for index, case in enumerate(next(iter(parts.values()))["command"]["cases"])}
    scans, slices = (
        sorted((row for part in parts.values() for row in part[rows]), key=lambda row: order[row["case"]])
        for rows in ("scans", "slices")
    )
    write_tables(scans, slices, output)
    for path in paths:
        path.unlink()
    with contextlib.suppress(OSError):  # other files are in it
        (output / FOLDER).rmdir()
    done, refused = len({row["case"] for row in scans}), [fault for part in parts.values() for fault in part["faults"]]
    print(f"{len(paths)} shares, {done} scan{'s' * (done != 1)}: {output / SCANS_TABLE}, {output / SLICES_TABLE}")
    if refused:
        total, listed = len(refused) + done, "\n".join(refused)
        raise PartlyDone(f"{len(refused)} of {total} scans could not be predicted, the others are done:\n{listed}")


def _faults(parts: dict[Path, dict], output: Path) -> list[str]:
    """All that keeps shares from being merged."""
    shards = {path: parse_shard(part["shard"], str(path)) for path, part in parts.items()}
    (first, whole), *others = parts.items()
    count, faults = shards[first].count, []
    for path, part in others:
        if shards[path].count != count:
            faults.append(f"{path}: one of {shards[path].count} shares, and {first.name} is one of {count}")
        elif different := _differences(part["command"], whole["command"]):
            faults.append(f"{path}: a share of another command than {first.name} ({different})")
    if faults:  # of which are missing nothing can be said
        return [*faults, "remove those that do not belong to the others, or run all with --overwrite"]
    indices = {shard.index for shard in shards.values()}
    for index in range(count):
        shard = Shard(index, count)
        if index not in indices:
            faults.append(f"{_path(output, shard)}: missing; run predict with --shard={shard}")
    faults += [
        f"{path}: share {shards[path]} is not done: wait for it or, if it was stopped, run it again"
        for path, part in parts.items()
        if not part["done"]
    ]
    times = Counter(case for part in parts.values() for case in {row["case"] for row in part["scans"]})
    faults += [f"{case}: in {number} shares" for case, number in times.items() if number > 1]
    return faults


def _differences(own: dict, other: dict) -> str:
    """What differs between two commands, in words; "" where they are one."""
    words = []
    for key in sorted(own.keys() | other.keys()):
        a, b = own.get(key), other.get(key)
        if a == b:
            continue
        if key == "cases" and isinstance(a, list) and isinstance(b, list):
            apart = sorted(set(a) ^ set(b))
            words.append(
                f"cases: {len(a)} against {len(b)}, {', '.join(apart[:3])}{', ...' if apart[3:] else ''} differ"
            )
        else:
            words.append(f"{key}: {_words(a)} against {_words(b)}")
    return "; ".join(words)


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read(path: Path) -> dict:
    """The file of a share. Raises InputError where it is none."""
    kinds = {"shard": str, "command": dict, "done": bool, "scans": list, "slices": list, "faults": list}
    try:
        part = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(part, dict) or any(not isinstance(part.get(key), kind) for key, kind in kinds.items()):
            raise ValueError(f"it has not the fields {', '.join(kinds)}")
        if _path(path.parents[1], parse_shard(part["shard"])) != path:
            raise ValueError(f"by its content it is share {part['shard']}")
        cases = part["command"]["cases"]
        if any(row["case"] not in cases for row in (*part["scans"], *part["slices"])):
            raise ValueError("a row of a case that the command does not have")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not the file of a share ({error!r}); remove it and run the share again") from error
    return part


def _path(output: Path, shard: Shard) -> Path:
    return output / FOLDER / f"predict-{shard.name}.json"


def _digest(variables: dict) -> str:
    """Of the weights, as a folder can hold those of another training tomorrow."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:12]
