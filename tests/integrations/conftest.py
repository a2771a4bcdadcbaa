"""Managers and clients for the tests of what connects to other programs and libraries."""

import pytest

from tcm_sync.local.digits import model_file

from ..helpers.fixtures import *  # noqa: F403
from ..helpers.manager_fixtures import *  # noqa: F403


@pytest.fixture
def digits_manager(serve):
    """The manager of the services in examples/."""
    with model_file() as path:
        yield serve({"digits": path}, workers=8)
