"""The tests. Triton decides on import whether it interprets, so that is said before any test imports it."""

import os

# With TRITON_INTERPRET=0 on a machine with a GPU the same tests run compiled.
os.environ.setdefault("TRITON_INTERPRET", "1")
