"""Retry policies: what a failure means, how often and when a call is repeated."""

from __future__ import annotations

import logging
import pickle
from types import SimpleNamespace

import pytest
import tenacity

from tcm_sync import (
    ERROR_CODES,
    AuthenticationError,
    BackpressureError,
    CallTimeoutError,
    CircuitOpenError,
    ClientClosedError,
    ConfigError,
    ConnectFailedError,
    ConnectionLostError,
    ContractError,
    InferenceError,
    InferenceFailedError,
    InputError,
    MessageTooLargeError,
    ModelMissingError,
    PayloadTooLargeError,
    PermissionDeniedError,
    PoolTimeoutError,
    ProtocolError,
    RateLimitedError,
    ReentrantCallError,
    RetryPolicy,
    ShuttingDownError,
    TcmError,
    TritonOverloadedError,
    TritonTimeoutError,
)
from tcm_sync._calls.retrying import Repeats, perform
from tcm_sync._deadline import Deadline
from tcm_sync._reentry import Callers
from tcm_sync.events._listeners import NO_LISTENERS
from tcm_sync.retry import Verdict

FATAL, COUNTED, FREE = Verdict.FATAL, Verdict.COUNTED, Verdict.FREE


def failure(kind=TritonTimeoutError, message="it failed", **fields):
    return kind(message, **{"uuid": "u-1", **fields})


def lost(**fields):
    return failure(ConnectionLostError, outcome_unknown=True, **fields)


# --- the settings ---


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("attempts", 0),
        ("attempts", -1),
        ("attempts", 2.0),
        ("attempts", True),
        ("attempts", "4"),
        ("initial", -0.1),
        ("initial", float("nan")),
        ("initial", float("inf")),
        ("initial", True),
        ("initial", "1"),
        ("maximum", -1),
        ("maximum", 86_400),
        ("maximum", None),
        ("retriable", "TRITON_ERROR"),
        ("retriable", [7]),
        ("retriable", 7),
        ("retriable", iter(["TRITON_ERROR"])),
        ("fatal", "TRITON_ERROR"),
        ("fatal", [None]),
    ],
)
def test_a_setting_that_cannot_work_is_named(setting, value):
    with pytest.raises(ConfigError, match=rf"^retry\.{setting} must be"):
        RetryPolicy(**{setting: value})


def test_a_code_cannot_be_on_both_sides():
    with pytest.raises(ConfigError, match="A, B cannot be both retriable and fatal"):
        RetryPolicy(retriable=["B", "A", "C"], fatal=["A", "D", "B"])


def test_a_policy_is_a_value():
    policy = RetryPolicy(1, 0, 0.0, ["A", "A"], ("B",), resend_lost=False)
    assert (policy.retriable, policy.fatal) == (frozenset("A"), frozenset("B"))
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy) == hash(RetryPolicy(1, 0, 0.0, {"A"}, {"B"}, resend_lost=False))
    assert RetryPolicy() == RetryPolicy(4, 0.1, 5.0, frozenset(), frozenset(), resend_lost=True)


# --- what a failure means ---

VERDICTS = {
    ConnectionLostError: FREE,  # nothing was sent; see below
    ConnectFailedError: COUNTED,  # never asked about: it comes from no socket
    AuthenticationError: FATAL,
    PermissionDeniedError: FATAL,
    CallTimeoutError: FATAL,
    PoolTimeoutError: FATAL,
    ShuttingDownError: FREE,
    BackpressureError: FREE,
    RateLimitedError: FREE,
    ProtocolError: FATAL,
    MessageTooLargeError: FATAL,
    ContractError: FATAL,
    InputError: FATAL,
    ConfigError: FATAL,
    ClientClosedError: FATAL,
    ReentrantCallError: FATAL,
    InferenceError: FATAL,
    PayloadTooLargeError: FATAL,
    InferenceFailedError: FATAL,
}


@pytest.mark.parametrize("kind", VERDICTS)
def test_what_each_kind_of_failure_means(kind):
    assert RetryPolicy().verdict(kind("x")) is VERDICTS[kind]


@pytest.mark.parametrize("code", ERROR_CODES)
def test_what_each_code_means(code):
    rule = ERROR_CODES[code]
    error = rule.error("x", code=code, retriable=rule.retriable)
    assert rule.error.retriable is rule.retriable  # the classes say what the table does
    dropped = code.startswith(("SYSTEM_", "BACKPRESSURE_"))
    assert RetryPolicy().verdict(error) is (FREE if dropped else COUNTED if rule.retriable else FATAL)


