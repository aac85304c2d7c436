"""What benchmarks measure with, and the shapes they report in."""
