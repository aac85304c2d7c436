"""What `benchmarks.kernels` measures: a case for each op, at the sizes of a pass."""
