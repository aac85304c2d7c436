"""Write the Python of `proto/`: `python -m serving.pb.generate`."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).parents[2] / "proto"
SOURCE = "longtake/v1/sessions.proto"
HERE = Path(__file__).parent


def generate(folder: Path) -> list[Path]:
    """Write the messages, their types and the service of `SOURCE` below `folder`; returns the files."""
    well_known = str(files("grpc_tools") / "_proto")
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    if code := protoc.main(["protoc", f"-I{PROTO}", f"-I{well_known}", *outputs, SOURCE]):
        raise SystemExit(code)
    written = sorted((folder / SOURCE).parent.glob("sessions_pb2*.py*"))
    for path in written:
        # The compiler imports from where the .proto lies; the Python lies in this package.
        # So do the messages themselves, which are pickled by the name of their module.
        text = path.read_text().replace("\nfrom longtake.v1", "\nfrom serving.pb.longtake.v1")
        moved = text.replace("'longtake.v1.sessions_pb2'", "'serving.pb.longtake.v1.sessions_pb2'")
        path.write_text(moved)
    return written


if __name__ == "__main__":
    print("\n".join(str(path) for path in generate(HERE)), file=sys.stderr)
