"""Who goes first under each policy, and that nobody waits for ever under any."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_case import Case

from octavo.config import SchedulerConfig
from octavo.request import Request, SamplingParams
from octavo.scheduler.rank import fair_queue
from octavo.scheduler.rank.fair import INPUT_WEIGHT, OUTPUT_WEIGHT


def case(policy: str, num_blocks: int = 100, ageing_seconds: float = 1e9, **config: object) -> Case:
    settings = {"block_size": 4, "max_num_batched_tokens": 64} | config
    return Case(
        SchedulerConfig(num_blocks=num_blocks, policy=policy, ageing_seconds=ageing_seconds, **settings)  # type: ignore[arg-type]
    )


def add(over: Case, prompt: int, new: int, arrival: float = 0.0, user: str | None = None, n: int = 1) -> Request:
    """A request of so many tokens; each prompt is of another token, so that none shares."""
    tokens = [len(over.requests) % over.vocab_size] * prompt
    request = over.add(tokens, SamplingParams(max_tokens=new, n=n), arrival=arrival, user=user, stops=False)
    assert request is not None
    return request


def admitted(over: Case) -> list[str]:
    """Run to the end, and say in which order they were first resident."""
    begun = len(over.first_resident)
    over.drain()
    over.check_outputs()
    return over.first_resident[begun:]


# -- shortest remaining first ---------------------------------------------------------------------------------------


def test_the_shortest_goes_first() -> None:
    over = case("srpt", max_num_seqs=1)
    long, short, middle, twice = add(over, 9, 9), add(over, 2, 2), add(over, 9, 2), add(over, 2, 9)
    assert admitted(over) == [short.id, middle.id, twice.id, long.id]


def test_siblings_are_work_too() -> None:
    over = case("srpt", max_num_seqs=4)
    four, one = add(over, 5, 10, n=4), add(over, 5, 30)
    assert one.rank < four.rank
    over.drain()


def test_what_is_done_does_not_count() -> None:
    """Half-way, the long request has less to do than a shorter one that arrives; at its beginning it had not."""
    over = case("srpt", num_blocks=10)
    long = add(over, 8, 20)
    for _ in range(14):
        over.step()
    newcomer = add(over, 4, 12)  # 16 tokens; 7 are left of the long one
    assert newcomer.rank < (28 * 1e6, 0)
    over.step()
    assert long.rank < newcomer.rank
    over.drain()
    assert long.num_preemptions == 0
    over.check_outputs()


def test_a_short_request_preempts_a_long_one_that_has_just_begun() -> None:
    over = case("srpt", num_blocks=11)
    long = add(over, 8, 24)
    over.step()  # 23 tokens are left of it, and 9 blocks
    middle = add(over, 16, 2)  # takes 4 of them
    short = add(over, 20, 2)  # 22 tokens; wants 5 blocks, and leaves one for the middle one to grow
    over.step()
    assert [each.num_preemptions for each in (long, middle, short)] == [1, 0, 0]
    rank = long.rank
    while short.live:
        over.step()
        assert long.rank == rank  # it waits: nothing of it has changed
    over.drain()
    over.check_outputs()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), policy=st.sampled_from(["srpt", "fair"]), depth=st.integers(0, 1))
def test_no_two_take_turns(seed: int, policy: str, depth: int) -> None:
    """Whoever was preempted ranks behind all that were resident above it, until those have left or lost memory."""
    rng = random.Random(seed)
    over = case(policy, num_blocks=rng.randint(9, 14), depth=depth, max_num_batched_tokens=rng.choice([2, 7, 64]))
    for i in range(8):
        add(over, rng.randint(1, 18), rng.randint(1, 16), arrival=float(i), user=rng.choice(["u", "v"]), n=1)
    ahead: dict[str, set[str]] = {}  # preempted request -> those it must not pass
    while over.scheduler.has_unfinished() or over.in_flight:
        before = {request.id: request.num_preemptions for request in over.requests.values()}
        over.step()
        lost = {name for name, count in before.items() if over.requests[name].num_preemptions > count}
        running = {request.id for request in over.scheduler.residency.running}
        for name in ahead:
            ahead[name] -= lost
            ahead[name] &= running
        for name in lost:
            rank = over.requests[name].rank
            ahead[name] = {other.id for other in over.scheduler.residency.running if other.rank < rank}
            assert not any(name in ahead.get(other, ()) for other in ahead[name])
        for name in running:
            for other in ahead.get(name, ()):
                assert over.requests[other].rank < over.requests[name].rank or name not in lost
            ahead.pop(name, None)
    over.check_outputs()


# -- fair shares ------------------------------------------------------------------------------------------------------


def served(over: Case) -> dict[str | None, float]:
    """What each user has had, by the policy's weights: prompts of those admitted, and new tokens."""
    totals: dict[str | None, float] = {}
    for request in over.requests.values():
        if any(seq.slot >= 0 or seq.num_computed or seq.finish_reason for seq in request.sequences):
            new = sum(len(seq.tokens) - seq.num_prompt for seq in request.sequences)
            cost = INPUT_WEIGHT * len(request.prompt_token_ids) + OUTPUT_WEIGHT * new
            totals[request.user] = totals.get(request.user, 0.0) + cost
    return totals


