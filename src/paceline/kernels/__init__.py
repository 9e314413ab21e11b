"""numba kernels: hashing, text, the index of ids, rows, row optimizers. Plain functions over numpy arrays, no state."""
