"""For the tests of a Django project: a `LocalManager` in place of the manager."""

from __future__ import annotations

import unittest
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from django.conf import settings
from django.test.utils import override_settings

from tcm_sync.integrations.django.clients import DEFAULT
from tcm_sync.local import LocalManager

if TYPE_CHECKING:
    from django.test import SimpleTestCase

    _Base = SimpleTestCase
else:
    _Base = object

#: Keys of a client that lead to its manager.
_ADDRESS = ("route", "vm_ip", "vm_id", "tls", "ca_file", "headers", "proxy")


@contextmanager
def clients_at(manager: LocalManager) -> Iterator[None]:
    """Let all clients of the setting ``TCM`` use a manager meanwhile; there is at least the default one."""
    near = {"uri": manager.uri, "container_id": manager.route.container_id}
    given = {DEFAULT: {}, **(getattr(settings, "TCM", None) or {})}
    kept = {
        name: {key: value for key, value in each.items() if key not in _ADDRESS}
        for name, each in given.items()
    }
    with override_settings(TCM={name: {**each, **near} for name, each in kept.items()}):
        yield


class LocalManagerMixin(_Base):
    """Gives a class of tests a `LocalManager`, which all clients of the setting ``TCM`` use meanwhile.

    It needs the extra ``local``, and stands before Django's class:
    ``class DigitsTests(LocalManagerMixin, TestCase)``. A test fails if it plans a fault of the manager, such
    as ``self.tcm_manager.drop_next()``, that no request takes.

    Attributes
    ----------
    tcm_models : mapping
        The models, as `LocalManager` takes them. A class sets it.
    tcm_manager_options : mapping
        Further arguments of `LocalManager`.
    tcm_manager : LocalManager
        The manager, while the tests of the class run.
    """

    tcm_models: ClassVar[Mapping[str, Any]] = {}
    tcm_manager_options: ClassVar[Mapping[str, Any]] = {}
    tcm_manager: ClassVar[LocalManager]

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuse a class whose tests would use the real manager.

        Raises
        ------
        TypeError
            The class names `LocalManagerMixin` after Django's class, which does not call its `setUpClass`.
        """
        super().__init_subclass__(**arguments)
        order = cls.__mro__
        if unittest.TestCase in order and order.index(unittest.TestCase) < order.index(LocalManagerMixin):
            name = cls.__name__
            raise TypeError(f"{name} must name LocalManagerMixin first: class {name}(LocalManagerMixin, …)")

    @classmethod
    def setUpClass(cls) -> None:
        """Start the manager, and point the clients to it."""
        super().setUpClass()
        cls.tcm_manager = LocalManager(models=dict(cls.tcm_models), **cls.tcm_manager_options)
        cls.tcm_manager.start()
        cls.addClassCleanup(cls.tcm_manager.stop)
        clients = clients_at(cls.tcm_manager)
        clients.__enter__()
        cls.addClassCleanup(clients.__exit__, None, None, None)

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        """Run the test, and fail it if it leaves a planned fault, which the next test would meet.

        Parameters
        ----------
        result : unittest.TestResult, optional
            Collects the outcome.

        Returns
        -------
        unittest.TestResult or None
            What Django's class returns.
        """
        self.addCleanup(self._check_faults)  # before all others, so that it runs after them
        return super().run(result)

    def _check_faults(self) -> None:
        left = self.tcm_manager.faults_left
        self.tcm_manager.clear_faults()
        if left:
            self.fail(f"no request has taken the planned faults {', '.join(left)}")
