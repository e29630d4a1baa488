"""Compiled programs kept between runs, so that a second start waits for no compiler, and the compiler's memory."""

import ctypes
import os
from pathlib import Path

import jax
from absl import logging


def use_plain_numbers() -> None:
    """Sets jax to the numbers that this package, flax and optax are written for.

    They have 32 bits. With `JAX_ENABLE_X64` arrays without a type become 64-bit ones, and strict promotion of types or
    ranks refuses what optax does. All are turned off, with a warning. A precision of products that the environment
    sets is only warned of, as each network sets its own.
    """
    wanted = {"enable_x64": False, "numpy_dtype_promotion": "standard", "numpy_rank_promotion": "allow"}
    for name, value in wanted.items():
        if (found := getattr(jax.config, f"jax_{name}")) != value:
            logging.warning("JAX_%s=%s is not supported: %s is used", name.upper(), found, value)
            jax.config.update(f"jax_{name}", value)
    if found := jax.config.jax_default_matmul_precision:  # type: ignore[attr-defined]
        logging.warning("JAX_DEFAULT_MATMUL_PRECISION=%s has no effect: model.precision of the config decides", found)


def keep_compiled(gib: float = 1.0) -> None:
    """Keeps what is compiled from here on in a folder of the user, `~/.cache/brainseg_jax` or below `XDG_CACHE_HOME`.

    Call it before the first compilation. Programs are told apart by their content, jax's version and the processor; the
    least recently used make room. Where `JAX_COMPILATION_CACHE_DIR` is set, jax keeps them there and this does nothing.

    Args:
      gib: the most that is kept, in GiB; 0 keeps nothing.
    """
    if not gib or jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "brainseg_jax" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder is known
        logging.warning("compiled programs are not kept: %s", error)
        return
    if not os.access(folder, os.W_OK):
        logging.warning("compiled programs are not kept: %s cannot be written to", folder)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", int(gib * 2**30))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def release_compiler_memory() -> None:
    """From here on the memory that the compiler has freed goes back to the operating system after each compilation.

    glibc keeps freed memory for later requests in small pieces, which the large arrays of a training step cannot use:
    the step's arrays come on top of it. It is one call of `malloc_trim`; with another C library nothing happens.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return

    def after_compilation(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration") and duration_secs > 1.0:  # a short one leaves little
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(after_compilation)
