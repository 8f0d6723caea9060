from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_engine.schedule import MOST_TIMES_THE_COST, UNITS_TO_GROW, Demand, Scheduler

Choose = Callable[..., tuple[str, ...]]  # of demands; in lanes also of those that run


def forward(request_id: str, cost: int, work: int, priority: int = 0) -> Demand:
    return Demand(request_id, "forward", cost, work, priority)


def decode(request_id: str, cost: int, work: int, priority: int = 0) -> Demand:
    return Demand(request_id, "decode", cost, work, priority)


# One choice


def test_the_request_with_least_work_left_goes_first() -> None:
    long, short = forward("long", 900, 9000), forward("short", 900, 1800)
    assert Scheduler(1000).choose([long, short]) == ("short",)


def test_a_higher_priority_goes_before_less_work() -> None:
    urgent, short = forward("urgent", 900, 9000, priority=1), forward("short", 900, 1800)
    assert Scheduler(1000).choose([short, urgent]) == ("urgent",)


def test_among_equals_the_earlier_goes_first() -> None:
    assert Scheduler(1000).choose([forward("b", 900, 9000), forward("a", 900, 9000)]) == ("b",)


def test_forwards_share_a_unit_up_to_the_budget() -> None:
    demands = [forward(name, 250, work) for name, work in (("d", 5000), ("c", 4000), ("b", 3000), ("a", 2000))]
    assert Scheduler(1000).choose(demands) == ("a", "b", "c", "d")
    assert Scheduler(999).choose(demands) == ("a", "b", "c")


def test_a_forward_that_does_not_fit_lets_a_smaller_one_pass() -> None:
    demands = [forward("first", 600, 600), forward("wide", 500, 1000), forward("narrow", 400, 4000)]
    assert Scheduler(1000).choose(demands) == ("first", "narrow")


def test_a_song_much_longer_than_the_first_does_not_slow_its_forward() -> None:
    demands = [forward("long", 801, 9000), forward("similar", 800, 8000), forward("short", 100, 500)]
    assert Scheduler(5000).choose(demands) == ("short", "similar")


def test_a_forward_over_the_budget_runs_alone() -> None:
    demands = [forward("wide", 5000, 5000), forward("narrow", 1, 9000)]
    assert Scheduler(1000).choose(demands) == ("wide",)


def test_a_decode_window_runs_alone() -> None:
    ending, beginning = decode("ending", 100, 200), forward("beginning", 100, 900)
    assert Scheduler(1000).choose([beginning, ending]) == ("ending",)


def test_a_decode_window_joins_nobody() -> None:
    demands = [forward("short", 100, 100), decode("window", 100, 200), forward("long", 100, 900)]
    assert Scheduler(1000).choose(demands) == ("short", "long")


def test_who_is_held_keeps_its_place_and_its_credit() -> None:
    scheduler = Scheduler(1000, oldest_share=0.5)
    oldest, window = forward("oldest", 900, 9000), decode("window", 900, 9000, priority=1)
    held = replace(oldest, held=True)
    assert [scheduler.choose([held, window]) for _ in range(4)] == [("window",)] * 4
    assert scheduler.choose([held]) == ()
    assert scheduler.choose([oldest, window]) == ("oldest",)


# Units side by side


def test_two_lanes_share_the_forwards() -> None:
    scheduler, demands = Scheduler(1000), [forward(name, 100, 900) for name in "abcde"]
    first = scheduler.choose(demands, lanes=2)
    assert first == ("a", "b", "c")
    assert scheduler.choose(demands, running=first, lanes=2) == ("d", "e")
    assert scheduler.choose(demands, running=tuple("abcde"), lanes=2) == ()


def test_a_song_that_is_decoded_runs_beside_others() -> None:
    demands = [decode("ending", 100, 200), forward("beginning", 100, 900), forward("another", 100, 900)]
    assert Scheduler(1000).choose(demands, running={"ending"}, lanes=2) == ("beginning", "another")


