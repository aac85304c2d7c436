"""Sessions that go on while the replicas they live on are killed and stopped: `python -m benchmarks.soak`."""
