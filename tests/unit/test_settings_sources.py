"""Where settings come from: PEM files, pickles and the environment."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import ssl
from dataclasses import fields

import pytest
import trustme

from tcm_sync import AuthContext, ConfigError, RetryPolicy, Route, TcmClient, TlsSettings
from tcm_sync._environment import settings_from_env
from tcm_sync.settings import Settings

TOKEN = "tok-4711-never-to-be-shown"
URI = "ws://localhost:8000/ws"


def module_level_token():
    return TOKEN


# --- TLS ---


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pems")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    issued = authority.issue_cert("client@example.org")
    issued.private_key_and_cert_chain_pem.write_to_path(directory / "both.pem")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    (directory / "nonsense.pem").write_text("nonsense")
    (directory / "empty.pem").write_text("")
    return directory


def test_a_context_always_verifies(pems):
    for tls in (
        TlsSettings(),
        TlsSettings(ca_file=pems / "ca.pem"),
        TlsSettings(ca_file=str(pems / "ca.pem"), cert_file=pems / "both.pem"),
        TlsSettings(cert_file=pems / "cert.pem", key_file=pems / "key.pem", key_password="unused"),
    ):
        context = tls.context()
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname


def test_only_the_named_authority_is_trusted(pems):
    assert len(TlsSettings(ca_file=pems / "ca.pem").context().get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"ca_file": "missing.pem"}, "missing.pem"),
        ({"ca_file": "nonsense.pem"}, "nonsense.pem"),
        ({"ca_file": "empty.pem"}, "empty.pem"),
        ({"ca_file": "."}, ""),
        ({"ca_file": "missing.pem", "cert_file": "both.pem"}, "missing.pem"),
        ({"cert_file": "missing.pem"}, "missing.pem"),
        ({"cert_file": "cert.pem"}, "cert.pem"),  # there is no key in it
        ({"cert_file": "cert.pem", "key_file": "missing.pem"}, "missing.pem"),
        ({"cert_file": "cert.pem", "key_file": "nonsense.pem"}, "nonsense.pem"),
        ({"ca_file": "ca.pem", "cert_file": "missing.pem"}, "missing.pem"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(pems, files, named):
    tls = TlsSettings(**{name: pems / file for name, file in files.items()})
    with pytest.raises(ConfigError, match=r"^tls: ") as caught:
        tls.context()
    assert str(pems / named) in caught.value.message


def test_an_encrypted_key_with_a_wrong_password_asks_nobody(pems, tmp_path):
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key((pems / "key.pem").read_bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"right"),
    )
    path = tmp_path / "encrypted.pem"
    path.write_bytes(encrypted)
    for password in (None, "\n", TOKEN):
        tls = TlsSettings(cert_file=pems / "cert.pem", key_file=path, key_password=password)
        with pytest.raises(ConfigError, match=r"^tls: ") as caught:
            tls.context()
        assert TOKEN not in str(caught.value)
    for password in ("right", "right\r\n", "\ufeffright\n", b"right", b"\xef\xbb\xbfright\n"):
        assert TlsSettings(cert_file=pems / "cert.pem", key_file=path, key_password=password).context()


@pytest.mark.parametrize(("name", "value"), [("ca_file", 7), ("cert_file", [])])
def test_what_is_no_path_at_all_is_refused_too(name, value):
    with pytest.raises(ConfigError, match=rf"^tls\.{name} must be the path of a file, not "):
        TlsSettings(**{name: value})


def test_a_key_without_its_certificate_is_refused():
    with pytest.raises(ConfigError, match=r"^tls\.key_file needs tls\.cert_file"):
        TlsSettings(key_file="key.pem")


@pytest.mark.parametrize("name", ["", ".h", "a..b", "x" * 70, 7])
def test_a_name_that_tls_cannot_verify_is_refused(name):
    with pytest.raises(ConfigError, match=r"^tls\.server_hostname "):
        TlsSettings(server_hostname=name)


@pytest.mark.parametrize("name", ["h", "a.b", "10.0.0.1", "::1", "bücher.example"])
def test_names_and_addresses_can_be_verified(name):
    assert TlsSettings(server_hostname=name).server_hostname == name


# --- pickling ---

WHOLE = {
    "auth": AuthContext("p", module_level_token, "s", "t", ["inference"]),
    "route": Route("c", "10.0.0.1", "vm"),
    "pool_size": 2,
    "pool_timeout": 1.5,
    "max_requests": 7,
    "max_idle": 8.0,
    "max_lifetime": 9.0,
    "messages_per_second": 20,
    "management_sockets": 3,
    "timeout": None,
    "connect_timeout": 2.0,
    "ping_interval": 3.0,
    "retry": RetryPolicy(2, fatal=["A"]),
    "shm": "off",
    "shm_max_pinned": 10**6,
    "shm_group": "root",
    "max_message_bytes": 10**6,
    "max_reply_bytes": 10**7,
    "tls": TlsSettings(key_password="k", server_hostname="h"),
    "headers": {"A": "b"},
    "proxy": "http://u:p@h:1",
    "turns": 10,
}


def test_settings_survive_pickling_with_all_their_fields():
    settings = Settings("wss://h/ws", **WHOLE)
    assert {field.name for field in fields(settings)} == {"uri", *WHOLE}
    assert all(vars(Settings("wss://h/ws"))[name] != value for name, value in WHOLE.items())
    copied = pickle.loads(pickle.dumps(settings))
    assert copied == settings
    assert copied.auth.token is module_level_token


def test_a_client_survives_pickling_as_its_settings():
    client = TcmClient("wss://h/ws", **WHOLE)
    copied = pickle.loads(pickle.dumps(client))
    assert type(copied) is TcmClient
    assert copied._core.settings == client._core.settings == Settings("wss://h/ws", **WHOLE)
    assert repr(copied) == "<TcmClient wss://h/ws not open>"


class Subclass(TcmClient):
    pass


def test_a_subclass_stays_one():
    assert type(pickle.loads(pickle.dumps(Subclass(URI)))) is Subclass


LAMBDA = lambda: TOKEN  # noqa: E731


def _lambda():
    return LAMBDA


class PicklerOfLambdas(pickle.Pickler):
    """Pickles what `pickle` does not, as cloudpickle does."""

    def reducer_override(self, obj):
        return (_lambda, ()) if obj is LAMBDA else NotImplemented


def test_the_pickler_decides_what_it_can_take():
    client = TcmClient(URI, AuthContext(token=LAMBDA))
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(client)
    file = io.BytesIO()
    PicklerOfLambdas(file).dump(client)
    assert pickle.loads(file.getvalue())._core.settings.auth.token is LAMBDA


@dataclasses.dataclass
class Task:
    client: TcmClient
    auth: AuthContext


def test_what_holds_a_client_is_copied_with_it_whatever_its_token():
    auth = AuthContext(token=LAMBDA)
    task = Task(TcmClient(URI, auth), auth)
    copies = [copy.copy(task.client), copy.deepcopy(task).client, dataclasses.asdict(task)["client"]]
    for each in copies:
        assert each is not task.client
        assert each._core is task.client._core
    assert dataclasses.asdict(task)["auth"]["token"] is LAMBDA


# --- the environment ---


def test_the_least_environment():
    assert settings_from_env({"TCM_WS_URI": URI, "PATH": "x", "OTHER_TCM_TIMEOUT": "x"}) == {"uri": URI}


@pytest.mark.parametrize("end", ["\n", "\r", " ", "\r\n"])
def test_variables_may_have_line_ends(end):
    """As files of variables of Windows have, and of mounted secrets."""
    plain = {"TCM_WS_URI": URI, "TCM_CLIENT_TOKEN": TOKEN, "TCM_CLIENT_SUB": "s", "TCM_POOL_SIZE": "3"}
    plain |= {"TCM_CONTAINER_ID": "c", "TCM_CLIENT_ROLES": "inference"}
    assert settings_from_env({name: value + end for name, value in plain.items()}) == settings_from_env(plain)


def test_a_token_of_white_space_is_no_missing_token():
    with pytest.raises(ConfigError, match=r"^auth\.token holds nothing but white space"):
        settings_from_env({"TCM_WS_URI": URI, "TCM_CLIENT_TOKEN": "\n"})


def test_the_whole_environment():
    environ = {
        "TCM_WS_URI": "wss://h/ws",
        "TCM_CLIENT_UUID": "worker",
        "TCM_CLIENT_TOKEN": TOKEN,
        "TCM_CLIENT_SUB": "svc",
        "TCM_CLIENT_TENANT_ID": "acme",
        "TCM_CLIENT_ROLES": " inference, admin ,,",
        "TCM_CONTAINER_ID": "ctr-9",
        "TCM_VM_IP": "10.0.0.1",
        "TCM_VM_ID": "vm-9",
        "TCM_CA_FILE": "/etc/ca.pem",
        "TCM_PROXY": "socks5h://h:1",
        "TCM_TIMEOUT": "2.5",
        "TCM_POOL_SIZE": "3",
        "TCM_TURNS": "10",
    }
    assert settings_from_env(environ) == {
        "uri": "wss://h/ws",
        "auth": AuthContext("worker", TOKEN, "svc", "acme", ("inference", "admin")),
        "route": Route("ctr-9", "10.0.0.1", "vm-9"),
        "tls": TlsSettings(ca_file="/etc/ca.pem"),
        "proxy": "socks5h://h:1",
        "timeout": 2.5,
        "pool_size": 3,
        "turns": 10,
    }


def test_an_empty_variable_is_as_good_as_none():
    environ = dict.fromkeys(["TCM_CLIENT_TOKEN", "TCM_CLIENT_ROLES", "TCM_TIMEOUT", "TCM_VM_IP"], "")
    assert settings_from_env({"TCM_WS_URI": URI, **environ}) == {"uri": URI}


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "TCM_WS_URI is not set"),
        ({"TCM_WS_URI": ""}, "TCM_WS_URI is not set"),
        ({"TCM_WS_URI": URI, "TCM_CA_FILE": ""}, "TCM_CA_FILE is empty"),
        ({"TCM_WS_URI": URI, "TCM_CA_FILE": " "}, "tls.ca_file is empty"),
        ({"TCM_WS_URI": URI, "TCM_TIMEOUT": "soon"}, "TCM_TIMEOUT must be a number, not 'soon'"),
        ({"TCM_WS_URI": URI, "TCM_POOL_SIZE": "2.5"}, "TCM_POOL_SIZE must be a number, not '2.5'"),
        ({"TCM_WS_URI": URI, "TCM_VM_IP": "10.0.0.1"}, "TCM_VM_IP and TCM_VM_ID need TCM_CONTAINER_ID"),
        ({"TCM_WS_URI": URI, "TCM_VM_ID": "vm"}, "TCM_VM_IP and TCM_VM_ID need TCM_CONTAINER_ID"),
    ],
)
def test_an_environment_that_cannot_work_is_refused_by_name(environ, words):
    with pytest.raises(ConfigError) as caught:
        settings_from_env(environ)
    assert caught.value.message.startswith(words)


def test_a_client_is_made_of_the_environment(monkeypatch):
    for name in ("TCM_CLIENT_UUID", "TCM_CLIENT_TOKEN", "TCM_CONTAINER_ID", "TCM_CA_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TCM_WS_URI", URI)
    monkeypatch.setenv("TCM_TIMEOUT", "7")
    assert TcmClient.from_env()._core.settings == Settings(URI, timeout=7.0)
    monkeypatch.setenv("TCM_TIMEOUT", "-7")
    with pytest.raises(ConfigError, match=r"^timeout must be"):
        Subclass.from_env()
    monkeypatch.delenv("TCM_WS_URI")
    with pytest.raises(ConfigError, match="TCM_WS_URI"):
        TcmClient.from_env()
