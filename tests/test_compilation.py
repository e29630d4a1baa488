"""Compiled programs are cached between processes, within limits; a run compiles nothing after its first epoch."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from test_run import tiny_config

from brainseg_jax import ops
from brainseg_jax.training.loop import train

SCRIPT = """
import sys, jax, jax.numpy as jnp
from brainseg_jax.compilation import keep_compiled
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None)
keep_compiled(float(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
for power in map(int, sys.argv[2:]):
    print(power, jax.jit(lambda x: x**power + power)(jnp.int32(2)))
print("hits", len(hits))
"""


def start(home, *arguments, **environment):
    env = {**os.environ, "XDG_CACHE_HOME": str(home), "JAX_COMPILATION_CACHE_DIR": "", **environment}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=env,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    *values, hits = [line.split() for line in done.stdout.splitlines()]
    return {int(power): int(value) for power, value in values}, int(hits[1]), done.stderr


def programs(home):
    return sorted((home / "brainseg_jax" / "compiled").glob("jit__lambda*-cache"))


def test_what_was_compiled_is_found_again_and_damage_is_survived(tmp_path):
    first, hits, _ = start(tmp_path, 1.0, 3)
    assert (first, hits) == ({3: 11}, 0)
    assert len(programs(tmp_path)) == 1
    again, hits, _ = start(tmp_path, 1.0, 3)
    assert again == first
    assert hits >= 1
    for program in programs(tmp_path):
        program.write_bytes(program.read_bytes()[:50])
    assert start(tmp_path, 1.0, 3)[0] == first


def test_the_oldest_make_room(tmp_path):
    start(tmp_path, 1.0, 3)
    size = programs(tmp_path)[0].stat().st_size
    values, _, _ = start(tmp_path, 3 * size / 2**30, 4, 5, 6, 7)
    assert values == {4: 20, 5: 37, 6: 70, 7: 135}
    assert sum(f.stat().st_size for f in (tmp_path / "brainseg_jax" / "compiled").glob("*-cache")) <= 3 * size


def test_nothing_is_kept_where_it_is_off_or_cannot_be(tmp_path):
    start(tmp_path, 0.0, 3)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    values, _, words = start(tmp_path / "file", 1.0, 3)
    assert values == {3: 11}
    assert "compiled programs are not cached" in words
    start(tmp_path / "mine", 1.0, 3, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))
    assert not (tmp_path / "mine").exists()


RELEASE = """
import ctypes, jax
from brainseg_jax.compilation import release_compiler_memory
release_compiler_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
# Like a compiler: 200 MB in pieces too small to be mapped, all freed except the last, which keeps the heap large.
pieces = [libc.malloc(100_000) for _ in range(2000)]
for piece in pieces:
    ctypes.memset(piece, 1, 100_000)
for piece in pieces[:-1]:
    libc.free(piece)
for seconds in (0.5, 2.0):
    before = resident()
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", seconds)
    print(before - resident())
"""


def test_what_the_compiler_has_freed_goes_back_to_the_system():
    """Only after a long compilation: after a short one there is little memory to release."""
    done = subprocess.run([sys.executable, "-c", RELEASE], capture_output=True, text=True, check=True)
    after_short, after_long = map(float, done.stdout.split())
    assert abs(after_short) < 20 and 150 < after_long < 220


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_later_epochs_compile_nothing(dataset_folder, tmp_path):
    compiled = []

    def listen(name, _, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    def compilations(epochs):
        compiled.clear()
        jax.clear_caches()
        train(tiny_config(dataset_folder, train__epochs=epochs), tmp_path / str(epochs))
        return len(compiled)

    ops.compiler_options(), ops.compiler_options(runs_once=True)  # which options XLA knows is found out once a process
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        one, three = compilations(1), compilations(3)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert one == three > 2  # the steps are among them
