"""Settings of JAX: number types, the cache of compiled programs, and the memory of the compiler."""

import ctypes
import os
from pathlib import Path

import jax
from absl import logging


def use_plain_numbers() -> None:
    """Resets the number settings of JAX to its defaults, which this package, flax and optax need; logs a warning.

    `JAX_ENABLE_X64` would turn arrays without a dtype into 64-bit arrays. Strict promotion of dtypes or ranks rejects
    operations of optax. A default matmul precision has no effect, since each network sets its own.
    """
    defaults = {"enable_x64": False, "numpy_dtype_promotion": "standard", "numpy_rank_promotion": "allow"}
    for name, value in defaults.items():
        if (setting := getattr(jax.config, f"jax_{name}")) != value:
            logging.warning("JAX_%s=%s is not supported: %s is used", name.upper(), setting, value)
            jax.config.update(f"jax_{name}", value)
    if precision := jax.config.jax_default_matmul_precision:  # type: ignore[attr-defined]
        logging.warning(
            "JAX_DEFAULT_MATMUL_PRECISION=%s has no effect: model.precision of the config is used", precision
        )


def keep_compiled(gib: float = 1.0) -> None:
    """Turns on the cache of compiled programs in `~/.cache/brainseg_jax`, or in `brainseg_jax` of `XDG_CACHE_HOME`.

    Call it before the first compilation. The key of a program is its content, the version of JAX and the processor. The
    least recently used programs are deleted first. If `JAX_COMPILATION_CACHE_DIR` is set, this function does nothing.

    Args:
      gib: Maximum size in GiB; 0: no cache.
    """
    if not gib or jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "brainseg_jax" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        logging.warning("compiled programs are not cached: %s", error)
        return
    if not os.access(folder, os.W_OK):
        logging.warning("compiled programs are not cached: %s cannot be written to", folder)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", int(gib * 2**30))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def release_compiler_memory() -> None:
    """Returns the freed memory of the compiler to the operating system after each compilation from now on.

    glibc keeps freed memory in small pieces, which the large arrays of a training step cannot use. So the process would
    need the memory of both. This calls `malloc_trim`; with another C library it does nothing.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return

    def after_compilation(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration") and duration_secs > 1.0:  # a short compilation frees little
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(after_compilation)
