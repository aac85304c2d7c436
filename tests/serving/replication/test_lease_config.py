"""How long leases may be."""

from __future__ import annotations

import pytest

from serving.replication.leases import LeaseConfig


@pytest.mark.parametrize("seconds", [0.0, -1.0, 61.0])
def test_a_lease_that_cannot_be_is_refused_by_its_length(seconds: float) -> None:
    with pytest.raises(ValueError, match=f"lease is {seconds:g} s"):
        LeaseConfig(seconds)


def test_a_takeover_waits_longer_than_any_lease_on_a_clock_that_is_one_percent_slow() -> None:
    leases = LeaseConfig()
    assert leases.takeover_wait_s > leases.lease_s * 1.01**2
    assert leases.renew_every_s < leases.doubt_after_s < leases.takeover_wait_s < leases.standby_expires_s