def test_a_flood_does_not_bury_another_user() -> None:
    over = case("fair", max_num_seqs=2)
    flood = [add(over, 6, 6, user="flood") for _ in range(30)]
    for _ in range(10):
        over.step()
    late = add(over, 6, 6, arrival=1.0, user="late")
    order = admitted(over)
    assert order.index(late.id) < 3  # those that run end first; none of those that wait goes before
    assert len(flood) == 30


@pytest.mark.parametrize(
    "lengths", [{"a": (4, 12), "b": (4, 12)}, {"a": (1, 20), "b": (16, 2)}, {"a": (2, 2), "b": (9, 9)}]
)
def test_users_with_work_get_equal_shares(lengths: dict[str, tuple[int, int]]) -> None:
    """While both wait, service differs by no more than twice the most that the memory can hold of one user's."""
    over = case("fair", max_num_seqs=3)
    for _ in range(60):
        for user, (prompt, new) in lengths.items():
            add(over, prompt, new, user=user)
    longest = max(INPUT_WEIGHT * prompt for prompt, _ in lengths.values())
    resident = 3 * max(OUTPUT_WEIGHT * new for _, new in lengths.values())
    waiting = over.scheduler.policy.waiting
    while {"a", "b"} <= {request.user for request in waiting}:
        over.step()
        totals = served(over)
        assert abs(totals.get("a", 0.0) - totals.get("b", 0.0)) <= 2 * max(longest, resident)
    assert sum(served(over).values()) > 500
    over.drain()
    over.check_outputs()


def test_idle_time_is_not_saved_up() -> None:
    over = case("fair", max_num_seqs=1)
    add(over, 4, 4, user="a")
    over.drain()
    for _ in range(20):
        add(over, 4, 4, user="b")
    for _ in range(60):
        over.step()
    early = [request.id for request in over.requests.values() if request.sequences[0].finish_reason]
    assert 10 < len(early) < 18
    for _ in range(20):
        add(over, 4, 4, user="a")
    order = [request.user for name in admitted(over) if (request := over.requests[name])]
    assert 3 <= order[:7].count("a") <= 4  # turn by turn, and not many of a's at once


def test_without_users_it_is_first_come_first_served() -> None:
    over = case("fair", max_num_seqs=2)
    names = [add(over, 1 + i % 7, 1 + i % 5).id for i in range(20)]
    assert admitted(over) == names


def test_accounts_of_users_who_are_gone_are_closed() -> None:
    over = case("fair", max_num_seqs=4)
    for i in range(200):
        add(over, 3, 3, user=f"user{i}", arrival=float(i))
        over.step()
    over.drain()
    add(over, 3, 3, user="last")
    over.drain()
    counters = over.scheduler.policy._counters  # type: ignore[attr-defined]
    assert len(counters) < 20
    assert not over.scheduler.policy._charged  # type: ignore[attr-defined]
    assert set(over.scheduler.policy._num_live) == set()  # type: ignore[attr-defined]


# -- nobody starves ---------------------------------------------------------------------------------------------------


def flooded(policy: str, ageing_seconds: float, seconds: int) -> tuple[Case, Request, float | None]:
    """One request, and from then on, second after second, more than can be served of those that go before it as long
    as ageing allows. Returns the case, the request, and the second in which it ended."""
    over = case(policy, num_blocks=12, ageing_seconds=ageing_seconds, max_num_seqs=2)
    if policy == "fair":  # its user has had a lot, the others nothing
        for _ in range(3):
            add(over, 8, 24, user="u")
        while len(over.scheduler.policy.waiting) > 0:
            over.step()
    victim = over.add([0] * 20, SamplingParams(max_tokens=20), priority=3, user="u", stops=False)
    assert victim is not None
    for second in range(seconds):
        for i in range(2):
            prompt = [1 + (second + i) % 3] * 2
            name = f"{second}-{i}"
            over.add(prompt, SamplingParams(max_tokens=2), arrival=float(second), user=name, stops=False)
        over.step()
        if not victim.live:
            return over, victim, float(second)
    return over, victim, None


