"""What the deployments are told of the settings."""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's models use pydantic in an old way
    from serve_app.app import retention_terms
from serve_app.settings import JobSettings

GIB = 2**30


@pytest.mark.parametrize(("share", "expected"), [(None, (0.1, 20 * GIB)), (0.2, (0.2, None)), (0.0, (0.0, None))])
def test_a_tenth_or_20_gib_of_the_disk_stay_free_unless_a_share_is_set(
    share: float | None, expected: tuple[float, int | None]
) -> None:
    terms = retention_terms(JobSettings(disk_reserve=share))
    assert (terms.disk_reserve, terms.disk_reserve_bytes) == expected
