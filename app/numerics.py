"""Compile functions by numba with a cache on disk; vectorisable exp2 and log for its kernels.

numba caches machine code by the source file of the called function. After a change of this file,
touch the files that import it; otherwise their kernels keep the previous code.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit

F = TypeVar("F", bound=Callable[..., Any])

# No reassociation, which would remove the intended rounding. Infinities and NaN must not occur.
FAST = frozenset({"contract", "nnan", "ninf", "nsz"})


def compiled(function: F, flags: frozenset[str] = FAST) -> F:
    """Compile at the first call, to code that releases the interpreter's lock.

    Machine code is cached in NUMBA_CACHE_DIR, beside the source or in the user's cache directory.
    Where none is writable each process compiles again, which takes some seconds.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": set(flags), "error_model": "numpy"}
    try:
        cached: F = njit(cache=True, **options)(function)
    except RuntimeError:
        uncached: F = njit(**options)(function)
        return uncached
    return cached


def compiled_sums(function: F) -> F:
    """Compile as `compiled` does, and let sums be added up in any order, which vectorises them."""
    return compiled(function, FAST | {"reassoc"})


LOG2_E = 1.4426950408889634

# Added to a float, it leaves the nearest integer n in the mantissa's low bits, as n + 127.
_ROUND = np.float32(1.5 * 2**23 + 127)
_LOWEST = np.float32(-127)  # its power is rounded to 0
# 2^f - 1 over f on [-1/2, 1/2], relative error of 2^f at most 1e-7.
_P1, _P2, _P3, _P4, _P5 = (
    np.float32(c) for c in (0.693147004, 0.240222424, 0.0555073358, 0.00967151299, 0.00132647273)
)
# log(1 + r) = r - r^2/2 + r^3 (...) over sqrt(1/2) - 1 .. sqrt(2) - 1, relative error 4e-8.
_L3, _L4, _L5, _L6, _L7, _L8, _L9 = (
    np.float32(c)
    for c in (
        0.33333969, -0.25001261, 0.19961147, -0.16578959, 0.14934175, -0.14262831, 0.0864277035,
    )
)  # fmt: skip
_ONE, _HALF, _LN_2 = np.float32(1), np.float32(0.5), np.float32(0.693147181)
_ROOT_HALF = np.float32(0.5**0.5).view(np.int32)  # its bits


@compiled
def power_of_two(exponent: np.float32) -> np.float32:
    """Compute 2**exponent for exponents <= 0, relative error 2e-7; 0 from -126.5 down."""
    bounded = max(exponent, _LOWEST)
    rounded = np.float32(bounded + _ROUND)
    rest = bounded - (rounded - _ROUND)
    scale = np.int32(np.float32(rounded).view(np.int32) << np.int32(23)).view(np.float32)
    tail = _P2 + rest * (_P3 + rest * (_P4 + rest * _P5))
    return np.float32(scale * (_ONE + rest * (_P1 + rest * tail)))


@compiled
def logarithm(value: np.float32) -> np.float32:
    """Compute the logarithm of a normal positive number; absolute or relative error 1e-7."""
    bits = np.float32(value).view(np.int32)
    exponent = np.int32(np.int32(bits - _ROOT_HALF) >> np.int32(23))
    mantissa = np.int32(bits - np.int32(exponent << np.int32(23))).view(np.float32)
    rest = mantissa - _ONE  # of sqrt(1/2) .. sqrt(2)
    deep = _L6 + rest * (_L7 + rest * (_L8 + rest * _L9))
    tail = _L3 + rest * (_L4 + rest * (_L5 + rest * deep))
    square = rest * rest
    return np.float32(np.float32(exponent) * _LN_2 + (rest - _HALF * square + square * rest * tail))