@pytest.mark.parametrize("policy", ["priority", "srpt"])
def test_without_ageing_the_flood_would_starve_it(policy: str) -> None:
    """What the next test proves is not true by itself."""
    assert flooded(policy, 1e9, 600)[2] is None


def test_without_turns_by_age_ever_new_users_would_starve_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_queue, "TURNS_BY_AGE", 10**9)
    assert flooded("fair", 1.0, 600)[2] is None


@pytest.mark.parametrize(("policy", "ageing"), [("fcfs", 1.0), ("priority", 20.0), ("srpt", 1500.0)])
def test_nobody_starves_under_a_flood(policy: str, ageing: float) -> None:
    """From the moment on that the policy's own argument names, nobody who comes goes before."""
    over, victim, ended = flooded(policy, ageing, 600)
    assert ended is not None
    until = {"fcfs": 0.0, "priority": 3 * 20.0, "srpt": 40 / 1000 * 1500.0}[policy]
    before = over.first_resident[: over.first_resident.index(victim.id)]
    arrivals = [over.requests[name].arrival for name in before]
    assert all(arrival <= until for arrival in arrivals)
    if policy != "fcfs":
        assert max(arrivals) > until / 2  # others do go before it, while they may


def test_ever_new_users_hold_nobody_up() -> None:
    """With ``k`` older requests waiting, at most ``TURNS_BY_AGE * (k + 1)`` go before one."""
    over, victim, ended = flooded("fair", 1.0, 600)
    assert ended is not None
    ahead = over.first_resident.index(victim.id) - over.first_resident.index("r2")  # r0 to r2 ran before it came
    assert fair_queue.TURNS_BY_AGE / 2 < ahead <= fair_queue.TURNS_BY_AGE


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 100_000), depth=st.integers(0, 1))
def test_the_bound_on_waiting_in_admissions(seed: int, depth: int) -> None:
    rng = random.Random(seed)
    over = case("fair", num_blocks=40, max_num_seqs=rng.choice([1, 3]), depth=depth)
    older: dict[str, int] = {}
    before: dict[str, int] = {}
    for second in range(120):
        for _ in range(rng.randint(0, 3)):
            waiting = len(over.scheduler.policy.waiting)
            user = rng.choice(["u", "u", "v", f"user{second}"])
            request = add(over, rng.choice([1, 9]), rng.choice([1, 12]), float(second), user=user)
            older[request.id], before[request.id] = waiting, len(over.first_resident)
        over.step()
    over.drain()
    for place, name in enumerate(over.first_resident):
        assert place - before[name] <= fair_queue.TURNS_BY_AGE * (older[name] + 1)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 100_000),
    policy=st.sampled_from(["fcfs", "priority", "srpt"]),  # for "fair" see the bound above
    depth=st.integers(0, 1),
    victims=st.sampled_from(["rank", "rank", "lru"]),
)
def test_under_any_lasting_overload_everybody_is_served(seed: int, policy: str, depth: int, victims: str) -> None:
    """For 300 seconds more comes than can be served; who came in the first 20 has ended long before it stops."""
    rng = random.Random(seed)
    over = case(
        policy,
        num_blocks=rng.randint(10, 16),
        ageing_seconds=5.0 if policy == "priority" else 100.0,
        max_num_seqs=rng.choice([2, 4]),
        max_num_batched_tokens=rng.choice([4, 16, 64]),
        depth=depth,
        victims=victims,
    )
    for second in range(300):
        if len(over.scheduler.policy.waiting) < 60 or second > 60:
            prompt = [rng.randrange(4) for _ in range(rng.choice([1, 2, 14]))]
            params = SamplingParams(max_tokens=rng.choice([1, 3, 20]), n=rng.choice([1, 1, 2]))
            user = rng.choice(["u", "v", f"user{second}"])
            over.add(prompt, params, priority=rng.choice([-2, 0, 1]), arrival=float(second), user=user, stops=False)
        for _ in range(2):
            over.step()
    late = [request.id for request in over.requests.values() if request.arrival < 20 and request.live]
    assert not late
    over.drain()
    over.check_outputs()
