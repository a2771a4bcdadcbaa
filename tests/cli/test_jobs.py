"""``management``, ``create`` and ``delete``."""

from __future__ import annotations

import json

import pytest

YAML = """
openstack: {name: red}
docker:
  image: triton:24.01
triton:
  model_name: double
"""


def test_a_job_by_its_name_and_fields(cli, manager):
    done = cli("management", "create_vm", "--set", "openstack.name=red", "--json")
    found = json.loads(done.out)
    assert found.pop("elapsed") > 0
    (vm,) = manager.cloud.vms
    assert found == {"action": "create_vm", "data": [vm.vm_ip, vm.vm_id], "attempts": 1}
    assert vm.name == "red"


@pytest.mark.parametrize("form", ["yaml", "json", "-"])
def test_a_body_from_a_file(cli, manager, tmp_path, form):
    import yaml

    file = tmp_path / f"body.{form}"
    text = json.dumps(yaml.safe_load(YAML)) if form == "json" else YAML
    file.write_text(text)
    done = cli("create", "--file", "-" if form == "-" else file, "--json", stdin=text.encode())
    found = json.loads(done.out)
    assert set(found) == {"vm_ip", "vm_id", "container_id", "model_name", "inputs", "outputs"}
    assert [vm.name for vm in manager.cloud.vms] == ["red"]


def test_fields_go_over_those_of_the_file(cli, manager, tmp_path):
    (tmp_path / "body.yaml").write_text(YAML)
    given = "create", "--file", tmp_path / "body.yaml"
    assert cli(*given, "--set", "openstack.name=blue", "--set", "docker.ports=[8000]").code == 0
    assert [vm.name for vm in manager.cloud.vms] == ["blue"]


def test_create_for_people(cli, manager):
    done = cli("create", "--set", "openstack.name=red", "--set", "docker.image=y")
    (container,) = manager.cloud.containers
    assert ["container_id", container.container_id] in [line.split() for line in done.out.splitlines()]


def test_a_job_for_people(cli, manager):
    done = cli("management", "create_vm", "--set", "openstack.name=red")
    (vm,) = manager.cloud.vms
    assert done.out == f"{[vm.vm_ip, vm.vm_id]}\n"


def test_delete_needs_a_yes(cli, manager):
    made = json.loads(cli("create", "--set", "openstack.name=red", "--set", "docker.image=y", "--json").out)
    (vm,) = manager.cloud.vms
    what = "--vm-id", vm.vm_id, "--container-id", made["container_id"]
    done = cli("delete", *what)
    assert (done.code, done.out) == (2, "")
    assert "--yes deletes without asking" in done.err
    assert manager.cloud.vms
    assert cli("delete", *what, "--yes").code == 0
    assert not manager.cloud.vms


def test_what_is_gone_is_a_failure_unless_it_may_be(cli, manager):
    made = json.loads(cli("create", "--set", "openstack.name=red", "--json").out)
    what = "--vm-ip", made["vm_ip"], "--container-id", made["container_id"], "--yes"
    (vm,) = manager.cloud.vms
    first = cli("delete", *what, "--json")
    assert json.loads(first.out)["parts"] == {"server": "deleted", "container": "deleted", "vm": "deleted"}
    again = "--vm-id", vm.vm_id, *what[2:]
    failed = cli("delete", *again)
    assert failed.code == 1
    assert "missing: server, container, vm" in failed.err
    passed = cli("delete", *again, "--missing-ok")
    assert passed.code == 0
    assert [line.split() for line in passed.out.splitlines()] == [
        ["server", "missing"],
        ["container", "missing"],
        ["vm", "missing"],
    ]


def test_an_id_is_given_once(cli, manager):
    done = cli("delete", "--vm-ip", "10.0.0.1", "--set", "vm_ip=10.0.0.2", "--yes")
    assert done.code == 2
    assert "vm_ip: given as an option and in the body" in done.err
    assert not manager.cloud.jobs


