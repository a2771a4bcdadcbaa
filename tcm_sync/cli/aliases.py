"""Commands under the names that they have in ``tcm-client-cli``."""

from __future__ import annotations

import click
import msgspec

from tcm_sync.cli.infer import show_result
from tcm_sync.cli.options import Command, LocalCommand, Session


@click.command("inference-http", cls=Command, hidden=True)
@click.option("--model-name", required=True, metavar="MODEL")
@click.option("--payload", required=True, metavar="FILE.json")
@click.pass_obj
def inference_http(session: Session, model_name: str, payload: str) -> None:
    """Run a model on the inputs of a JSON file: the older name of infer."""
    try:
        found = msgspec.json.decode(session.read(payload, "--payload"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise click.UsageError(f"--payload: {payload!r} is not JSON: {error}") from error
    if isinstance(found, dict):
        request = found.get("request")
        found = (request if isinstance(request, dict) and "inputs" in request else found).get("inputs")
    if not isinstance(found, list):
        raise click.UsageError("--payload must hold a list of inputs, or an object with them as inputs")
    with session.client(routed=True) as client:
        result = client.infer(model_name, found)
    session.as_json = True
    show_result(session, result)


@click.command("model-analyze", cls=LocalCommand, hidden=True)
@click.option("--path", required=True, metavar="FILE.onnx")
@click.option("--name", required=True)
@click.pass_obj
def model_analyze(session: Session, path: str, name: str) -> None:
    """Show what is in an ONNX file: the older name of model analyze."""
    from tcm_sync.cli.model import analyze_file

    session.as_json = True
    analyze_file(session, path, name)
