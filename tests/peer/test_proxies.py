"""Calls, probes, forks and copies through real proxies, which are a process of their own."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import os
import pickle
import socket
import threading

import numpy as np
import pytest

from tcm_sync import CallTimeoutError, ConnectFailedError, TcmClient, TlsSettings

from ..helpers.fixtures import server_context
from ..helpers.peer_scripts import ROUTE, ask, ask_many, background, connect, echo, failing
from ..helpers.proxy_process import PASSWORD, QUOTED, running_proxies
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until

#: The listener, the scheme and the credentials of each kind of proxy.
KINDS = {
    "HTTP": ("http", "http", ""),
    "HTTP with credentials": ("http_auth", "http", QUOTED),
    "HTTP over TLS": ("https", "https", ""),
    "SOCKS5": ("socks", "socks5", ""),
    "SOCKS5, names by the proxy": ("socks", "socks5h", ""),
    "SOCKS5 with credentials": ("socks_auth", "socks5h", QUOTED),
}


@pytest.fixture(scope="module")
def proxies(tmp_path_factory, authority):
    folder = tmp_path_factory.mktemp("proxies")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(folder / "proxy.pem"))
    with running_proxies(folder, folder / "proxy.pem") as running:
        yield running


def through(peer, proxies, kind, ca_file, **settings):
    """Make a client of a peer through a proxy."""
    if peer.uri.startswith("wss") or kind == "HTTP over TLS":
        settings["tls"] = TlsSettings(ca_file=ca_file)
    return connect(peer, proxy=proxies.url(*KINDS[kind]), **settings)


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("kind", KINDS)
def test_calls_and_probes_go_through_the_proxy(proxies, ca_file, server_tls, kind, secure):
    proxies.asked()
    with ScriptedPeer(echo, tls=server_tls if secure else None) as peer:
        with through(peer, proxies, kind, ca_file) as client:
            values = [float(value) for value in range(20)]
            assert ask_many(client, values, threads=4) == values
            assert client.health() is True
            assert client.ready().ok is True
            wait_until(client._core.runtime.pool._connector.is_idle, "nothing is being opened")
            opened = len(peer.connections) + len(peer.probes)
            client.with_options(timeout=20.0).infer("m", {"x": [[1.0]]})
    asked = proxies.asked()
    assert len(asked) == opened
    assert all(str(peer.port) in line for line in asked)


def test_without_a_proxy_none_is_used_whatever_the_environment_says(proxies, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxies.url("http", "http"))
    proxies.asked()
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        assert ask(client, 2.0) == 2.0
        assert client.health() is True
    assert proxies.asked() == []


def test_the_proxy_of_the_environment_and_the_hosts_without_one(proxies, monkeypatch):
    monkeypatch.setenv("http_proxy", proxies.url("http", "http"))
    monkeypatch.setenv("no_proxy", "")
    proxies.asked()
    with ScriptedPeer(echo) as peer:
        with connect(peer, proxy="env") as client:
            assert ask(client, 2.0) == 2.0
        assert proxies.asked() == [f"http 127.0.0.1:{peer.port}"]
        monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
        with connect(peer, proxy="env") as client:
            assert ask(client, 2.0) == 2.0
        assert proxies.asked() == []


@pytest.mark.parametrize("kind", ["HTTP", "SOCKS5, names by the proxy"])
def test_a_manager_on_an_address_of_ipv6(proxies, kind):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        server.settimeout(30.0)

        def answer():
            with server.accept()[0] as far:
                far.recv(65_536)
                far.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        port = server.getsockname()[1]
        proxies.asked()
        with background(answer) as answered:
            assert TcmClient(f"ws://[::1]:{port}/ws", proxy=proxies.url(*KINDS[kind])).health() is True
            answered()
    (asked,) = proxies.asked()
    assert f"[::1]:{port}" in asked or f"('::1', {port})" in asked


@pytest.mark.parametrize("kind", ["HTTP", "SOCKS5, names by the proxy"])
def test_a_name_is_resolved_by_the_proxy_alone(proxies, kind, monkeypatch):
    real = socket.getaddrinfo

    def resolve(host, *args, **kinds):
        assert host == "127.0.0.1", "the manager's name is resolved here"
        return real(host, *args, **kinds)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with ScriptedPeer(echo) as peer:
        uri = peer.uri.replace("127.0.0.1", "localhost")
        with TcmClient(uri, proxy=proxies.url(*KINDS[kind]), route=ROUTE, timeout=30.0) as client:
            assert ask(client, 2.0) == 2.0


@pytest.mark.parametrize("name", ["http_auth", "socks_auth"])
@pytest.mark.parametrize("credentials", ["", QUOTED.replace("4711", "4712")])
def test_credentials_that_the_proxy_does_not_accept(proxies, name, credentials, caplog):
    scheme = "http" if name == "http_auth" else "socks5h"
    with ScriptedPeer(echo) as peer:
        with connect(peer, proxy=proxies.url(name, scheme, credentials)) as client:
            with failing(
                ConnectFailedError, "proxy", "credentials" if credentials else "USER:PASSWORD"
            ) as caught:
                client.open()
            assert not caught.value.retriable
            ready = client.ready()
    assert peer.connections == peer.probes == []
    shown = f"{caught.value!r} {vars(caught.value)} {ready!r} {client!r} {caplog.text}"
    assert PASSWORD.replace("4711", "4712") not in shown
    assert QUOTED.replace("4711", "4712") not in shown


def test_a_manager_that_the_proxy_cannot_reach(proxies):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for name, scheme in (("http", "http"), ("socks", "socks5h")):
        with TcmClient(f"ws://127.0.0.1:{port}/ws", proxy=proxies.url(name, scheme)) as client:
            with failing(ConnectFailedError, f"127.0.0.1:{port}") as caught:
                client.open()
        assert caught.value.retriable


def test_a_proxy_on_this_machine_does_not_make_the_manager_a_local_one(proxies):
    with ScriptedPeer(echo) as peer, connect(peer, proxy=proxies.url("http", "http")) as client:
        client.open()
        assert client._core.runtime.pool.any_open().is_local is False
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        client.open()
        assert client._core.runtime.pool.any_open().is_local is True


def test_the_certificates_of_proxy_and_manager_are_both_checked(proxies, authority, ca_file):
    other = server_context(authority, "manager.example")
    with ScriptedPeer(echo, tls=other) as peer:
        with through(peer, proxies, "HTTP over TLS", ca_file, connect_timeout=20.0) as client:
            with failing(ConnectFailedError, "certificate"):
                client.open()
        with connect(peer, proxy=proxies.url("https", "https"), connect_timeout=20.0) as client:
            with failing(ConnectFailedError, "the proxy https://127.0.0.1:", "certificate"):
                client.open()
    assert peer.connections == []


def test_a_copy_and_a_child_process_use_the_proxy(proxies, ca_file):
    with ScriptedPeer(echo) as peer, through(peer, proxies, "HTTP with credentials", ca_file) as client:
        assert ask(client, 1.0) == 1.0
        proxies.asked()
        with pickle.loads(pickle.dumps(client)) as copied:
            assert ask(copied, 2.0) == 2.0
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if ask(client, 3.0) == 3.0 else 2
                client.close()
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert ask(client, 4.0) == 4.0
        assert len({connection.uuid for connection in peer.connections}) == len(peer.connections) >= 2
    assert set(proxies.asked()) == {f"http_auth 127.0.0.1:{peer.port}"}


# --- TLS inside TLS ---


def test_long_messages_in_both_directions_through_a_proxy_over_tls(proxies, ca_file, server_tls):
    text = "a" * 3_000_000
    with ScriptedPeer(echo, tls=server_tls) as peer:
        limits = {"max_message_bytes": 4_000_000}
        with through(peer, proxies, "HTTP over TLS", ca_file, **limits) as client:
            for _ in range(3):
                assert client.infer("m", {"x": np.array([text], dtype=object)})["y"].item() == text
    assert len(peer.connections) == 1


@pytest.mark.usefixtures("sending_ends_early")
def test_a_deadline_holds_while_nothing_is_read_through_a_proxy_over_tls(proxies, ca_file, server_tls):
    over = threading.Event()

    def never_read(connection):
        connection.welcome()
        wait_for(over)

    said = np.array(["a" * 20_000_000], dtype=object)
    with ScriptedPeer(never_read, echo, tls=server_tls) as peer:
        limits = {"max_message_bytes": 21_000_000}
        with through(peer, proxies, "HTTP over TLS", ca_file, **limits) as client:
            client.open()
            with failing(CallTimeoutError):
                client.infer("m", {"x": said})
            assert ask(client, 2.0) == 2.0
        over.set()


def test_a_call_to_a_silent_manager_behind_a_proxy_over_tls_ends_in_time(proxies, ca_file):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"wss://127.0.0.1:{silent.getsockname()[1]}/ws"
        settings = {"tls": TlsSettings(ca_file=ca_file), "proxy": proxies.url("https", "https")}
        with TcmClient(uri, connect_timeout=0.5, timeout=30.0, **settings) as client:
            with failing(ConnectFailedError, "TLS"):
                client.open()


def test_a_lost_connection_through_a_proxy_over_tls_is_a_lost_reply(proxies, ca_file, server_tls):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.hang_up()

    with ScriptedPeer(script, echo, tls=server_tls) as peer:
        with through(peer, proxies, "HTTP over TLS", ca_file) as client:
            assert client.infer("m", {"x": [[2.0]]}).attempts == 2
