"""Managers and clients for the tests of what connects to other programs and libraries."""

from ..helpers.fixtures import *  # noqa: F403
from ..helpers.manager_fixtures import *  # noqa: F403
