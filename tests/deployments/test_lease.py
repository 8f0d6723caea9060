from deployments.lease import Lease, LeaseTerms

TERMS = LeaseTerms(lease_s=30.0, stall_s=600.0)


def test_every_message_renews_the_lease() -> None:
    lease = Lease(TERMS)
    assert [lease.renew(now) for now in (0.0, 20.0, 45.0)] == [30.0, 50.0, 75.0]
    assert not lease.has_stalled(75.0)


def test_a_replica_that_lives_but_does_no_step_stalls() -> None:
    lease = Lease(TERMS)
    lease.renew(0.0, engine_steps=7)
    for now in range(5, 595, 5):
        assert lease.renew(float(now), engine_steps=7) == min(now + 30.0, 600.0)
    assert not lease.has_stalled(599.9)
    assert lease.has_stalled(600.0)


def test_a_step_for_anybody_is_a_step() -> None:
    """A song may be paused for others."""
    lease = Lease(TERMS)
    for now in range(0, 6000, 5):
        lease.renew(float(now), engine_steps=now)
    assert not lease.has_stalled(6500.0)


def test_progress_and_audio_are_steps_as_well() -> None:
    lease = Lease(TERMS)
    lease.renew(0.0, engine_steps=7)
    lease.renew(500.0)
    assert not lease.has_stalled(1000.0)
    assert lease.has_stalled(1100.0)
