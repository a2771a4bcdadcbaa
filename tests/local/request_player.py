"""Plays a recording against a `LocalManager`."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
from typing import Any

from tcm_sync.local import core

from ..helpers.segments import SHM
from ..helpers.waiting import GUARD, wait_until


class Player:
    """Does what the client of a recording did, and expects what the server of it said."""

    def __init__(self, manager, dial, gated, talker, steps, segments, setup, clock) -> None:
        self.setup = setup
        self.clock = clock
        self.segments = segments
        self.manager = manager
        self.dial = dial
        self.gated = gated
        self.talker = talker
        self.steps = steps
        self.sockets: dict[str, Any] = {}
        self.stopping: threading.Thread | None = None
        self.last: list[dict[str, Any]] = []  # the latest message and its answer
        self.inferences = 0  # that were sent
        self.authenticated: set[str] = set()  # the sockets that have said who they are
        self.names: dict[str, str] = {}  # what the cloud calls the machine and the container of the recording

    def end(self) -> None:
        self.gated.open_all()
        self.talker.go_on()
        self.steps.release()
        self.manager.kill()
        if self.stopping is not None:
            self.stopping.join()

    def play(self, exchange) -> None:
        assert exchange
        self.exchange = exchange = self.renamed(exchange)
        #: Whether it shows what is counted while requests run, so that each must run until it is answered.
        self.counted = len({entry.get("socket") for entry in exchange}) > 1 and any(
            "executor_management_available" in json.dumps(entry) for entry in exchange
        )
        self.jobs_before = len(self.manager.cloud.jobs)  # those are none of the recording's
        for at, entry in enumerate(exchange):
            self.entry, self.rest = entry, exchange[at + 1 :]
            said = entry.get("at_seconds", entry.get("from_seconds", 0.0))
            self.clock.now = max(self.clock.now, said)  # some count anew once all are authenticated
            where = entry.get("socket", "A")
            kind = next(key for key in entry if key in STEPS)
            STEPS[kind](self, where, entry[kind])
            self.last = [*self.last[-1:], entry]

    def renamed(self, exchange):
        """Give the shared memory names of its own, so that two runs may be at it."""
        return json.loads(SEGMENT.sub(rf"\1_{self.segments.suffix}", json.dumps(exchange)))

    def socket(self, where):
        if where not in self.sockets:
            self.sockets[where] = self.dial(self.manager)
        return self.sockets[where]

    # What the client said

    def client(self, where, message) -> None:
        if message == "(drops the socket, connects again)":
            self.sockets.pop(where).drop()
            wait_until(lambda: not self.manager.stats().connected, "the drop is noticed")
            return
        if isinstance(message, str):
            message = self.described(message)
        else:
            self.uuid = message.get("uuid")
            self.prepare(where, message)
            if any(is_job(entry.get("client")) for entry in self.exchange):
                message = json.loads(self.with_names_of_here(json.dumps(message)))
        if "client_text" in self.entry:
            self.socket(where).send(self.with_names_of_here(self.entry["client_text"]))
        elif isinstance(message, dict) and message["type"] == "management":
            self.ask_for_job(where, message)
        elif isinstance(message, dict) and message["type"] == "info" and self.counted:
            self.wait_until_all_run()
            self.socket(where).send(message)
        else:
            self.socket(where).send(self.spelt_out(message))

    def prepare(self, where, message) -> None:
        """Open another socket for another authentication, and let other requests come first."""
        if message.get("type") == "auth":
            if where in self.authenticated and where in self.sockets:
                self.sockets.pop(where).close()
            self.authenticated.add(where)
        elif message.get("type") == "inference":
            self.inferences += 1
            if self.setup.pace is not None:
                self.setup.pace(self, self.inferences)

    def client_close(self, where, code) -> None:
        self.sockets.pop(where).close()
        wait_until(lambda: not self.manager.stats().connected, "the close is noticed")

    def described(self, text):
        """Make the message that a recording only describes."""
        if text == "(an info message of 66,0xx bytes)":
            return {"uuid": self.uuid, "type": "info", "payload": {"action": "x" * 66_000}}
        if text == "(inference of model slow, 1 s)":
            inputs = [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [[1.0]]}]
            return self.inference("slow", {"protocol": "http", "inputs": inputs})
        if chunks := re.match(r"\(stream of model llm, (\d+) chunks", text):
            return self.inference("llm", {"protocol": "grpc", "inputs": self.words(int(chunks[1]))})
        text = text.removeprefix("(verbatim) ")
        assert not text.startswith("("), text
        return text

    def spelt_out(self, message):
        """Put the words in that a recording only counts."""
        if "(6500 words)" not in json.dumps(message):
            return message
        message = json.loads(json.dumps(message))
        message["payload"]["request"]["inputs"] = self.words(6500)
        return message

    def words(self, number):
        return [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["w " * number]}]

    def inference(self, model_name, request):
        request = {**request, "allow_transient": True}
        body = {"vm_ip": "127.0.0.1", "container_id": "ctr-9", "model_name": model_name, "request": request}
        return {"uuid": self.uuid, "type": "inference", "payload": body}

    def ask_for_job(self, where, message) -> None:
        """Send a management job; one that is to be there when the manager is stopped is held."""
        before = self.counted or any("manager" in entry and not is_log(entry) for entry in self.rest)
        if before:
            self.steps.hold()
        there = self.jobs()
        self.socket(where).send(message)
        if before:
            wait_until(lambda: self.jobs() == there + 1, "the job has come")

    def with_names_of_here(self, text):
        """Put the names that this cloud has made up in place of those of the recording's."""
        cloud = self.manager.cloud
        if cloud.vms:
            self.names |= {"vm-9": cloud.vms[-1].vm_id, "127.0.0.1": cloud.vms[-1].vm_ip}
        if cloud.containers and cloud.containers[-1].container_id.startswith("container-"):
            self.names["ctr-9"] = cloud.containers[-1].container_id
        for recorded, here in self.names.items():
            text = text.replace(f'"{recorded}"', f'"{here}"')
        return text

    def with_recorded_names(self, text):
        for recorded, here in self.names.items():
            text = text.replace(f"'{here}'", f"'{recorded}'").replace(f'"{here}"', f'"{recorded}"')
        return text

    def wait_until_all_run(self) -> None:
        """What was asked and not answered yet is with the workers, as it was when the recording was made."""
        asked = self.exchange[: len(self.exchange) - len(self.rest)]
        for kind, running in (("inference", "running"), ("management", "management_running")):
            sent, answered = (
                sum(kind_of(entry.get(side)) == kind for entry in asked) for side in ("client", "server")
            )
            wait_until(
                lambda running=running, there=sent - answered: (
                    getattr(self.manager.stats(), running) == there
                ),
                f"{kind} requests are with the workers",
            )

    def jobs(self):
        stats = self.manager.stats()
        return stats.management_waiting + stats.management_running

    # What the manager said

    def server(self, where, expected) -> None:
        if isinstance(expected, str):
            self.described_answer(where, expected)
            return
        if expected["type"] == "alert":
            self.manager.alert(expected["message"], expected["error_type"])
        payload = expected.get("payload", {})
        if payload.get("model_name") == "slow" and payload["status"] == "COMPLETED":
            self.gated.open(payload["data"]["y"][0][0])
        elif where == "B" and expected["type"] == "inference" and self.setup.one_worker:
            self.expect_b_to_wait()
        elif expected["type"] == "management":
            self.steps.release_one() if self.counted else self.steps.release()
        if payload.get("data") == self.setup.go_on_before:
            self.talker.go_on()
        if self.setup.key_server is not None:
            self.setup.key_server.answer()
        text = self.socket(where).receive_text()
        if expected["type"] == "management":
            text = self.with_recorded_names(text)
        assert comparable(text) == comparable(json.dumps(expected))

    def described_answer(self, where, what) -> None:
        if more := re.match(r"\(ONGOING, (\d+) more", what):
            for _ in range(int(more[1])):
                self.server(where, self.last[-1]["server"])
        else:
            assert what.startswith("(nothing")
            asked = self.exchange[: len(self.exchange) - len(self.rest)]
            sent = sum(kind_of(entry.get("client")) == "management" for entry in asked)
            wait_until(lambda: len(self.manager.cloud.jobs) >= self.jobs_before + sent, "the jobs have begun")
            wait_until(lambda: not self.manager.stats().management_running, "the jobs are done")
            self.socket(where).ping()

    def expect_b_to_wait(self) -> None:
        """Closing A has cancelled nothing: its requests hold the one worker, unless its stream is silent."""
        if any(
            "closes A 1 s after the last chunk" in entry.get("client_does", "") for entry in self.exchange
        ):
            return
        of_a = sum(model in json.dumps(entry.get("client")) for entry in self.exchange for model in HELD)
        wait_until(lambda: self.manager.stats().running == of_a + 1, "B's request has come")
        assert sum(self.manager.stats().executions.values()) == 1
        self.gated.open_all()
        self.talker.go_on()

    def server_close(self, where, code) -> None:
        assert self.socket(where).wait_for_close() == code

    # What else happened

    def key_server(self, where, state) -> None:
        self.setup.key_server.becomes(state)

    def get(self, where, path) -> None:
        """Ask over HTTP, and compare what was recorded of the answer."""
        expected = self.entry
        status, content_type, body = http_get(self.manager, path, expected.get("headers", {}))
        assert status == expected["status"]
        if "body" in expected:
            assert json.loads(body) == expected["body"]
        for line in expected.get("first_lines", ()):
            assert line in body.splitlines()
        if headers := expected.get("response_headers"):
            assert content_type == headers["content-type"]

    def signal(self, where, what) -> None:
        if is_log({"manager": what}):
            return
        if what.startswith("still running"):
            assert self.stopping.is_alive()
        elif what.startswith("SIGKILL"):
            self.manager.kill()
            name = re.search(r"/dev/shm/(\S+) exists: False", what)[1]
            assert not (SHM / name).exists()
        elif "is started again" in what:
            self.manager.stop()
            self.manager.start()
        else:
            self.sigterm()

    def sigterm(self) -> None:
        if any("slow" in json.dumps(entry) for entry in self.last):
            wait_until(lambda: self.manager.stats().executions, "the request runs")
        self.stopping = threading.Thread(target=self.manager.stop)
        self.stopping.start()
        wait_until(lambda: self.manager._server.core.draining, "it drains")
        if not core.SCHEDULER_DRAIN_SECONDS:
            wait_until(lambda: not self.manager._server.core.accepts_work, "its scheduler has ended")
        self.talker.go_on()

    def repeat(self, where, how) -> None:
        times = int(re.search(r"(\d+) times more", how)[1])
        sent, answered = self.last
        for _ in range(times):
            self.client(where, sent["client"])
            self.server(where, answered["server"])

    def client_does(self, where, what) -> None:
        if "/dev/shm/" in what:
            self.client_writes(where, what)
        elif "segments used once each" in what:
            self.use_many(int(what.split()[0]))
        elif what.startswith("holds a socket"):
            assert {"hung", "idle"} <= self.sockets.keys(), "the test has opened them"
        else:
            self.client_leaves(where, what)

    def client_writes(self, where, what) -> None:
        """Do to shared memory what is described: "unlinks NAME (...)", "makes NAME again, 192 times 5"."""
        label = re.search(r"/dev/shm/tcm_(\w+)_", what)[1]
        if what.startswith("unlinks"):
            self.segments.path(label).unlink()
        if "unlinks" not in what or "makes it again" in what:
            times, value = re.search(r"(\d+) times (\d+)", what).groups()
            self.segments.write(label, [int(value)] * int(times))

    def use_many(self, number) -> None:
        """Use segments one after another; what the first is read to be again is in the recording."""
        total = next(entry for entry in self.rest if "server" in entry)["server"]["payload"]["data"]["SUM"]
        raw = self.socket("A")
        raw.uuid = self.uuid
        for at in range(number):
            self.segments.write(f"recL{at}", [total[0][0] / 192 if at == 0 else at] * 192)
            use_segment(raw, self.segments, f"recL{at}", "ctr-1")
        seen = next(entry for entry in self.exchange if "triton_registered" in entry)
        assert len(self.manager.shared_memory.keys) == seen["triton_registered"]

    def first_segment(self, where, exists) -> None:
        assert self.segments.path("recL0").exists() is exists
        assert not any("recL0_" in key for key in self.manager.shared_memory.keys)

    def client_leaves(self, where, what) -> None:
        raw = self.sockets.pop(where)
        wait_until(lambda: sum(self.manager.stats().executions.values()) == 1, "the request runs")
        raw.drop() if "drops" in what else raw.close()
        others = len(self.sockets)
        wait_until(lambda: self.manager.stats().connected == others, "the close is noticed")

    def cloud(self, where, seen) -> None:
        """Compare the steps that were done, whatever the client was answered."""
        if not any("at_seconds_after_SIGTERM" in entry for entry in seen):
            self.cloud_and_triton(seen)
            return
        began = [entry for entry in seen if not entry["did"].endswith(" done")]
        wait_until(lambda: len(self.steps.seen) >= len(began), "the jobs run")
        names = [entry["did"].removesuffix(" begins") for entry in began]
        assert [name for name, _ in self.steps.seen] == names
        vms = [entry["name"] for entry in began if "name" in entry]
        wait_until(lambda: len(self.manager.cloud.vms) == len(vms), "the steps are done")
        assert [vm.name for vm in self.manager.cloud.vms] == vms

    def cloud_and_triton(self, seen) -> None:
        """The same where stand-ins noted what they did, Triton its unloading, and no server's creation."""
        names = [entry["did"].removesuffix(" begins") for entry in seen if not entry["did"].endswith(" done")]
        names_done = [name for name, _ in self.steps.seen if name != "create_server"]
        assert names_done == ["delete_server" if name == "unload" else name for name in names]

    def ignore(self, where, what) -> None:
        """What was seen beside the wire."""


