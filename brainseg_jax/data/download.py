"""Downloads the LGG set from Kaggle. Kaggle requires no account for it."""

import threading
from pathlib import Path

from absl import logging

from brainseg_jax.errors import InputError

# With a pinned version kagglehub reads its cache before it uses the network.
HANDLE = "mateuszbuda/lgg-mri-segmentation/versions/2"
PAGE = "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation"
SERVER = "https://api.kaggle.com"  # used by kagglehub
PATIENCE = 12.0  # seconds to wait for a response of the server


def download() -> Path:
    """Returns the folder of the LGG set in kagglehub's cache. Downloads the set (about 0.7 GB) if it is not there.

    Raises:
      InputError: no network, or Kaggle refuses. The message names the alternatives.
    """
    try:
        import kagglehub  # imported here because the import is slow
        from kagglehub.cache import Cache
        from kagglehub.handle import parse_dataset_handle

        if cached := Cache().load_from_cache(parse_dataset_handle(HANDLE)):
            return Path(cached)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder for the cache
        raise InputError(
            _remedy(f"the cache of kagglehub cannot be used ({error}); set HOME to a folder that can be written to")
        ) from error
    # Without this check kagglehub can retry for minutes on a machine without network.
    if problem := _why_unreachable(SERVER, PATIENCE):
        raise InputError(_remedy(problem))
    logging.info("Downloading %s (about 0.7 GB) ...", PAGE)
    try:
        return Path(kagglehub.dataset_download(HANDLE))
    except Exception as error:  # kagglehub, requests, zipfile and the disk raise many types; the remedy is the same
        raise InputError(_remedy(f"{type(error).__name__}: {error}")) from error


def _why_unreachable(server: str, patience: float) -> str | None:
    """Sends a request to the server, through the user's proxies. Returns None if it answers, otherwise the problem.

    The request runs in a thread, because a name lookup can block for longer than any timeout.
    """
    import requests

    problem = [f"no response from {server} within {patience:.0f} s"]

    def send_request() -> None:
        try:
            requests.head(server, timeout=patience, allow_redirects=False)
            problem[0] = ""
        except Exception as error:  # not only of requests: a wrong proxy or a broken resolver raises other types
            problem[0] = f"cannot reach {server} ({type(error).__name__})"

    thread = threading.Thread(target=send_request, daemon=True)
    thread.start()
    thread.join(patience)
    return problem[0] or None


def _remedy(problem: str) -> str:
    return (
        f"the LGG set cannot be downloaded from Kaggle: {problem}.\n"
        f"  Either download the zip manually from {PAGE} and run\n"
        "    python -m brainseg_jax.data.prepare --source=THE_ZIP\n"
        "  or use synthetic patients instead:\n"
        "    python -m brainseg_jax.main --config=configs/attn_dice.py:quick --workdir=runs/demo"
    )
