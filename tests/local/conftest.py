"""Managers, models and plain connections for the tests of `LocalManager`."""

from ..helpers.fixtures import *  # noqa: F403
from ..helpers.manager_fixtures import *  # noqa: F403
