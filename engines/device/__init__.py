"""One device and no model: queues beside the main one, recorded graphs, copies on the host, memory and time."""
