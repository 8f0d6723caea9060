"""Faults, each staged some times against the real application, and the table of what came of it."""

import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.application import Application
from tests.faults.ledger import Ledger


class NotStagedError(Exception):
    """This machine does not let us: the reason."""


@dataclass(frozen=True)
class Stage:
    """What a fault is staged on."""

    application: Application
    ledger: Ledger


Setup = Callable[[Path], AbstractContextManager[Application]]


@dataclass(frozen=True)
class Fault:
    """`stage` makes it happen, checks what is particular to it, and answers the seconds that recovery took, or None."""

    name: str
    stage: Callable[[Stage], float | None]
    setup: Setup
    times: int = 3
    is_fast: bool = False  # also a test of `make test`


@dataclass
class Record:
    """What came of one fault."""

    name: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    recoveries_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    not_staged: str | None = None

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.twice or self.failures)

    def row(self) -> str:
        if self.not_staged is not None:
            return f"{self.name:<58} not staged: {self.not_staged}"
        p50 = f"{statistics.median(self.recoveries_s):.1f} s" if self.recoveries_s else "-"
        most = f"{max(self.recoveries_s):.1f} s" if self.recoveries_s else "-"
        end = "" if not self.failures else f"  FAILED: {self.failures[0]}"
        return f"{self.name:<58} {self.tried:>5} {len(self.lost):>5} {len(self.twice):>6} {p50:>9} {most:>9}{end}"


HEAD = f"{'fault':<58} {'tried':>5} {'lost':>5} {'twice':>6} {'p50':>9} {'max':>9}"


def run(faults: Sequence[Fault], times: int | None = None) -> list[Record]:
    """Stage them, in the order given, those of a setup on one application; a record for each."""
    records: list[Record] = []
    for setup in dict.fromkeys(fault.setup for fault in faults):
        chosen = [fault for fault in faults if fault.setup is setup]
        try:
            with staged_on(setup) as stage:
                for fault in chosen:
                    records.append(_record(fault, stage, fault.times if times is None else min(times, fault.times)))
                    _tell(records[-1])
        except NotStagedError as reason:
            records += [Record(fault.name, not_staged=str(reason)) for fault in chosen]
        except Exception as error:  # noqa: BLE001  the other setups can still be tried
            done = {record.name for record in records}
            failed = [Record(one.name, failures=[_sentence(error)]) for one in chosen if one.name not in done]
            records += failed or [Record(f"the end of {chosen[-1].name}", failures=[_sentence(error)])]
            _tell(records[-1])
    return records


@contextmanager
def staged_on(setup: Setup) -> Iterator[Stage]:
    with TemporaryDirectory(prefix="faults-") as folder, setup(Path(folder)) as application:
        ledger = Ledger(application)
        try:
            yield Stage(application, ledger)
        finally:
            ledger.close()


def _record(fault: Fault, stage: Stage, times: int) -> Record:
    record = Record(fault.name)
    for _ in range(times):
        try:
            recovery_s = fault.stage(stage)
        except NotStagedError as reason:
            record.not_staged = str(reason)
            return record
        except Exception as error:  # noqa: BLE001  what a fault did is told in the table, and the others are tried
            traceback.print_exc()
            record.failures.append(_sentence(error))
            recovery_s = None
        record.tried += 1
        verdict = stage.ledger.audit()
        record.lost, record.twice = verdict.lost, verdict.twice
        if recovery_s is not None:
            record.recoveries_s.append(recovery_s)
        if not record.is_good:
            break
    return record


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:300]


def _tell(record: Record) -> None:
    print(f"{time.strftime('%H:%M:%S')} {record.row()}", file=sys.stderr, flush=True)
    for wrong in [*record.lost, *record.twice]:
        print(f"    {wrong}", file=sys.stderr, flush=True)
