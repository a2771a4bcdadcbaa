"""Services under real gunicorn and uWSGI: each worker has connections of its own, whatever forked it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from ..helpers.waiting import GUARD, wait_until
from .web_servers import (
    EXAMPLES,
    answers_of,
    ask,
    end,
    environment,
    get,
    is_connected,
    uses_no_manager,
    workers_of,
)

PLAIN = "import os\nbind = os.environ['BIND']\nworkers = 2\n"
GUNICORN = ["gunicorn", "--config", "../gunicorn.conf.py"]
UWSGI = ["uwsgi", "--ini", "uwsgi.ini", "--pythonpath", os.pathsep.join(filter(None, sys.path))]


@pytest.mark.parametrize(
    ("framework", "command"),
    [
        pytest.param("django", [*GUNICORN, "service.wsgi"], id="django under gunicorn, gthread and preload"),
        pytest.param(
            "flask", ["gunicorn", "--config", "PLAIN", "service:app"], id="flask under gunicorn, sync"
        ),
        pytest.param("django", UWSGI, id="django under uwsgi, app in the master"),
        pytest.param("flask", [*UWSGI, "--lazy-apps"], id="flask under uwsgi, lazy-apps"),
    ],
)
def test_every_worker_answers(digits_manager, expected, serve_web, tmp_path, framework, command):
    (plain := tmp_path / "plain.py").write_text(PLAIN)
    command = [part.replace("PLAIN", str(plain)) for part in command]
    web = serve_web(command, EXAMPLES / framework, environment(digits_manager))
    assert get(web.port, "/readyz")["status"] == "ready"
    answers = answers_of(web.port, range(40))
    assert answers == [(200, expected[number % len(expected)]) for number in range(40)]
    wait_until(
        lambda: (
            answers_of(web.port, range(8))
            and all(is_connected(worker, digits_manager) for worker in workers_of(web))
        ),
        "every worker has called the manager",
    )
    assert digits_manager.stats().lost_replies == 0
    end(web)
    uses_no_manager(digits_manager)


REQUESTS = 2000
#: Environment variable: the class of the workers, so that another one can be tried by hand.
WORKER = os.environ.get("TCM_TESTS_WORKER", "gthread")


def test_no_request_fails_while_managers_restart_and_workers_are_recycled(
    digits_manager, expected, serve_web
):
    options = ["--workers", "4", "--worker-class", WORKER, "--max-requests", str(REQUESTS // 16)]
    web = serve_web([*GUNICORN, *options, "service:app"], EXAMPLES / "flask", environment(digits_manager))
    get(web.port, "/readyz")
    first = workers_of(web)
    numbers = iter(range(REQUESTS))
    done = Counter()
    lock = threading.Lock()  # guards numbers and done
    marks = {part: threading.Event() for part in (1, 2, 3)}  # set when so many quarters are answered

    def call():
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            status, _, body = ask(web.port, f"/digits?number={number}")
            right = status == 200 and body == expected[number % len(expected)]
            with lock:
                done["right" if right else f"{status}: {body}"] += 1
                answered = sum(done.values())
            for part, mark in marks.items():
                if answered >= part * REQUESTS // 4:
                    mark.set()

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(call) for _ in range(8)]
        for part, away in ((1, 3.0), (2, 0.5)):
            assert marks[part].wait(3 * GUARD)
            (digits_manager.kill if part == 1 else digits_manager.stop)()
            time.sleep(away)  # the length of the outage, which is what the test is about
            digits_manager.start()
        assert marks[3].wait(3 * GUARD)
        web.send_signal(signal.SIGHUP)
        for each in calls:
            each.result(3 * GUARD)
    assert done == {"right": REQUESTS}
    wait_until(lambda: not first & workers_of(web), "no worker of the beginning is left")
    end(web)
    uses_no_manager(digits_manager)


SLOW = """
import os
from flask import Flask
from tcm_sync.integrations.flask import Tcm, current_tcm

app = Flask(__name__)
app.config.update(TCM_CONTAINER_ID="local", TCM_HANDLE_ERRORS=True)
if "REQUEST_TIMEOUT" in os.environ:
    app.config["TCM_REQUEST_TIMEOUT"] = float(os.environ["REQUEST_TIMEOUT"])
Tcm(app)

@app.get("/wait")
def wait():
    return current_tcm.infer("gated", {"x": [1]}).tolist()

@app.get("/pid")
def pid():
    return [os.getpid()]
"""


def slow_service(serve_web, manager, folder, *options, **variables):
    (folder / "slow.py").write_text(SLOW)
    (folder / "gunicorn.conf.py").write_text("import os\nbind = os.environ['BIND']\n")
    command = ["gunicorn", *options, "slow:app"]
    return serve_web(command, folder, environment(manager, **variables))


def test_a_request_that_ends_before_the_worker_timeout_is_answered(serve, serve_web, tmp_path):
    web = slow_service(serve_web, serve(), tmp_path, REQUEST_TIMEOUT="1.0")
    (pid,) = get(web.port, "/pid")
    status, _, body = ask(web.port, "/wait")
    assert (status, json.loads(body)["error"]["type"]) == (504, "CallTimeoutError")
    assert get(web.port, "/pid") == [pid]


def test_a_worker_that_was_killed_by_its_timeout_leaves_a_service_that_works(serve, serve_web, tmp_path):
    manager = serve()
    # The application is imported before the fork: its import alone may take a second.
    web = slow_service(serve_web, manager, tmp_path, "--preload", "--timeout", "1")
    (pid,) = get(web.port, "/pid")
    with contextlib.suppress(OSError):
        status, _, body = ask(web.port, "/wait")
        assert status == 500
        assert b"CallTimeoutError" not in body
    assert get(web.port, "/pid") != [pid]
    end(web)
    uses_no_manager(manager)


def test_a_worker_of_gevent_says_at_boot_what_to_use_in_its_place(serve, serve_web, tmp_path):
    web = slow_service(serve_web, serve(), tmp_path, "--worker-class", "gevent")
    assert web.wait(GUARD) == 3  # gunicorn's status for workers that fail to boot
    assert "gevent has patched" in web.log()
    assert "gthread" in web.log()
