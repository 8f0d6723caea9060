"""The faults that are staged within seconds. `make test-faults` stages all of them, again and again."""

from collections.abc import Iterator

import pytest

from tests.faults import disks, processes
from tests.faults.campaign import Fault, NotStagedError, Stage
from tests.faults.ledger import Ledger, Verdict

pytestmark = pytest.mark.cluster

FAST = [fault for fault in (*processes.FAULTS, *disks.FAULTS) if fault.is_fast]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with processes.one_machine(tmp_path_factory.mktemp("faults")) as application:
        ledger = Ledger(application)
        yield Stage(application, ledger)
        ledger.close()


@pytest.mark.parametrize("fault", FAST, ids=lambda fault: fault.name)
def test_no_job_is_lost_and_no_song_is_published_twice(stage: Stage, fault: Fault) -> None:
    try:
        fault.stage(stage)
    except NotStagedError as reason:
        pytest.skip(str(reason))
    assert stage.ledger.audit() == Verdict(lost=[], twice=[])
