"""Generated from `proto/` by `python -m serving.pb.generate`; nothing here is edited."""
