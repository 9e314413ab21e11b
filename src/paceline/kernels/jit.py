"""How every kernel is compiled: without the GIL, cached on disk, without re-ordering of floating-point sums.

`parallel=True` is never used: numba's default threading layer aborts the process when parallel kernels are called
from several Python threads, and worker threads are what we parallelise over.
"""

from __future__ import annotations

from typing import Any

import numba

kernel: Any = numba.njit(nogil=True, cache=True, error_model="numpy")