@pytest.mark.parametrize(
    ("other", "goes_beside"),
    [
        (forward("other", 800, 9000), True),
        (forward("other", 801, 9000), False),  # much larger: the cores are better left to the short one
        (forward("other", 801, 9000, priority=1), True),
        (forward("other", 1, 9000, priority=-1), False),
        (decode("other", 800, 9000), True),
        (decode("other", 801, 9000), False),
    ],
)
def test_who_may_slow_a_unit_down_that_runs(other: Demand, goes_beside: bool) -> None:
    chosen = Scheduler(1000).choose([forward("short", 100, 500), other], running={"short"}, lanes=2)
    assert chosen == (("other",) if goes_beside else ())


def test_an_oldest_that_is_due_goes_beside_anybody() -> None:
    scheduler = Scheduler(1000, oldest_share=0.5)
    demands = [forward("oldest", 900, 9000), forward("urgent", 300, 9000, priority=9)]
    assert turns(scheduler, demands, 5) == [("urgent",)] * 5
    assert scheduler.choose(demands, running={"urgent"}, lanes=2) == ()
    assert scheduler.choose(demands, lanes=2) == ("urgent",)
    assert scheduler.choose(demands, running={"urgent"}, lanes=2) == ("oldest",)


def test_credit_of_an_oldest_that_runs_lets_nobody_else_go_beside() -> None:
    scheduler = Scheduler(1000, oldest_share=0.5)
    demands = [forward("oldest", 100, 9000), forward("urgent", 300, 9000, priority=9), forward("wide", 900, 9900)]
    assert scheduler.choose(demands, lanes=2) == ("urgent", "oldest")
    scheduler._credit = 900.0
    assert scheduler.choose(demands, running={"oldest", "urgent"}, lanes=2) == ()


def test_a_forward_over_the_budget_has_the_device_to_itself() -> None:
    large, small = forward("large", 1001, 9000), forward("small", 1000, 9000)
    assert Scheduler(1000).choose([large, small], running={"large"}, lanes=2) == ()
    assert Scheduler(1000).choose([small, large], running={"small"}, lanes=2) == ()
    assert Scheduler(1000).choose([large, decode("window", 5000, 9000)], running={"window"}, lanes=2) == ()
    assert Scheduler(1000).choose([decode("window", 5000, 9000), small], running={"window"}, lanes=2) == ("small",)


def test_a_large_oldest_that_is_due_waits_until_nobody_runs_and_none_begins_before_it() -> None:
    scheduler = Scheduler(1000, oldest_share=0.5)
    oldest = forward("oldest", 3000, 90_000)
    demands = [oldest, forward("one", 900, 9000, priority=9), forward("other", 900, 9000, priority=9)]
    assert turns(scheduler, demands, 6) == [("one",)] * 6
    assert scheduler.choose(demands, running={"one"}, lanes=2) == ("other",)
    assert scheduler.choose(demands, running={"one"}, lanes=2) == ()
    assert scheduler.choose(demands, lanes=2) == ("oldest",)


# The share of the oldest


def turns(scheduler: Scheduler, demands: Sequence[Demand], units: int) -> list[tuple[str, ...]]:
    """Choices among demands that never come to an end."""
    return [scheduler.choose(demands) for _ in range(units)]


def test_the_oldest_gets_its_share_of_the_units_beside_more_urgent_ones() -> None:
    demands = [forward("oldest", 900, 9 * 10**6), forward("urgent", 900, 1800, priority=9)]
    chosen = Counter(turns(Scheduler(1000, oldest_share=0.25), demands, 401))
    assert chosen == {("urgent",): 301, ("oldest",): 100}  # one more: credit begins at 0


def test_an_oldest_that_is_due_goes_first_even_to_decode() -> None:
    demands = [decode("oldest", 900, 9000), forward("urgent", 900, 1800, priority=9)]
    assert turns(Scheduler(1000, oldest_share=0.5), demands, 3) == [("urgent",), ("urgent",), ("oldest",)]


def test_others_join_the_oldest_when_it_is_due() -> None:
    demands = [forward("oldest", 300, 9000), forward("urgent", 600, 600, 1), forward("wide", 5000, 5000, 2)]
    chosen = turns(Scheduler(1000, oldest_share=0.1), demands, 2)
    assert chosen == [("wide",), ("oldest", "urgent")]