@pytest.mark.parametrize("code", ERROR_CODES)
def test_a_user_may_call_every_code_fatal(code):
    rule = ERROR_CODES[code]
    error = rule.error("x", code=code, retriable=rule.retriable)
    assert RetryPolicy(fatal={code}).verdict(error) is FATAL


@pytest.mark.parametrize("code", [code for code in ERROR_CODES if code.startswith("TRITON_")])
def test_a_user_may_call_every_code_of_triton_retriable(code):
    rule = ERROR_CODES[code]
    error = rule.error("x", code=code, retriable=rule.retriable)
    assert RetryPolicy(retriable={code}).verdict(error) is COUNTED


@pytest.mark.parametrize("flag", [True, False])
def test_an_unknown_code_goes_by_its_flag_and_the_user_over_it(flag):
    error = InferenceError("x", code="NEW", retriable=flag)
    assert RetryPolicy().verdict(error) is (COUNTED if flag else FATAL)
    assert RetryPolicy(retriable={"NEW"}).verdict(error) is COUNTED
    assert RetryPolicy(fatal={"NEW"}).verdict(error) is FATAL


def test_413_and_1009_stay_fatal_whatever_the_user_says():
    code = "TRITON_INFERENCE_FAILED"
    policy = RetryPolicy(retriable={code})
    assert policy.verdict(PayloadTooLargeError("x", code=code, retriable=True)) is FATAL
    assert policy.verdict(MessageTooLargeError("x", code=code, retriable=True)) is FATAL
    assert policy.verdict(InferenceFailedError("x", code=code)) is COUNTED


@pytest.mark.parametrize(
    ("unknown", "resend_lost", "verdict"),
    [(True, True, COUNTED), (True, False, FATAL), (False, True, FREE), (False, False, FREE)],
)
def test_a_lost_reply_counts_and_a_lost_socket_does_not(unknown, resend_lost, verdict):
    error = ConnectionLostError("x", outcome_unknown=unknown)
    assert RetryPolicy(resend_lost=resend_lost).verdict(error) is verdict


def test_a_rejected_inference_is_free_although_it_may_have_run():
    assert RetryPolicy().verdict(ShuttingDownError("x", outcome_unknown=True)) is FREE


# --- attempts ---