#: What of A holds the worker that B waits for.
HELD = ('"slow"', "model slow", "model llm")
LOOSE = [
    (re.compile(r'(?<="timestamp": )[\d.]+'), "TIME"),
    (re.compile(r"(?<=Stream timed out after )[\d.]+"), "TIME"),
    (re.compile(r'(?<="_correlation_id": ")[0-9a-f]{16}'), "ID"),
    (re.compile(r"0x[0-9a-f]{8,}"), "ADDRESS"),
    (re.compile(r"(?<=')tcm_shm_[0-9a-f]{12}_[0-9a-f]{8}(?=')"), "REGION"),
]
SEGMENT = re.compile(r"(\btcm_rec\w+)_59623964\b")
#: Of a model that is a callable here, which declares nothing.
DECLARED = re.compile(r'("model_name": "llm_end"), "inputs": .*?(?=\}, "_correlation_id)')
CREATED = re.compile(r'"(127\.0\.0\.1|10\.0\.0\.\d+|vm-\d+|ctr-9|container-\d+)"')


def kind_of(message):
    """Return the type of a message; None of what is only described."""
    return message.get("type") if isinstance(message, dict) else None


def http_get(manager, path, headers):
    """Ask over HTTP, and return status, content type and body."""
    connection = http.client.HTTPConnection("127.0.0.1", manager.port, timeout=GUARD)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type"), response.read().decode()


