"""What tests and benchmarks of a running server run it in: hosts, a chart, a browser, and its processes."""
