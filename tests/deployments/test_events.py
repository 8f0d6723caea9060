import asyncio

from deployments.events import KEPT_EVENTS, STEP_INTERVAL_S, EventLog
from deployments.messages import JobEvent


class Clock:
    """Unix seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def step(log: EventLog, clock: Clock, number: int) -> None:
    clock.now += STEP_INTERVAL_S
    log.add("diffusion", {"step": number})


async def follow(log: EventLog, event_id: int = 0) -> list[JobEvent]:
    """Everything after that event, to the end."""
    heard: list[JobEvent] = []
    while not heard or not heard[-1].last:
        more = await log.wait_after(heard[-1].event_id if heard else event_id, 5.0)
        if not more:
            break
        heard += more
    return heard


async def test_a_follower_hears_all_from_the_start_to_exactly_one_end() -> None:
    clock = Clock()
    log = EventLog(clock)
    log.add("queued", {"position": 0})
    listening = asyncio.create_task(follow(log))
    for number in range(3):
        await asyncio.sleep(0)
        step(log, clock, number)
    log.add("ended", {"outcome": "completed"})
    log.add("diffusion", {"step": 9})
    log.add("ended", {"outcome": "cancelled"})
    heard = await listening
    assert [event.kind for event in heard] == ["queued", "diffusion", "diffusion", "diffusion", "ended"]
    assert heard[-1].data == {"outcome": "completed"}
    ids = [event.event_id for event in heard]
    assert ids == sorted(set(ids))


async def test_who_comes_back_hears_what_he_missed() -> None:
    clock = Clock()
    log = EventLog(clock)
    for number in range(4):
        step(log, clock, number)
    second = log.after(0)[1]
    log.add("ended", {})
    missed = await follow(log, second.event_id)
    assert [event.data for event in missed] == [{"step": 2}, {"step": 3}, {}]
    assert await follow(log, missed[-1].event_id) == []


async def test_ids_go_on_after_a_restart() -> None:
    clock = Clock()
    before = EventLog(clock)
    for number in range(5):
        before.add("diffusion", {"step": number})
        step(before, clock, 10 + number)
    clock.now += 0.1
    again = EventLog(clock)
    again.add("queued", {"position": 0})
    assert again.after(0)[0].event_id > before.after(0)[-1].event_id


def test_steps_are_throttled_but_never_a_new_stage_or_the_end() -> None:
    clock = Clock()
    log = EventLog(clock)
    for number in range(100):
        clock.now += STEP_INTERVAL_S / 10
        log.add("diffusion", {"step": number})
    log.add("decoding", {"step": 0})
    log.add("ended", {})
    kinds = [event.kind for event in log.after(0)]
    assert kinds[-2:] == ["decoding", "ended"]
    assert 5 < kinds.count("diffusion") < 20


def test_the_same_again_is_no_event() -> None:
    clock = Clock()
    log = EventLog(clock)
    for _ in range(3):
        clock.now += 10
        log.add("queued", {"position": 4})
    assert len(log.after(0)) == 1


def test_memory_is_bounded_and_the_end_is_kept() -> None:
    clock = Clock()
    log = EventLog(clock)
    for number in range(2 * KEPT_EVENTS):
        step(log, clock, number)
    log.add("ended", {})
    assert len(log.after(0)) == KEPT_EVENTS
    assert log.after(0)[-1].last


async def test_nothing_new_for_a_while_is_nothing() -> None:
    log = EventLog()
    log.add("queued", {"position": 1})
    [event] = await log.wait_after(0, 5.0)
    assert await log.wait_after(event.event_id, 0.01) == []


def test_a_clock_that_jumps_back_breaks_nothing() -> None:
    clock = Clock()
    log = EventLog(clock)
    step(log, clock, 1)
    clock.now -= 3600
    log.add("diffusion", {"step": 2})
    assert [event.data["step"] for event in log.after(0)] == [1, 2]
