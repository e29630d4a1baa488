"""Downloads the LGG set from Kaggle, which asks for no account."""

import threading
from pathlib import Path

from absl import logging

from brainseg_jax.errors import InputError

# A pinned version: kagglehub then looks into its cache before it asks the network.
HANDLE = "mateuszbuda/lgg-mri-segmentation/versions/2"
PAGE = "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation"
SERVER = "https://api.kaggle.com"  # the one that kagglehub asks
PATIENCE = 12.0  # seconds to wait for a first answer of the server


def download() -> Path:
    """Returns the folder of the LGG set in kagglehub's cache, downloading it (about 0.7 GB) when it is not there.

    Raises:
      InputError: no network, or Kaggle refuses; the message says what to do instead.
    """
    try:
        import kagglehub  # here: nobody else should wait for its import
        from kagglehub.cache import Cache
        from kagglehub.handle import parse_dataset_handle

        if cached := Cache().load_from_cache(parse_dataset_handle(HANDLE)):
            return Path(cached)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder is known, in which the cache would lie
        raise InputError(
            _remedy(f"the cache of kagglehub cannot be used ({error}); set HOME to a folder that can be written to")
        ) from error
    # Without this question kagglehub can go on trying for minutes on a machine without a network.
    if problem := _why_unreachable(SERVER, PATIENCE):
        raise InputError(_remedy(problem))
    logging.info("Downloading %s (about 0.7 GB) ...", PAGE)
    try:
        return Path(kagglehub.dataset_download(HANDLE))
    except Exception as error:  # many kinds, of kagglehub, requests, zipfile and the disk: one remedy
        raise InputError(_remedy(f"{type(error).__name__}: {error}")) from error


def _why_unreachable(server: str, patience: float) -> str | None:
    """Asks the server for anything, through the user's proxies; None when it answers.

    The question runs in a thread of its own because looking up a name can hang for longer than any timeout.
    """
    import requests

    problem = [f"no answer of {server} within {patience:.0f} s"]

    def ask() -> None:
        try:
            requests.head(server, timeout=patience, allow_redirects=False)
            problem[0] = ""
        except Exception as error:  # beside requests' own: what a wrong proxy or a broken resolver raises
            problem[0] = f"cannot reach {server} ({type(error).__name__})"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return problem[0] or None


def _remedy(problem: str) -> str:
    return (
        f"the LGG set cannot be downloaded from Kaggle: {problem}.\n"
        f"  Either download the zip by hand from {PAGE} and run\n"
        "    python -m brainseg_jax.data.prepare --source=THE_ZIP\n"
        "  or go without it, on made-up patients:\n"
        "    python -m brainseg_jax.main --config=configs/attn_dice.py:quick --workdir=runs/demo"
    )
