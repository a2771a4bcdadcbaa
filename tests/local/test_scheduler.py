"""The scheduler by itself: what a tick takes, and from whom."""

from __future__ import annotations

import asyncio
import itertools
import time
from random import Random
from types import SimpleNamespace

import pytest

from tcm_sync.local.core import Core
from tcm_sync.local.scheduler import Job, JobLoad, Scheduler


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(clock):
    def make_scheduler(**settings):
        loads = {
            "management": JobLoad(5, 50),
            "inference": JobLoad(settings.pop("queue_size", 10), settings.pop("executor_queue_size", 200)),
        }
        return Scheduler(loads, **{"quantum": 5, **settings}, clock=clock)

    return make_scheduler


def put(scheduler, *uuids, tenant="t", kind="inference"):
    return [scheduler.put(Job(uuid, tenant, {}, kind)) for uuid in uuids]


def counts(scheduler, kind="inference"):
    return scheduler.loads[kind].waiting, scheduler.loads[kind].running


def run(scheduler):
    return [job.uuid for job in scheduler.tick().run]


def test_a_tick_takes_the_oldest_uuids_up_to_the_quantum(make):
    scheduler = make(quantum=2)
    put(scheduler, "a", "b", "c")
    assert run(scheduler) == ["a", "b"]
    put(scheduler, "b", "a")
    assert run(scheduler) == ["a", "b"]  # c came later than both, and continues to wait
    assert run(scheduler) == ["c"]


def test_a_tick_takes_one_of_each_uuid(make):
    scheduler = make()
    put(scheduler, "a", "a", "a", "b")
    assert run(scheduler) == ["a", "b"]
    assert run(scheduler) == ["a"]
    assert counts(scheduler)[0] == 1


def test_jobs_of_one_uuid_run_in_the_order_in_which_they_came(make):
    scheduler = make()
    jobs = [Job("a", "t", {"number": number}) for number in range(3)]
    for job in jobs:
        scheduler.put(job)
    assert [scheduler.tick().run for _ in jobs] == [[job] for job in jobs]


def test_the_quantum_is_each_tenants_own(make):
    scheduler = make(quantum=1)
    put(scheduler, "a", "b", tenant="one")
    put(scheduler, "c", "d", tenant="two")
    assert run(scheduler) == ["a", "c"]
    assert run(scheduler) == ["b", "d"]


def test_age_counts_from_the_first_message_of_any_kind(make):
    scheduler = make(quantum=1)
    scheduler.note("b", "info")
    put(scheduler, "a", "b")
    assert run(scheduler) == ["b"]


def test_who_is_passed_over_is_counted_so(make):
    scheduler = make(quantum=1)
    late = Job("b", "t", {})
    put(scheduler, "a")
    scheduler.put(late)
    for _ in range(3):
        assert run(scheduler) == ["a"]
        put(scheduler, "a")
    assert late.passed_over == 3


def test_a_full_queue_takes_no_more_of_its_uuid_alone(make):
    scheduler = make(queue_size=2)
    assert put(scheduler, "a", "a", "a", "b") == [True, True, False, True]
    assert counts(scheduler) == (3, 0)


def test_while_the_executor_is_full_everything_waits(make):
    scheduler = make(executor_queue_size=1)
    put(scheduler, "a")
    assert run(scheduler) == ["a"]
    put(scheduler, "b")
    assert scheduler.tick() == ([], [])
    assert (counts(scheduler), scheduler.can_tick) == ((1, 1), False)
    scheduler.finish("inference")
    assert run(scheduler) == ["b"]


def test_what_a_tick_takes_over_the_room_of_the_executor_is_dropped(make):
    scheduler = make(executor_queue_size=1)
    put(scheduler, "a", "b", "c")
    taken = scheduler.tick()
    assert [job.uuid for job in taken.run] == ["a"]
    assert [job.uuid for job in taken.dropped] == ["b", "c"]
    assert counts(scheduler) == (0, 1)


def test_each_kind_has_its_own_queues_turns_and_executor(make):
    scheduler = make(quantum=1, queue_size=1, executor_queue_size=1)
    assert put(scheduler, "a", "a") == [True, False]
    assert put(scheduler, *"aaaaaa", kind="management") == [True] * 5 + [False]
    assert [job.kind for job in scheduler.tick().run] == ["management", "inference"]
    assert [job.kind for job in scheduler.tick().run] == ["management"]
    assert (counts(scheduler), counts(scheduler, "management")) == ((0, 1), (3, 2))
    scheduler.finish("management")
    assert (counts(scheduler), counts(scheduler, "management")) == ((0, 1), (3, 1))


def test_dropping_all_empties_the_queues_and_leaves_what_runs(make):
    scheduler = make()
    put(scheduler, "a", "a", "b")
    scheduler.tick()
    put(scheduler, "b")
    assert [job.uuid for job in scheduler.drop_all()] == ["a", "b"]
    assert counts(scheduler) == (0, 2)
    assert run(scheduler) == []


