"""What the tests of several rooms share that takes a while to make."""

from __future__ import annotations

import pytest

from tests.support.exported import CODECS, Exported

# The Wan VAE's six graphs take half a minute to export.
KINDS = [pytest.param(kind, marks=pytest.mark.slow) if kind == "wan" else kind for kind in CODECS]


@pytest.fixture(scope="session", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Exported:
    """A tiny codec and its graphs."""
    own = tmp_path_factory.getbasetemp()
    return Exported(request.param, own if worker_id == "master" else own.parent)
