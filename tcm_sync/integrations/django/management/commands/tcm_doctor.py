"""``manage.py tcm_doctor``: check the connection to the manager step by step."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from tcm_sync.cli import missing_package
from tcm_sync.errors import ConfigError
from tcm_sync.integrations._doctor import run_checks
from tcm_sync.integrations.django.clients import DEFAULT, tcms


class Command(BaseCommand):
    """Check the connection to the manager step by step, and print what to do."""

    help = "Check the connection to the Triton Client Manager step by step, and print what to do."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options.

        Parameters
        ----------
        parser : ArgumentParser
            The parser of the command.
        """
        parser.add_argument("--client", default=DEFAULT, help="the client to check (default: %(default)s)")
        parser.add_argument("--json", action="store_true", help="print JSON: one line, keys that stay")
        parser.add_argument("--timeout", type=float, help="seconds for each step")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002
        """Run the checks.

        Parameters
        ----------
        *args : object
            None.
        **options : object
            The values of the options.

        Raises
        ------
        CommandError
            A step failed, with the exit status of ``tcm-sync doctor``.
        """
        if fault := missing_package():
            raise CommandError(fault)
        try:
            client = tcms.without_deadline(options["client"])
        except ConfigError as error:
            raise CommandError(error.message) from None
        status = run_checks(client, as_json=options["json"], timeout=options["timeout"])
        if status:
            raise CommandError(f"client {options['client']!r} cannot use its manager", returncode=status)