def test_units_that_the_oldest_was_in_anyway_count_as_paid() -> None:
    oldest, urgent = forward("oldest", 100, 9000), forward("urgent", 100, 100, priority=1)
    scheduler = Scheduler(100, oldest_share=0.5)
    assert scheduler.choose([oldest, urgent]) == ("urgent",)  # half a unit of credit
    assert scheduler.choose([oldest]) == ("oldest",)
    assert turns(scheduler, [oldest, urgent], 3) == [("urgent",), ("urgent",), ("oldest",)]


def test_what_the_oldest_got_ahead_is_not_held_against_it() -> None:
    oldest, urgent = forward("oldest", 100, 9000), forward("urgent", 100, 100, priority=1)
    scheduler = Scheduler(100, oldest_share=0.5)
    turns(scheduler, [oldest], 1000)
    assert turns(scheduler, [oldest, urgent], 3) == [("urgent",), ("urgent",), ("oldest",)]


def test_credit_is_not_handed_on_to_the_next_oldest() -> None:
    first, second = forward("first", 900, 9000), forward("second", 900, 9000)
    urgent = forward("urgent", 900, 900, priority=1)
    scheduler = Scheduler(1000, oldest_share=0.5)
    turns(scheduler, [first, second, urgent], 2)  # the first would be due now, but leaves
    assert turns(scheduler, [second, urgent], 3) == [("urgent",), ("urgent",), ("second",)]


def test_credit_is_never_more_than_the_work_left() -> None:
    """A narrow oldest in wide forwards gets less than its share although it is in all of them; no debt piles up."""
    narrow, wide = forward("oldest", 10, 50), forward("wide", 990, 9000, priority=1)
    scheduler = Scheduler(1000, oldest_share=0.5)
    turns(scheduler, [narrow, wide], 100)
    now_wide = forward("oldest", 1000, 1000)
    assert turns(scheduler, [now_wide, wide], 3) == [("wide",), ("wide",), ("oldest",)]


# The budget


def test_shrinking_halves_the_budget_until_all_run_alone() -> None:
    scheduler = Scheduler(5)
    assert [scheduler.shrink() for _ in range(3)] == [True, True, False]
    assert scheduler.max_tokens == 1
    assert scheduler.choose([forward("a", 1, 1), forward("b", 1, 2)]) == ("a",)


def test_the_budget_grows_back_to_what_it_was() -> None:
    scheduler, demands = Scheduler(1000), [forward("one", 1, 10**6)]
    scheduler.shrink()
    scheduler.shrink()
    grown = []
    for _ in range(4 * UNITS_TO_GROW):
        scheduler.choose(demands)
        grown.append(scheduler.max_tokens)
    assert [grown.count(tokens) for tokens in (250, 500, 1000)] == [UNITS_TO_GROW, UNITS_TO_GROW, 2 * UNITS_TO_GROW]


def test_a_budget_that_shrinks_again_waits_as_long_again() -> None:
    scheduler, demands = Scheduler(1000), [forward("one", 1, 10**6)]
    scheduler.shrink()
    turns(scheduler, demands, UNITS_TO_GROW)
    scheduler.shrink()
    turns(scheduler, demands, UNITS_TO_GROW)
    assert scheduler.max_tokens == 250


@pytest.mark.parametrize("max_tokens", [0, -1])
def test_a_budget_without_tokens_is_refused(max_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"max_tokens is {max_tokens}, must be at least 1"):
        Scheduler(max_tokens)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"oldest_share is .*, must be over 0 and at most 1"):
        Scheduler(1000, share)


# What holds for every choice


@st.composite
def crowds(draw: st.DrawFn) -> list[Demand]:
    """One to eight requests that wait for a unit, oldest first. Few ids, so that the same ones come again and leave."""
    ids = draw(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=8, unique=True).map(sorted))
    crowd = []
    for request_id in ids:
        ask = draw(st.sampled_from([forward, decode]))
        cost, later, priority = draw(st.tuples(st.integers(1, 3000), st.integers(0, 100_000), st.integers(0, 3)))
        crowd.append(ask(request_id, cost, cost + later, priority))
    return crowd


OUT_OF_MEMORY: list[Demand] = []
budgets = st.integers(1, 6000)
shares = st.floats(0.01, 1.0)
histories = st.lists(st.one_of(crowds(), st.just(OUT_OF_MEMORY)), min_size=1, max_size=10)