def use_segment(raw, segments, label, container_id) -> None:
    """Have a segment of 192 numbers read once."""
    request = {
        "inputs": [segments.reference(label, 1, 3, 8, 8, name="IMAGE")],
        "allow_transient": container_id == "ctr-9",
    }
    answer = raw.infer("checksum", container_id=container_id, request=request)
    assert answer["status"] == "COMPLETED", answer


def comparable(text):
    text = DECLARED.sub(r"\1", text)
    for pattern, name in LOOSE:
        text = pattern.sub(name, text)
    return CREATED.sub('"CREATED"', text) if '"type": "management"' in text else text


def is_job(message):
    return isinstance(message, dict) and message.get("type") == "management"


def is_log(entry):
    return entry["manager"].startswith("its log")


STEPS = {
    "client": Player.client,
    "server": Player.server,
    "server_close": Player.server_close,
    "client_close": Player.client_close,
    "client_headers": Player.ignore,
    "GET": Player.get,
    "key_server": Player.key_server,
    "manager": Player.signal,
    "exchange_repeated": Player.repeat,
    "client_does": Player.client_does,
    "client_writes": Player.client_writes,
    "the_first_segments_file_still_exists": Player.first_segment,
    "stand_in_openstack_and_docker": Player.cloud,
    "seconds_since_the_limit": Player.ignore,
    "triton_executions_of_slow": Player.ignore,
}
