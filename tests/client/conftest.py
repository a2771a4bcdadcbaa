"""Managers, models and connections for the tests of the client against a `LocalManager`."""

from ..helpers.fixtures import *  # noqa: F403
from ..helpers.manager_fixtures import *  # noqa: F403