def play(scheduler: Scheduler, history: Iterable[list[Demand]]) -> Iterator[tuple[list[Demand], list[Demand]]]:
    """Each crowd of a history, and those of it that were chosen."""
    for crowd in history:
        if crowd == OUT_OF_MEMORY:
            scheduler.shrink()
        else:
            by_id = {demand.request_id: demand for demand in crowd}
            yield crowd, [by_id[request_id] for request_id in scheduler.choose(crowd)]


@settings(deadline=None, max_examples=100)
@given(budgets, shares, histories)
def test_every_unit_is_one_decode_or_forwards_within_the_budget(
    max_tokens: int, share: float, history: list[list[Demand]]
) -> None:
    scheduler = Scheduler(max_tokens, share)
    for _, chosen in play(scheduler, history):
        assert chosen
        assert len(set(chosen)) == len(chosen)
        if len(chosen) > 1:
            assert all(demand.kind == "forward" for demand in chosen)
            assert sum(demand.cost for demand in chosen) <= scheduler.max_tokens


@settings(deadline=None, max_examples=100)
@given(budgets, shares, histories)
def test_a_unit_is_led_by_the_first_in_order_or_by_the_oldest(
    max_tokens: int, share: float, history: list[list[Demand]]
) -> None:
    for crowd, chosen in play(Scheduler(max_tokens, share), history):
        first = min(crowd, key=lambda demand: (-demand.priority, demand.work))  # of equals, min takes the earliest
        assert chosen[0] in (first, crowd[0])


@settings(deadline=None, max_examples=100)
@given(budgets, shares, histories)
def test_a_forward_leaves_nobody_out_who_would_fit(max_tokens: int, share: float, history: list[list[Demand]]) -> None:
    scheduler = Scheduler(max_tokens, share)
    for crowd, chosen in play(scheduler, history):
        if chosen[0].kind == "forward":
            free = scheduler.max_tokens - sum(demand.cost for demand in chosen)
            most = min(free, MOST_TIMES_THE_COST * chosen[0].cost)
            assert all(demand.cost > most for demand in crowd if demand.kind == "forward" and demand not in chosen)


