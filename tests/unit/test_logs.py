"""Log lines: written in order by a thread of their own, and never at the cost of what is logged about."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest

from tcm_sync import _logs
from tcm_sync._logs import Log, flush
from tcm_sync._pool import gate, opening, pool, process_table, runtime
from tcm_sync._transport import opener, reader, unsolicited

from ..helpers.peer_connection import TIMEOUT

NAME = "tcm_sync.test"


class Handler(logging.Handler):
    """Keeps records, after doing something."""

    def __init__(self, first=lambda: None):
        super().__init__()
        self.first = first
        self.records = []
        self.threads = []

    def emit(self, record):
        self.first()
        self.records.append(record)
        self.threads.append(threading.current_thread().name)

    @property
    def lines(self):
        return [record.getMessage() for record in self.records]


@pytest.fixture
def attach():
    logger = logging.getLogger(NAME)
    logger.setLevel(logging.INFO)
    attached = []

    def add(handler):
        attached.append(handler)
        logger.addHandler(handler)
        return handler

    yield add
    assert flush(TIMEOUT)
    for each in attached:
        logger.removeHandler(each)
    logger.setLevel(logging.NOTSET)


def test_a_queued_line_says_where_and_when_it_was_logged_and_is_written_elsewhere(attach):
    handler = attach(Handler())
    log = Log(NAME, queued=True)
    for number in range(50):
        log.warning("line %d", number)
    log.debug("not enabled")
    assert flush(TIMEOUT)
    assert handler.lines == [f"line {number}" for number in range(50)]
    assert set(handler.threads) == {"tcm-sync-log"}
    record = handler.records[0]
    assert record.threadName == threading.current_thread().name
    assert (record.filename, record.levelno) == ("test_logs.py", logging.WARNING)
    assert record.funcName.startswith("test_a_queued_line")


def test_a_line_of_a_call_is_written_by_its_own_thread(attach):
    handler = attach(Handler())
    Log(NAME, queued=False).info("now")
    assert handler.lines == ["now"]
    assert handler.threads == [threading.current_thread().name]


def test_the_traceback_of_a_failure_is_logged(attach):
    handler = attach(Handler())
    try:
        raise ValueError("broken")
    except ValueError as error:
        Log(NAME, queued=True).error("failed", failure=error)
    assert flush(TIMEOUT)
    assert handler.records[0].exc_info[0] is ValueError


@pytest.mark.parametrize("queued", [True, False])
def test_a_handler_that_raises_costs_nothing_but_its_line(attach, capsys, queued):
    def fail():
        raise RuntimeError("no disk")

    bad, log = attach(Handler(fail)), Log(NAME, queued=queued)
    log.info("lost")
    assert flush(TIMEOUT)
    bad.first = lambda: None
    log.info("kept")
    assert flush(TIMEOUT)
    assert bad.lines == ["kept"]
    assert "no disk" in capsys.readouterr().err


def test_a_handler_that_is_slow_delays_nobody_and_what_is_dropped_is_counted(attach, monkeypatch):
    monkeypatch.setattr(_logs, "_MAX_WAITING", 3)
    let, blocked = threading.Event(), threading.Event()

    def block():
        blocked.set()
        let.wait(TIMEOUT)

    handler, log = attach(Handler(block)), Log(NAME, queued=True)
    log.info("first")
    assert blocked.wait(TIMEOUT)
    for number in range(5):
        log.info("line %d", number)
    let.set()
    assert flush(TIMEOUT)
    assert handler.lines[0] == "first"
    assert handler.lines[1].startswith("2 log lines before this one were dropped")
    assert handler.lines[2:] == ["line 0", "line 1", "line 2"]


def test_a_handler_may_log_itself(attach):
    log = Log(NAME, queued=True)
    left = iter(["again"])
    handler = attach(Handler(lambda: [log.info(text) for text in left]))
    log.info("first")
    assert flush(TIMEOUT)
    assert flush(TIMEOUT)
    assert handler.lines == ["first", "again"]


def test_lines_are_written_before_the_process_ends():
    program = (
        "import logging, sys\n"
        "logging.basicConfig(stream=sys.stdout, level=logging.INFO, format='%(message)s')\n"
        "from tcm_sync._logs import Log\n"
        "for number in range(300): Log('tcm_sync.x', queued=True).info('line %d', number)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT * 6, check=True
    )
    assert result.stdout.split("\n") == [*(f"line {number}" for number in range(300)), ""]
    assert result.stderr == ""


@pytest.mark.parametrize("module", [opener, gate, opening, pool, process_table, reader, runtime, unsolicited])
def test_what_holds_a_lock_or_reads_sockets_runs_no_handler(module):
    """A handler that blocks there would hold up every call of the client."""
    assert module.log._queued
