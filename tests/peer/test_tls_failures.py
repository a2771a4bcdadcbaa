"""Each failure of TLS, made with real certificates: its own advice, and whether it may pass by waiting."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tcm_sync import ConfigError, ConnectFailedError, TcmClient, TlsSettings
from tcm_sync._transport.tls import CERTIFICATES, PERMANENT, failure_of_tls, name_to_verify

from ..helpers.fixtures import server_context
from ..helpers.peer_connection import TIMEOUT
from ..helpers.peer_scripts import ask, connect, echo, failing
from ..helpers.scripted_peer import ScriptedPeer

PAGE = " ".join((Path(__file__).parents[2] / "docs" / "tls.rst").read_text(encoding="utf-8").split())


def trusting(ca_file, **more):
    return TlsSettings(ca_file=str(ca_file), **more)


def days(number):
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=number)


def server_of(cert):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert.configure_cert(context)
    return context


def self_made(tmp_path, *, common_name, names=()):
    """Make a self-signed certificate; return the context of its server, and its file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(days(-1)).not_valid_after(days(1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    if names:
        found = x509.SubjectAlternativeName([x509.DNSName(each) for each in names])
        builder = builder.add_extension(found, critical=False)
    cert = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path, both = tmp_path / "self.pem", tmp_path / "both.pem"
    path.write_bytes(cert)
    both.write_bytes(private + cert)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context, path


def failure(server, tls, **settings):
    """Connect to a server, and return the error, which comes at once and is not retriable."""
    with ScriptedPeer(echo, tls=server) as peer:
        with connect(peer, tls=tls, connect_timeout=TIMEOUT, **settings) as client:
            with failing(ConnectFailedError, "TLS") as caught:
                client.open(wait=True)
            ready = client.ready()
            assert (ready.ok, ready.status) == (False, "unreachable")
            assert ready.detail == caught.value.message
    assert peer.connections == []
    assert not caught.value.retriable
    return caught.value.message


# --- the server's certificate ---


def test_a_name_that_does_not_match(authority, ca_file):
    message = failure(server_context(authority, "manager.example"), trusting(ca_file))
    assert "the certificate is not for 127.0.0.1: use a name" in message
    assert "server_hostname" in message
    assert "ca_file" not in message


def test_a_certificate_that_has_expired(authority, ca_file):
    cert = authority.issue_cert("127.0.0.1", not_before=days(-9), not_after=days(-2))
    message = failure(server_of(cert), trusting(ca_file))
    assert "has expired" in message
    assert "clock" in message
    assert "ca_file" not in message


def test_a_certificate_that_is_not_valid_yet(authority, ca_file):
    cert = authority.issue_cert("127.0.0.1", not_before=days(2), not_after=days(9))
    message = failure(server_of(cert), trusting(ca_file))
    assert "not valid yet" in message
    assert "ca_file" not in message


def test_a_missing_intermediate(authority, ca_file):
    cert = authority.create_child_ca().issue_cert("127.0.0.1")
    whole = server_of(cert)
    with ScriptedPeer(echo, tls=whole) as peer, connect(peer, tls=trusting(ca_file)) as client:
        assert ask(client, 2.0) == 2.0
    alone = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with cert.private_key_pem.tempfile() as key, cert.cert_chain_pems[0].tempfile() as leaf:
        alone.load_cert_chain(leaf, key)
    message = failure(alone, trusting(ca_file))
    assert "ca_file" in message
    assert "does not send its intermediate certificates" in message


def test_an_unknown_authority(server_tls, tmp_path):
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    message = failure(server_tls, trusting(tmp_path / "stranger.pem"))
    assert "not trusted" in message
    assert "ca_file" in message


def test_an_unknown_authority_that_the_server_sends_too(authority, tmp_path):
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    cert = authority.issue_cert("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(cert.private_key_and_cert_chain_pem.bytes() + authority.cert_pem.bytes())
    context.load_cert_chain(chain)
    message = failure(context, trusting(tmp_path / "stranger.pem"))
    assert "ends at an unknown authority" in message
    assert "ca_file" in message


def test_a_self_signed_certificate(ca_file, tmp_path):
    server, cert_file = self_made(tmp_path, common_name="manager.example", names=["manager.example"])
    message = failure(server, trusting(ca_file, server_hostname="manager.example"))
    assert "self-signed" in message
    assert "ca_file" in message
    with ScriptedPeer(echo, tls=server) as peer:
        with connect(peer, tls=trusting(cert_file, server_hostname="manager.example")) as client:
            assert ask(client, 2.0) == 2.0


def test_a_common_name_alone_is_no_name(tmp_path):
    server, cert_file = self_made(tmp_path, common_name="manager.example")
    message = failure(server, trusting(cert_file, server_hostname="manager.example"))
    assert "A common name (CN) alone is not accepted" in message


def test_a_common_name_alone_is_no_name_of_a_proxy(tmp_path):
    server, cert_file = self_made(tmp_path, common_name="localhost")
    with ScriptedPeer(echo, tls=server) as proxy:
        uri, through = "ws://manager.example:8000/ws", f"https://localhost:{proxy.port}"
        with TcmClient(uri, tls=trusting(cert_file), proxy=through, connect_timeout=TIMEOUT) as client:
            with failing(ConnectFailedError, f"the proxy {through}", "A common name (CN) alone") as caught:
                client.open(wait=True)
    assert proxy.connections == []
    assert not caught.value.retriable


def test_the_authorities_of_a_proxy_cannot_be_read(tmp_path):
    path = tmp_path / "empty.pem"
    path.write_text("nothing")
    refused = r"ca_file '.*empty.pem' cannot be used: it holds no certificate"
    with pytest.raises(ConfigError, match=refused):
        TcmClient("ws://manager.example/ws", tls=trusting(path), proxy="https://proxy.example").open()


@pytest.mark.parametrize("code", CERTIFICATES)
def test_the_page_about_tls_has_the_message_for_each_refused_certificate(code):
    assert CERTIFICATES[code].format(name="NAME") in PAGE


# --- the client's certificate, refused during the handshake (TLS 1.2) or after it (TLS 1.3) ---


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def mutual(request, authority):
    """The context of a server that requires client certificates."""
    tls = server_context(authority, "127.0.0.1")
    authority.configure_trust(tls)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.maximum_version = tls.minimum_version = request.param
    return tls


def own(authority, tmp_path, **how):
    path = str(tmp_path / "ours.pem")
    authority.issue_cert("client.example", **how).private_key_and_cert_chain_pem.write_to_path(path)
    return path


def refused_after_tls(mutual, tls):
    """Connect to a server that refuses the client's certificate; it may see the TCP connection or not."""
    with ScriptedPeer(echo, tls=mutual) as peer:
        with connect(peer, tls=tls, connect_timeout=TIMEOUT) as client:
            with failing(ConnectFailedError, "TLS") as caught:
                client.open(wait=True)
            assert not client.ready().ok
    assert not caught.value.retriable
    return caught.value.message


def test_a_missing_client_certificate(mutual, ca_file):
    message = refused_after_tls(mutual, trusting(ca_file))
    assert "client certificate: TlsSettings(cert_file=..., key_file=...)" in message


def test_a_client_certificate_of_an_unknown_authority(mutual, ca_file, tmp_path):
    message = refused_after_tls(mutual, trusting(ca_file, cert_file=own(trustme.CA(), tmp_path)))
    assert (
        "refused this client's certificate: it is of an authority that the server does not trust" in message
    )


def test_a_client_certificate_that_has_expired(mutual, authority, ca_file, tmp_path):
    path = own(authority, tmp_path, not_before=days(-9), not_after=days(-2))
    message = refused_after_tls(mutual, trusting(ca_file, cert_file=path))
    assert "refused this client's certificate: it has expired" in message


def test_a_client_certificate_that_is_accepted(mutual, authority, ca_file, tmp_path):
    with ScriptedPeer(echo, tls=mutual) as peer:
        with connect(peer, tls=trusting(ca_file, cert_file=own(authority, tmp_path))) as client:
            assert ask(client, 2.0) == 2.0
            assert client.ready().ok


@pytest.mark.parametrize("part", PERMANENT)
def test_the_page_about_tls_has_the_message_for_each_lasting_alert(part):
    assert PERMANENT[part] in PAGE


def an_error(reason):
    error = ssl.SSLError(1, f"[SSL: {reason}] {reason.lower()} (_ssl.c:1000)")
    error.reason = reason
    return error


@pytest.mark.parametrize("part", PERMANENT)
def test_what_is_permanent_is_not_retriable_whether_python_has_a_name_for_it_or_not(part):
    unnamed = ssl.SSLError(1, f"[SSL] {part.lower().replace('_', ' ')} (_ssl.c:1000)")
    for error in (an_error(f"SSLV3_{part}"), unnamed):
        raised = failure_of_tls(error, "h")
        assert PERMANENT[part] in raised.message
        assert not raised.retriable


@pytest.mark.parametrize("reason", ["TLSV1_ALERT_INTERNAL_ERROR", "TLSV1_ALERT_USER_CANCELLED", "BAD_MAC"])
def test_what_may_pass_is_retriable(reason):
    raised = failure_of_tls(an_error(reason), "h")
    assert raised.retriable
    assert raised.message.startswith("TLS with h failed: ")


# --- the rest ---


def test_a_port_without_tls(ca_file):
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer():
            sock, _ = plain.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

        threads = [threading.Thread(target=answer) for _ in range(1)]
        for thread in threads:
            thread.start()
        uri = f"wss://127.0.0.1:{plain.getsockname()[1]}/ws"
        with connect_to(uri, tls=trusting(ca_file)) as client:
            with failing(ConnectFailedError, "the port does not speak TLS", "ws://") as caught:
                client.open(wait=True)
        for thread in threads:
            thread.join(TIMEOUT)
    assert not caught.value.retriable


def connect_to(uri, **settings):
    class At:
        pass

    at = At()
    at.uri = uri
    return connect(at, connect_timeout=TIMEOUT, **settings)


@pytest.mark.parametrize("through", ["uri", "server_hostname"])
def test_the_dot_that_ends_an_absolute_name_is_in_neither_sni_nor_the_name_to_verify(
    authority, ca_file, monkeypatch, through
):
    asked = []
    server = server_context(authority, "manager.example")
    server.sni_callback = lambda sock, name, context: asked.append(name)
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **how: resolve("127.0.0.1", *args, **how))
    with ScriptedPeer(echo, tls=server) as peer:
        uri, tls = peer.uri, trusting(ca_file)
        if through == "uri":
            uri = uri.replace("127.0.0.1", "manager.example.")
        else:
            tls = trusting(ca_file, server_hostname="manager.example.")
        with connect_to(uri, tls=tls) as client:
            assert ask(client, 2.0) == 2.0
            assert client.health()
    assert set(asked) == {"manager.example"}


def test_a_name_without_a_dot_at_its_end_stays():
    assert [name_to_verify(name) for name in ("a.b", "a.b.", "127.0.0.1", ".")] == [
        "a.b",
        "a.b",
        "127.0.0.1",
        ".",
    ]
