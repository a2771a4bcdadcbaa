"""Work with ONNX files: ``model analyze``, ``model config`` and ``model check``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec
import numpy as np

from tcm_sync._tensors import DATATYPES, TensorSpec
from tcm_sync.cli.failures import CommandError
from tcm_sync.cli.infer import TRANSIENT
from tcm_sync.cli.options import Command, Group, LocalCommand, Session

if TYPE_CHECKING:
    from tcm_sync.models import ModelAnalysis

_SIDES = ("inputs", "outputs", "overridable")
_KINDS = {"f": "fiu", "i": "iu", "u": "iu", "b": "b", "O": "O"}  # how the JSON of a dtype may be read


class _LocalGroup(Group):
    """A group of commands of which some need no manager."""

    shared = LocalCommand.shared


@click.group("model", cls=_LocalGroup, no_args_is_help=False)
def model() -> None:
    """Look into ONNX files, and try them."""


@model.command("analyze", cls=LocalCommand)
@click.argument("file", metavar="FILE.onnx", type=click.Path(allow_dash=True))
@click.pass_obj
def analyze(session: Session, file: str) -> None:
    """Show a model's inputs and outputs, and the other facts in its file."""
    analyze_file(session, file)


def analyze_file(session: Session, file: str, name: str | None = None) -> None:
    """Show the analysis of a file."""
    found = _analysis(session, file)
    if session.as_json:
        from tcm_sync.cli.output import spec

        facts = msgspec.to_builtins(found)
        facts |= {side: [spec(each) for each in getattr(found, side)] for side in _SIDES}
        session.output.json(facts if name is None else {"name": name, **facts})
        return
    axis = found.first_axis
    output = session.output
    output.pairs(
        {
            "file": found.source,
            "size": _size(found.file_bytes),
            "weights beside it": ", ".join(f"{each} ({_size(size)})" for each, size in found.external.items())
            or None,
            "graph": found.graph,
            "producer": found.producer or None,
            "versions": ", ".join([f"IR {found.ir_version}", *(f"{k} {v}" for k, v in found.opsets.items())]),
            "parameters": f"{found.parameters:,} ({_size(found.parameter_bytes)})",
            "batch": f"{'yes' if axis.is_batch else 'no'}, {axis.certainty}: {axis.reason}",
        }
    )
    output.line()
    output.table(("", "name", "datatype", "shape", "note"), _rows(found))


def _analysis(session: Session, file: str) -> ModelAnalysis:
    from tcm_sync.models import analyze as analyze_model

    return analyze_model(session.read(file, "FILE.onnx") if file == "-" else file)


def _rows(found: ModelAnalysis) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    sides = ("input", found.inputs), ("output", found.outputs), ("overridable", found.overridable)
    for side, specs in sides:
        for spec in specs:
            note = found.unsupported.get(spec.name, "optional" if spec.optional else "")
            rows.append((side, spec.name, spec.datatype, spec.shape, note))
    return rows


def _size(count: int | None) -> str | None:
    if count is None:
        return None
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count:,} bytes"


@model.command("config", cls=LocalCommand)
@click.argument("file", metavar="FILE.onnx", type=click.Path(allow_dash=True))
@click.option("--name", help="The model's name; left out, Triton takes that of its folder.")
@click.option("--max-batch-size", type=click.IntRange(0), help="The most samples of a batch; 0 is none.")
@click.option("--instances", type=click.IntRange(1), help="How many run at a time.")
@click.option("--kind", type=click.Choice(("auto", "cpu", "gpu")), default="auto", help="Where they run.")
@click.option("--dynamic-batching", is_flag=True, help="Let Triton join requests to batches.")
@click.pass_obj
def config(session: Session, /, file: str, **options: Any) -> None:
    """Write the model's config.pbtxt to the standard output."""
    text = _analysis(session, file).config_pbtxt(**options)
    if session.as_json:
        session.output.json({"config": text})
    else:
        session.output.text(text)


@model.command("check", cls=Command)
@click.argument("file", metavar="FILE.onnx", type=click.Path(allow_dash=True))
@click.option("--model", "model_name", metavar="NAME", required=True, help="The deployed model.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Samples in the request.")
@TRANSIENT
@click.pass_obj
def check(session: Session, file: str, model_name: str, batch: int, allow_transient: bool) -> int:
    """Try a deployed model with inputs made from its file, and compare what comes back."""
    from tcm_sync.models import sample_inputs

    signature = _analysis(session, file).signature
    arrays = sample_inputs(signature, batch)
    with session.client(routed=True) as client:
        result = client.infer(model_name, arrays, allow_transient=allow_transient)
    sizes = _sizes(signature.inputs, arrays)
    rows = []
    for spec in signature.outputs:
        found = result.get(spec.name)
        shape = None if found is None else list(found.shape)
        rows.append(
            {
                "name": spec.name,
                "expected": str(spec),
                "shape": shape,
                "problem": _problem(spec, found, sizes),
            }
        )
    declared = {spec.name for spec in signature.outputs}
    for name in result:
        if name not in declared:
            shape = list(result[name].shape)
            rows.append(
                {"name": name, "expected": None, "shape": shape, "problem": "the file has no such output"}
            )
    wrong = [row["name"] for row in rows if row["problem"] is not None]
    if session.as_json:
        session.output.json(
            {"ok": not wrong, "model_name": model_name, "elapsed": result.elapsed, "outputs": rows}
        )
        return int(bool(wrong))
    table = [(row["name"], row["expected"] or "", row["shape"] or "", row["problem"] or "ok") for row in rows]
    session.output.table(("output", "in the file", "came back", ""), table)
    if wrong:
        raise CommandError(f"{model_name} differs from the model in {file}: {', '.join(map(str, wrong))}")
    return 0


def _sizes(specs: Sequence[TensorSpec], arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, int]:
    """Return the sizes that the names of open dimensions have in the request."""
    return {
        name: size
        for spec in specs
        if spec.name in arrays and spec.dims is not None
        for name, declared, size in zip(spec.dim_names, spec.dims, arrays[spec.name].shape, strict=False)
        if name is not None and declared < 0
    }


def _problem(spec: TensorSpec, found: np.ndarray[Any, Any] | None, sizes: Mapping[str, int]) -> str | None:
    """Compare an output with its declaration in the file."""
    if found is None:
        return "the reply does not have it"
    known = DATATYPES.get(spec.datatype)
    if known is not None and found.dtype.kind not in _KINDS[known.dtype.kind]:
        return f"{found.dtype} is not {spec.datatype}"
    if spec.dims is None or spec.datatype == "BYTES":  # texts lose their shape on the wire
        return None
    names = spec.dim_names or (None,) * len(spec.dims)
    wanted = [
        sizes.get(name or "", -1) if size < 0 else size for name, size in zip(names, spec.dims, strict=True)
    ]
    if not wanted:
        wanted = [1]  # a 0-d tensor is sent as one element
    fits = len(wanted) == found.ndim and all(
        size in (-1, has) for size, has in zip(wanted, found.shape, strict=True)
    )
    return None if fits else f"the shape is not {wanted}"