@settings(deadline=None, max_examples=100)
@given(budgets, shares, histories, st.frozensets(st.sampled_from("abcdefghij")), st.integers(1, 3))
def test_a_unit_beside_others_is_of_those_who_are_free(
    max_tokens: int, share: float, history: list[list[Demand]], running: frozenset[str], lanes: int
) -> None:
    scheduler = Scheduler(max_tokens, share)
    for crowd in filter(None, history):
        chosen = scheduler.choose(crowd, running, lanes)
        assert running.isdisjoint(chosen)
        assert len(chosen) <= -(-len(crowd) // lanes)
        if all(demand.request_id not in running for demand in crowd):
            assert chosen


@settings(deadline=None, max_examples=50)
@given(budgets, shares, histories)
def test_the_same_calls_give_the_same_choices(max_tokens: int, share: float, history: list[list[Demand]]) -> None:
    once, again = (list(play(Scheduler(max_tokens, share), history)) for _ in range(2))
    assert once == again


# Whole songs on a simulated device, whose clock counts tokens of work


@dataclass
class Song:
    """A request on its way: the tokens of its forwards and of its decode windows, and when it came and finished."""

    request_id: str
    forwards: Sequence[int]
    windows: Sequence[int]
    priority: int = 0
    came_at: int = 0
    finished_at: int = -1
    done: int = 0

    @property
    def own_work(self) -> int:
        return sum(self.forwards) + sum(self.windows)

    @property
    def elapsed(self) -> int:
        return self.finished_at - self.came_at

    def demand(self) -> Demand:
        left = [*self.forwards, *self.windows][self.done :]
        ask = forward if self.done < len(self.forwards) else decode
        return ask(self.request_id, left[0], sum(left), self.priority)


@dataclass
class Device:
    """Does unit after unit of the songs added, and keeps a record: when each unit began, for whom, who was oldest."""

    choose: Choose
    now: int = 0
    songs: list[Song] = field(default_factory=list)
    record: list[tuple[int, tuple[str, ...], Song]] = field(default_factory=list)

    def add(self, song: Song, came_at: int | None = None) -> Song:
        song.came_at = self.now if came_at is None else came_at
        self.songs.append(song)
        return song

    def step(self) -> None:
        demands = {song.request_id: song.demand() for song in self.songs}
        chosen = self.choose(list(demands.values()))
        self.record.append((self.now, chosen, self.songs[0]))
        self.now += sum(demands[request_id].cost for request_id in chosen)
        self._end(chosen)

    def _end(self, unit: Sequence[str]) -> None:
        for song in self.songs:
            if song.request_id in unit:
                song.done += 1
                if song.done == len(song.forwards) + len(song.windows):
                    song.finished_at = self.now
        self.songs = [song for song in self.songs if song.finished_at < 0]


@dataclass
class TwoLanes(Device):
    """Half the speed in each of two lanes. The record is of units begun while the oldest was free, and of the work
    begun until then.
    """

    lanes: dict[tuple[str, ...], int] = field(default_factory=dict)  # units that run, until when
    begun: int = 0

    def step(self) -> None:
        while len(self.lanes) < 2 and self.songs:
            demands = {song.request_id: song.demand() for song in self.songs}
            running = {request_id for unit in self.lanes for request_id in unit}
            chosen = self.choose(list(demands.values()), running, lanes=2)
            if not chosen:
                break
            if self.songs[0].request_id not in running:
                self.record.append((self.begun, chosen, self.songs[0]))
            cost = sum(demands[request_id].cost for request_id in chosen)
            self.begun += cost
            self.lanes[chosen] = self.now + 2 * cost
        unit = min(self.lanes, key=self.lanes.__getitem__)
        self.now = self.lanes.pop(unit)
        self._end(unit)


def first_come_first_served(demands: Sequence[Demand]) -> tuple[str, ...]:
    return (demands[0].request_id,)


def short_song(request_id: str, priority: int = 0) -> Song:
    """10 s in 27 steps, guided throughout."""
    return Song(request_id, [214] * 27, [2000], priority)


def long_song(request_id: str) -> Song:
    """240 s in 60 steps, guided throughout."""
    return Song(request_id, [5168] * 60, [2000] * 24)


SATURATED = 1000  # four short songs share a forward, a long one runs alone


def short_songs_beside_long_ones(choose: Choose, gaps: Sequence[int]) -> list[Song]:
    """Eight long songs fill the device; short ones come one at a time, each that much work after the last finished."""
    device = Device(choose)
    for index in range(8):
        device.add(long_song(f"long {index}"))
    shorts = []
    due_at = 0
    for index, gap in enumerate(gaps):
        due_at += gap
        while device.now < due_at:
            device.step()
        short = device.add(short_song(f"short {index}"), due_at)  # it may have come in the middle of a unit
        while short.finished_at < 0:
            device.step()
        due_at = device.now
        shorts.append(short)
    return shorts


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=20))
def test_short_songs_beside_long_ones_take_at_most_twice_their_own_time(gaps: list[int]) -> None:
    shorts = short_songs_beside_long_ones(Scheduler(SATURATED).choose, gaps)
    assert max(short.elapsed / short.own_work for short in shorts) <= 2


def test_first_come_first_served_keeps_short_songs_waiting_for_all_long_ones() -> None:
    shorts = short_songs_beside_long_ones(first_come_first_served, [10_000])
    assert min(short.elapsed / short.own_work for short in shorts) > 100


def test_four_short_songs_that_share_forwards_finish_together_before_the_long_one() -> None:
    device = Device(Scheduler(SATURATED).choose)
    device.add(long_song("long"))
    shorts = [device.add(short_song(f"short {index}")) for index in range(4)]
    while any(short.finished_at < 0 for short in shorts):
        device.step()
    forwards = [chosen for _, chosen, _ in device.record if len(chosen) > 1]
    assert forwards == [tuple(short.request_id for short in shorts)] * 27


