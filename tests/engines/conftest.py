"""What the tests of several rooms share that takes a while to make."""

from __future__ import annotations

import pytest

from tests.support.exported import CODECS, Exported


@pytest.fixture(scope="session", params=CODECS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A tiny codec and its graphs."""
    return Exported(request.param, tmp_path_factory.mktemp(request.param))
