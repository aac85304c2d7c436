"""Check the recordings named: see `tests.reference.check`."""

import sys

from tests.reference.check import main

sys.exit(main(sys.argv[1:]))