def check_the_promise_to_the_oldest(device: Device, songs: Sequence[Song], share: float) -> None:
    """As the oldest, a song is passed over only until work of its own work / share is done, then it is in every unit.

    The work that counts is what it had left when it became the oldest.
    """
    units_done: Counter[str] = Counter()
    since: dict[str, tuple[int, int]] = {}  # when it became the oldest, and its work left then
    for began_at, chosen, oldest in device.record:
        name = oldest.request_id
        if name not in since:
            since[name] = began_at, sum([*oldest.forwards, *oldest.windows][units_done[name] :])
        if name not in chosen:
            became_at, work = since[name]
            assert (began_at - became_at) * share < work + 1e-3  # rounding
        units_done.update(chosen)
    assert all(song.finished_at >= 0 for song in songs)


def test_long_songs_finish_while_short_ones_never_cease_to_come() -> None:
    """Each in its turn as the oldest, within its own work / share; what comes on top is a unit at either end."""
    share = 0.2
    device = Device(Scheduler(SATURATED, share).choose)
    longs = [device.add(long_song(f"long {index}")) for index in range(8)]
    bounds = [long.own_work / share + 2 * 5168 for long in longs]
    came = 0
    while device.now < sum(bounds):
        for _ in range(sum(long.finished_at < 0 for long in longs) + 3 - len(device.songs)):  # three are always there
            device.add(short_song(f"short {came}", priority=1))
            came += 1
        device.step()
    check_the_promise_to_the_oldest(device, longs, share)
    finished = [0, *(long.finished_at for long in longs)]
    taken = [finish - begin for begin, finish in pairwise(finished)]
    assert all(work <= bound for work, bound in zip(taken, bounds, strict=True))
    assert all(work >= 0.95 * bound for work, bound in zip(taken, bounds, strict=True))  # the short ones have the rest


@st.composite
def song_lists(draw: st.DrawFn) -> list[Song]:
    """Up to ten songs in order of arrival, with any costs and priorities."""
    tokens = st.integers(1, 3000)
    songs = []
    for index in range(draw(st.integers(1, 10))):
        forwards = draw(st.lists(tokens, min_size=1, max_size=12))
        windows = draw(st.lists(tokens, max_size=4))
        songs.append(Song(str(index), forwards, windows, draw(st.integers(0, 3)), draw(st.integers(0, 40_000))))
    return sorted(songs, key=lambda song: song.came_at)


@settings(deadline=None, max_examples=100)
@given(budgets, shares, song_lists())
def test_whatever_comes_all_songs_finish_and_the_oldest_gets_its_share(
    max_tokens: int, share: float, songs: list[Song]
) -> None:
    device = Device(Scheduler(max_tokens, share).choose)
    coming = deque(songs)
    while coming or device.songs:
        while coming and (coming[0].came_at <= device.now or not device.songs):
            device.add(coming[0], coming.popleft().came_at)
        device.step()
    check_the_promise_to_the_oldest(device, songs, share)


@settings(deadline=None, max_examples=100)
@given(budgets, shares, song_lists())
def test_in_two_lanes_all_songs_finish_and_the_oldest_is_passed_over_no_more(
    max_tokens: int, share: float, songs: list[Song]
) -> None:
    device = TwoLanes(Scheduler(max_tokens, share).choose)
    coming = deque(songs)
    while coming or device.songs:
        while coming and (coming[0].came_at <= device.now or not device.songs):
            device.add(coming[0], coming.popleft().came_at)
        device.step()
    assert all(song.finished_at >= 0 for song in songs)
    since: dict[str, int] = {}
    for begun, chosen, oldest in device.record:
        since.setdefault(oldest.request_id, begun)
        if oldest.request_id not in chosen:
            assert (begun - since[oldest.request_id]) * share < oldest.own_work + 1e-3


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=10))
def test_short_songs_beside_long_ones_take_at_most_twice_their_own_time_in_a_lane(gaps: list[int]) -> None:
    """And a unit of a long song, which they meet when they come."""
    device = TwoLanes(Scheduler(SATURATED).choose)
    for index in range(8):
        device.add(long_song(f"long {index}"))
    for index, gap in enumerate(gaps):
        due_at = device.now + gap
        while device.now < due_at:
            device.step()
        short = device.add(short_song(f"short {index}"), due_at)
        while short.finished_at < 0:
            device.step()
        assert short.elapsed <= 2 * (2 * short.own_work) + 2 * 5168