@pytest.mark.parametrize("form", ["--set", "--file"])
def test_the_ids_to_delete_may_be_in_the_body(cli, manager, form):
    made = json.loads(cli("create", "--set", "openstack.name=red", "--json").out)
    (vm,) = manager.cloud.vms
    ids = {"vm_id": vm.vm_id, "container_id": made["container_id"]}
    if form == "--set":
        done = cli("delete", "--yes", *(word for pair in ids.items() for word in ("--set", "=".join(pair))))
    else:
        done = cli("delete", "--yes", "--file", "-", stdin=json.dumps(ids).encode())
    assert (done.code, done.err) == (0, "")
    assert not manager.cloud.vms


# What functions on the way call their own arguments.
_NAMES = (
    "session",
    "call",
    "title",
    "arguments",
    "body",
    "client",
    "core",
    "payload",
    "kind",
    "fields",
    "file",
)
_NAMES += ("job_id", "secret", "data", "options", "command", "name", "deadline", "message", "request", "uuid")


@pytest.mark.parametrize(
    "command", [("management", "create_vm"), ("create",), ("delete", "--yes", "--vm-id", "x"), ("info", "x")]
)
def test_a_field_of_any_name_is_sent(cli, manager, command):
    """None of them meets an argument of the same name on its way."""
    done = cli(*command, *(word for name in _NAMES for word in ("--set", f"{name}=x")))
    assert done.code in (0, 1)
    assert "unexpected" not in done.err


def test_what_to_delete_is_never_taken_from_the_variables(cli, manager, monkeypatch):
    monkeypatch.setenv("TCM_VM_ID", "vm-1")
    done = cli("delete", "--yes")
    assert done.code == 2
    assert "nothing to delete is named" in done.err
    assert not manager.cloud.jobs


def test_a_job_that_fails(cli, manager):
    done = cli("management", "create_container")
    assert (done.code, done.out) == (1, "")
    assert "the job failed" in done.err


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        ((), b"", "no ACTION: it is one of creation, deletion, create_vm"),
        (("create_vm", "--file", "/no/such"), b"", "cannot be read"),
        (("create_vm", "--file", "-"), b"a: [", "neither YAML nor JSON"),
        (("create_vm", "--file", "-"), b"[1]", "must hold an object"),
        (("create_vm", "--file", "-"), b"1: 2", "texts as keys"),
        (("create_vm", "--file", "-"), b"a: &x [*x]", "nested more than"),
        (("create_vm", "--file", "-"), b"a: 2024-01-01", "date has no form in JSON"),
        (("create_vm", "--file", "-"), b"a: !!python/object:os.system {}", "neither YAML nor JSON"),
        (("create_vm", "--file", "-"), b"timeout: 3", "give it on the command line"),
        (("create_vm", "--set", "a"), b"", "not KEY.KEY=VALUE"),
        (("create_vm", "--set", "a=1", "--set", "a.b=1"), b"", "is not an object"),
        (("create_vm", "--set", "a..b=1"), b"", "empty key"),
        (("create_vm", "--set", ".=1"), b"", "empty key"),
    ],
)
def test_a_body_that_is_none(cli, manager, arguments, stdin, said):
    done = cli("management", *arguments, stdin=stdin)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert not manager.cloud.jobs


def test_the_timeout_of_a_job_is_the_option_and_not_the_variable(cli, manager, monkeypatch):
    asked = []
    from tcm_sync import TcmClient
    from tcm_sync.settings import UNSET

    monkeypatch.setenv("TCM_TIMEOUT", "20")
    monkeypatch.setattr(TcmClient, "management", lambda *_, timeout, **__: asked.append(timeout) or 1 / 0)
    cli("management", "create_vm")
    cli("--timeout", "7", "management", "create_vm")
    cli("management", "create_vm", "--timeout", "8")
    assert asked == [UNSET, 7.0, 8.0]