class Clock:
    """Time that passes in attempts and pauses only."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        self.pauses = []
        monkeypatch.setattr("tcm_sync._deadline.monotonic", self)
        monkeypatch.setattr(tenacity, "time", SimpleNamespace(monotonic=self, sleep=self.sleep))

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def full_jitter(monkeypatch):
    """Draw the longest pause there is; what is returned has the bounds that were drawn between."""
    bounds = []
    monkeypatch.setattr(
        "tcm_sync._calls.retrying.random.uniform", lambda *ends: bounds.append(ends) or ends[1]
    )
    return bounds


class Call:
    """A call whose attempts fail as the test says, each taking some time, and then succeed."""

    def __init__(self, clock, *failures, policy=RetryPolicy(), timeout=None, takes=0.0, **how):  # noqa: B008
        self.clock = clock
        self.failures = list(failures)
        self.takes = takes
        self.made = 0
        self.attempts = Repeats(policy, Deadline(timeout), **how)

    def attempt(self):
        self.made += 1
        self.clock.now += self.takes
        if self.failures:
            raise self.failures.pop(0)
        return "result"

    def run(self):
        try:
            return self.attempt()
        except TcmError as error:
            first = error
        return self.attempts.run(first, self.attempt, self.clock.sleep)

    def fails(self, kind=TcmError):
        with pytest.raises(kind) as caught:
            self.run()
        return caught.value


def test_a_success_is_one_attempt_and_does_without_tenacity(clock, monkeypatch):
    monkeypatch.setattr(tenacity, "Retrying", lambda **settings: pytest.fail("it was asked"))
    call = Call(clock)
    assert call.run() == "result"
    assert (call.made, call.attempts.counted, call.attempts.history, clock.pauses) == (1, 0, [], [])


@pytest.mark.parametrize("error", [failure(ContractError), failure(ModelMissingError), failure(InputError)])
def test_a_fatal_failure_is_raised_as_it_is(clock, monkeypatch, error):
    monkeypatch.setattr(tenacity, "Retrying", lambda **settings: pytest.fail("it was asked"))
    call = Call(clock, error)
    assert call.fails() is error
    assert (call.made, error.attempts, error.history) == (1, 1, ())
    assert error.__context__ is None


@pytest.mark.parametrize("kind", [TritonTimeoutError, ConnectionLostError, BackpressureError])
def test_without_a_policy_the_first_failure_is_raised(clock, kind):
    call = Call(clock, failure(kind), policy=None)
    error = call.fails()
    assert (call.made, error.attempts, error.history, clock.pauses) == (1, 1, (), [])


@pytest.mark.parametrize("kind", [ConnectFailedError, PoolTimeoutError, ShuttingDownError, CircuitOpenError])
def test_what_came_to_no_socket_is_final_and_no_attempt(clock, kind):
    """A gate or the pool has waited for as long as there was time."""
    call = Call(clock, failure(kind, uuid=None))
    error = call.fails()
    assert (call.made, error.attempts) == (1, 0)


def test_what_is_no_error_of_ours_passes_at_once(clock):
    for errors in ([KeyboardInterrupt()], [failure(), KeyboardInterrupt()], [failure(), ZeroDivisionError()]):
        call = Call(clock, *errors)
        with pytest.raises(type(errors[-1])):
            call.run()
        assert call.made == len(errors)


def test_passing_failures_are_repeated_until_one_succeeds(clock, full_jitter):
    call = Call(clock, failure(), lost(), failure(TritonOverloadedError))
    assert call.run() == "result"
    assert (call.made, call.attempts.counted) == (4, 3)
    assert clock.pauses == [0.1, 0.2, 0.4]


def test_the_last_failure_reports_those_before_it(clock):
    errors = [failure(), lost(), failure(TritonOverloadedError), failure(), failure()]
    call = Call(clock, *errors)
    error = call.fails()
    assert error is errors[3]
    assert (call.made, error.attempts) == (4, 4)
    assert error.history == tuple(errors[:3])
    assert [past.attempts for past in error.history] == [1, 2, 3]
    assert pickle.loads(pickle.dumps(error)).history[2].message == "it failed"


def test_a_fatal_failure_ends_the_repeats(clock):
    errors = [failure(), failure(ContractError)]
    call = Call(clock, *errors)
    assert call.fails() is errors[1]
    assert (call.made, errors[1].attempts, errors[1].history) == (2, 2, (errors[0],))


@pytest.mark.parametrize("attempts", [1, 2, 7])
def test_so_many_attempts_and_no_more(clock, attempts):
    call = Call(clock, *[failure() for _ in range(20)], policy=RetryPolicy(attempts=attempts))
    assert call.fails().attempts == attempts
    assert call.made == attempts


@pytest.mark.parametrize("kind", [BackpressureError, RateLimitedError, ShuttingDownError])
def test_what_was_not_run_is_no_attempt_and_waits_at_its_gate_only(clock, kind):
    call = Call(clock, *[failure(kind) for _ in range(50)])
    assert call.run() == "result"
    assert (call.made, call.attempts.counted, clock.pauses) == (51, 0, [0.0] * 50)


def test_free_failures_between_counted_ones_do_not_count(clock, full_jitter):
    errors = [failure(), failure(BackpressureError), failure(), failure(ShuttingDownError), failure()]
    call = Call(clock, *errors, failure())
    assert call.fails().attempts == 4
    assert call.made == 6
    assert clock.pauses == [0.1, 0.0, 0.2, 0.0, 0.4]


def test_sockets_that_die_before_they_are_used_are_no_attempts_but_are_not_stormed(clock, full_jitter):
    call = Call(clock, *[failure(ConnectionLostError) for _ in range(10)])
    assert call.run() == "result"
    assert (call.made, call.attempts.counted) == (11, 0)
    assert clock.pauses == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


# --- pauses ---


def test_pauses_are_drawn_from_nothing_to_twice_as_much_each_time(clock, full_jitter):
    Call(clock, *[failure() for _ in range(9)], policy=RetryPolicy(attempts=9)).fails()
    tops = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert clock.pauses == pytest.approx(tops)
    assert full_jitter[:8] == [(0.0, pytest.approx(top)) for top in tops]


def test_pauses_go_by_the_policy(clock, full_jitter):
    Call(clock, *[failure() for _ in range(5)], policy=RetryPolicy(5, initial=3.0, maximum=7.0)).fails()
    assert clock.pauses == [3.0, 6.0, 7.0, 7.0]


@pytest.mark.parametrize("policy", [RetryPolicy(initial=0), RetryPolicy(maximum=0)])
def test_a_policy_may_do_without_pauses(clock, policy):
    Call(clock, *[failure() for _ in range(4)], policy=policy).fails()
    assert clock.pauses == [0.0] * 3


def test_a_thousand_attempts_do_not_overflow(clock):
    call = Call(clock, *[failure() for _ in range(2000)], policy=RetryPolicy(attempts=1500))
    assert call.fails().attempts == 1500
    assert max(clock.pauses) <= 5.0


@pytest.mark.parametrize("seconds", [0.0, 0.5, 30.0])
def test_a_pause_that_the_manager_asks_for_takes_the_place_of_ours(clock, full_jitter, seconds):
    call = Call(clock, failure(CircuitOpenError, retry_after=seconds), failure())
    assert call.run() == "result"
    assert clock.pauses == [seconds, 0.2]


# --- the deadline ---


@pytest.mark.parametrize(("seconds", "made"), [(9.9, 2), (10.0, 1), (60.0, 1)])
def test_a_pause_that_does_not_fit_the_deadline_is_not_begun(clock, seconds, made):
    call = Call(clock, failure(CircuitOpenError, retry_after=seconds), timeout=10.0)
    if made == 1:
        assert call.fails(CircuitOpenError).retry_after == seconds
        assert clock.now == 1000.0
    else:
        assert call.run() == "result"
    assert call.made == made


@pytest.mark.parametrize(
    ("takes", "made"), [(2.0, 4), (3.0, 3), (3.3, 2), (4.9, 2), (5.0, 1), (5.1, 1), (9.0, 1)]
)
def test_no_repeat_starts_with_less_time_than_the_failed_attempt_took(clock, full_jitter, takes, made):
    """Of 10 s, with pauses of 0.1 s, 0.2 s and 0.4 s, which are no time for a repeat."""
    call = Call(clock, *[failure() for _ in range(9)], timeout=10.0, takes=takes)
    call.fails()
    assert call.made == made


def test_what_was_not_run_is_repeated_with_whatever_time_is_left(clock):
    call = Call(clock, failure(BackpressureError), timeout=10.0, takes=9.0)
    assert call.run() == "result"
    assert call.made == 2


def test_a_call_without_a_deadline_repeats_however_long_it_takes(clock):
    call = Call(clock, *[failure() for _ in range(3)], takes=10_000.0)
    assert call.run() == "result"


def test_an_attempt_is_measured_from_its_own_start_and_not_from_that_of_the_call(clock):
    policy = RetryPolicy(attempts=9, initial=0)
    call = Call(clock, *[failure() for _ in range(9)], policy=policy, timeout=10.0, takes=1.0)
    assert call.fails().attempts == 9


# --- what the log says ---


def test_the_log_reports_each_repeat_with_its_cause(clock, caplog, full_jitter):
    caplog.set_level(logging.INFO, "tcm_sync.retry")
    Call(clock, failure(message="timed out"), failure(BackpressureError, "queue full")).run()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "0.100 s" in said[0]
    assert "timed out" in said[0]
    assert "queue full" in said[1]


def test_what_the_caller_handles_keeps_its_frames():
    """A call inside an except block has that error as the context of its own failures."""
    try:
        raise LookupError("the user's own")
    except LookupError as error:
        try:
            raise TritonOverloadedError("busy", uuid="u", retriable=True)
        except TritonOverloadedError as busy:
            first = busy
        run = Repeats(RetryPolicy(initial=0.0, maximum=0.0), Deadline(30.0))
        assert run.run(first, lambda: "answer", lambda seconds: None) == "answer"
        assert error.__traceback__ is not None  # noqa: PT017
        assert run.history[0].__traceback__ is None


def test_each_failure_that_is_repeated_is_reported_and_the_last_one_is_not(clock):
    failures, reported = [failure(message=text) for text in "abcd"], []
    call = Call(clock, *failures, report=reported.append)
    assert call.fails().message == "d"
    assert [error.message for error in reported] == ["a", "b", "c"]


def test_what_is_sent_once_is_repeated_only_if_it_did_not_run(clock):
    """An idempotent call may run twice; this one may not."""
    unsent = failure(ConnectionLostError)
    assert Call(clock, unsent, at_most_once=True).run() == "result"
    for ran in (lost(), failure(), failure(ShuttingDownError, outcome_unknown=True)):
        assert Call(clock, ran, at_most_once=True).fails() is ran


def test_a_call_inside_another_one_of_its_thread_is_refused_and_one_after_it_is_not():
    core = SimpleNamespace(
        listeners=NO_LISTENERS,
        callers=Callers(),
        running=lambda: SimpleNamespace(sender=None),
        counts=SimpleNamespace(called=lambda _: None, failed=lambda _: None),
    )
    made = []

    def call(attempt):
        return SimpleNamespace(watch=None, deadline=Deadline(None), attempt=attempt)

    def attempt_both(_sender):
        made.append("outer")
        with pytest.raises(ReentrantCallError):
            perform(core, call(lambda _: made.append("inner")), None)

    assert perform(core, call(attempt_both), None) == 1
    assert perform(core, call(lambda _: made.append("next")), None) == 1
    assert made == ["outer", "next"]
