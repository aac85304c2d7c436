"""Write the Python of `proto/`: `python -m serving.pb.generate`."""

from __future__ import annotations

import re
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
        moved = re.sub(r"^from longtake\.v1", "from serving.pb.longtake.v1", path.read_text(), flags=re.M)
        path.write_text(moved)
    return written


if __name__ == "__main__":
    print("\n".join(str(path) for path in generate(HERE)), file=sys.stderr)