def test_an_idle_uuid_is_forgotten_and_comes_back_as_the_youngest(make, clock):
    scheduler = make(quantum=1, forget_after=900.0)
    put(scheduler, "a")
    run(scheduler)
    clock.now = 600
    put(scheduler, "b")
    run(scheduler)
    clock.now = 1000
    scheduler.tick()
    assert scheduler.queue_stats()["total_users"] == 1
    put(scheduler, "a", "b")
    assert run(scheduler) == ["b"]


def test_a_uuid_that_continues_asking_is_not_forgotten(make, clock):
    scheduler = make(forget_after=900.0)
    for clock.now in (0, 500, 1000):
        put(scheduler, "a")
        run(scheduler)
    clock.now = 1100
    scheduler.tick()
    assert scheduler.queue_stats()["total_users"] == 1


def test_a_uuid_that_waits_is_not_forgotten(make, clock):
    scheduler = make(executor_queue_size=1, forget_after=900.0)
    put(scheduler, "a")
    run(scheduler)
    put(scheduler, "b")
    clock.now = 2000
    scheduler.tick()
    scheduler.finish("inference")
    assert run(scheduler) == ["b"]


def test_queue_stats_count_users_by_what_they_sent(make):
    scheduler = make(executor_queue_size=7)
    put(scheduler, "a", "a", "b")
    put(scheduler, "c", "c", "c", kind="management")
    scheduler.note("a", "info")
    scheduler.tick()
    assert scheduler.queue_stats() == {
        "info_users": 1,
        "management_users": 1,
        "inference_users": 2,
        "total_users": 3,
        "total_queued": 3,
        "info_total_queued": 0,
        "management_total_queued": 2,
        "inference_total_queued": 1,
        "executor_info_pending": 0,
        "executor_management_pending": 0,
        "executor_inference_pending": 1,
        "executor_info_available": 100,
        "executor_management_available": 49,
        "executor_inference_available": 5,
    }


@pytest.mark.parametrize(
    ("sockets", "replaced_after", "spread", "ticks", "fewest", "most"),
    [
        pytest.param(5, None, 0, 575, 565, 572, id="5"),
        pytest.param(8, None, 0, 575, 4, 576, id="8"),
        pytest.param(16, None, 0, 575, 1, 578, id="16"),
        pytest.param(16, 200, 0, 575, 5, 204, id="16, replaced after 200"),
        pytest.param(16, 50, 0, 575, 151, 201, id="16, replaced after 50"),
        pytest.param(16, 20, 0, 575, 162, 186, id="16, replaced after 20"),
        pytest.param(16, 500, 100, 5750, 1380, 2136, id="16, replaced after about 500, 60 s"),
        pytest.param(16, 200, 40, 3830, 1089, 1269, id="16, replaced after about 200, 40 s"),
    ],
)
def test_a_closed_loop_is_served_as_by_a_manager(make, sockets, replaced_after, spread, ticks, fewest, most):
    """What a real manager served of each socket (docs/wire.rst, "Timing").

    Where the lives of sockets are random, a place may be behind by one such life.
    """
    random = Random(7)
    scheduler = make()
    served = [0] * sockets
    left: list[int | None] = [None] * sockets
    names = itertools.count()
    owners: dict[str, int] = {}

    def connect(place: int) -> str:
        name = f"uuid-{next(names)}"
        owners[name] = place
        left[place] = replaced_after and replaced_after + random.randint(-spread, spread)
        return name

    put(scheduler, *(connect(place) for place in range(sockets)))
    for _ in range(ticks):
        for name in run(scheduler):
            place = owners[name]
            served[place] += 1
            scheduler.finish("inference")
            if left[place] is not None:
                left[place] -= 1
            put(scheduler, connect(place) if left[place] == 0 else name)
    assert sum(served) == 5 * ticks
    slack = 0.1 * most + (replaced_after if spread else 0)
    assert min(served) == pytest.approx(fewest, abs=slack)
    assert max(served) == pytest.approx(most, abs=slack)


def test_a_late_round_is_not_made_up_for_by_an_early_one():
    """As the manager does: it sleeps for a whole tick after each round, however long the round took."""
    tick, rounds = 0.010, []

    async def run() -> None:
        core = SimpleNamespace(settings=SimpleNamespace(tick=tick), _work=asyncio.Event())
        core._loop = asyncio.get_running_loop()
        core._sleep_until = lambda due: asyncio.sleep(due - core._loop.time())
        core._work.set()

        def take_turns() -> None:
            began = core._loop.time()
            time.sleep(0.6 * tick)  # a round that takes its time
            rounds.append((began, core._loop.time()))
            if len(rounds) == 5:
                raise EOFError

        core._run_tick = take_turns
        with pytest.raises(EOFError):
            await Core.schedule(core)

    asyncio.run(run())
    pauses = [later[0] - earlier[1] for earlier, later in itertools.pairwise(rounds)]
    resolution = time.get_clock_info("monotonic").resolution
    assert min(pauses) >= tick - max(resolution, 0.001)  # a loop may wake a moment early
