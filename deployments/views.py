"""A job as it is kept, to a job as clients see it."""

from acestep_engine.params import Progress
from deployments.failures import EXPIRED
from deployments.messages import JobEvent, JobView
from deployments.store.protocol import JobRow


def view_of(row: JobRow, position: int | None = None, progress: Progress | None = None) -> JobView:
    """Of a job that waits at `position`, or is as far as `progress`, or has ended. What has expired shows no result."""
    expired = row.outcome == "expired"
    return JobView(
        request_id=row.request_id,
        status=row.status,
        created_at=row.created_at,
        audio_format=row.audio_format,
        request_json=row.request_json,
        songs=row.songs,
        outcome=row.outcome,
        started_at=row.started_at,
        completed_at=row.completed_at,
        position=position,
        progress=progress,
        error=EXPIRED.sentence if expired else row.error,
        error_code=EXPIRED.code if expired else row.error_code,
        results=() if expired else row.results,
    )


def end_event(view: JobView) -> JobEvent:
    """The event that a job's end is."""
    data = {"status": view.status, "outcome": view.outcome, "error": view.error, "error_code": view.error_code}
    return JobEvent(int(1000 * (view.completed_at or 0.0)), "ended", data)
