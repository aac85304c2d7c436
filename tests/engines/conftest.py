"""What the tests of several rooms share that takes a while to make."""

from __future__ import annotations

import pytest

from tests.support.exported import CODECS, Exported


@pytest.fixture(scope="session", params=CODECS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Exported:
    """A tiny codec and its graphs."""
    own = tmp_path_factory.getbasetemp()
    return Exported(request.param, own if worker_id == "master" else own.parent)
