"""Compiled programs kept between runs, so that the second start of a run waits for no compiler."""

import os
from pathlib import Path

import jax
from absl import logging


def use_plain_numbers() -> None:
    """Sets jax to the numbers that this package, flax and optax are written for; a command calls it at its start.

    They have 32 bits. With `JAX_ENABLE_X64` arrays without a type become 64-bit ones, and
    `JAX_NUMPY_DTYPE_PROMOTION=strict` refuses what optax does. Both are turned off, with a warning.
    """
    for name, wanted in (("jax_enable_x64", False), ("jax_numpy_dtype_promotion", "standard")):
        if (found := getattr(jax.config, name)) != wanted:
            logging.warning("%s=%s is not used here: %s is set", name.upper(), found, wanted)
            jax.config.update(name, wanted)


def keep_compiled(gib: float = 1.0) -> None:
    """Keeps what is compiled from here on in a folder of the user, `~/.cache/brainseg_jax` or below `XDG_CACHE_HOME`.

    Call it before the first compilation. Programs are told apart by their content, jax's version and the processor; the
    least recently used make room. Where `JAX_COMPILATION_CACHE_DIR` is set, jax keeps them there and this does nothing.

    Args:
      gib: the most that is kept, in GiB; 0 keeps nothing.
    """
    if not gib or jax.config.jax_compilation_cache_dir:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "brainseg_jax" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.warning("compiled programs are not kept: %s", error)
        return
    if not os.access(folder, os.W_OK):
        logging.warning("compiled programs are not kept: %s cannot be written to", folder)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", int(gib * 2**30))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
