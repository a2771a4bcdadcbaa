"""Refuse network addresses other than those of the loopback interface, and record each process of a run.

tests/conftest.py loads this file, and puts its folder into PYTHONPATH, so that Python programs that tests
start load it too. A network namespace that a test has made for itself is exempt.

A refusal raises PermissionError, and is also written to the file that ``TCM_TESTS_REFUSED`` names: code under
test may turn the exception into another one, and the test must fail in any case. Processes are recorded in
the folder ``TCM_TESTS_PROCESSES``, so that what a killed one has left is attributed to its run. Modules that
tests look for in `sys.modules` must not be imported here.
"""

import os
import sys


def _namespace() -> str:
    try:
        return os.readlink("/proc/thread-self/ns/net")
    except OSError:
        return ""


os.environ.setdefault("TCM_TESTS_NAMESPACE", _namespace())


def _text(host) -> str:
    return host.decode("latin-1") if isinstance(host, (bytes, bytearray)) else str(host)


def _is_loopback(host) -> bool:
    host = _text(host).lower()
    return host in ("localhost", "::1") or host.removeprefix("::ffff:").startswith("127.")


def _is_numeric(host) -> bool:
    import _socket

    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, _text(host).partition("%")[0])
        except (OSError, ValueError):
            continue
        return True
    return False


def _address_leaves(sock, address=None, *_) -> bool:
    """Whether an address of a socket is one of another host, or of all interfaces."""
    import _socket

    if address is None or sock.family not in (_socket.AF_INET, _socket.AF_INET6, _AF_PACKET):
        return False  # a connected socket, and families that stay in the kernel
    return sock.family == _AF_PACKET or not (isinstance(address, tuple) and _is_loopback(address[0]))


def _binding_leaves(sock, address=None, *_) -> bool:
    """Whether a socket is bound to an address of another interface, or to all.

    Addresses reserved for documentation are no machine's: to bind to one fails, and sends nothing.
    """
    reserved = isinstance(address, tuple) and _text(address[0]).startswith("192.0.2.")
    return not reserved and _address_leaves(sock, address)


def _name_leaves(host, *_) -> bool:
    """Whether resolving a name may send a query."""
    return not (host is None or _is_numeric(host) or _is_loopback(host))


def _number_leaves(host, *_) -> bool:
    """Whether looking for the name of an address may send a query."""
    return not _is_loopback(host[0] if isinstance(host, tuple) else host)


_AF_PACKET = 17
_CHECKS = {
    "socket.bind": _binding_leaves,
    "socket.connect": _address_leaves,
    "socket.sendto": _address_leaves,
    "socket.sendmsg": _address_leaves,
    "socket.getaddrinfo": _name_leaves,
    "socket.gethostbyname": _name_leaves,
    "socket.gethostbyaddr": _number_leaves,
    "socket.getnameinfo": _number_leaves,
}


def _refuse(event, arguments) -> None:
    check = _CHECKS.get(event)
    if check is None or not check(*arguments) or _namespace() != os.environ.get("TCM_TESTS_NAMESPACE"):
        return
    said = f"{event}{arguments[event in _OF_A_SOCKET :]} in process {os.getpid()}: {' '.join(sys.argv)[:200]}"
    if report := os.environ.get("TCM_TESTS_REFUSED"):
        number = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(number, f"{said}\n".encode(errors="replace"))
        os.close(number)
    raise PermissionError(f"tests may use loopback addresses only, this is another: {said}")


_OF_A_SOCKET = ("socket.bind", "socket.connect", "socket.sendto", "socket.sendmsg")
sys.addaudithook(_refuse)


def _record() -> None:
    try:
        path = os.path.join(os.environ["TCM_TESTS_PROCESSES"], str(os.getpid()))
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    except (KeyError, OSError):
        return  # no run, or one that has ended, or no free descriptor


_record()
os.register_at_fork(after_in_child=_record)
