"""One device and no model: a second queue, recorded graphs, copies on the host."""
