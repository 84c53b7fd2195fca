"""The commands, put together, and what becomes of an error: a line on stderr and an exit code, never a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer
from typer import rich_utils

import clcalib
from clcalib.cli import (
    bench,
    compare,
    data,
    describe,
    doctor,
    evaluate,
    export,
    init,
    leaderboard,
    quantize,
    recipes,
    report,
    sweep,
    targets,
)
from clcalib.cli.codes import DEBUG_FLAG, DEBUG_VARIABLE, INTERRUPTED, NOTHING_WRITTEN, OK, outcome
from clcalib.cli.completion import with_whole_words
from clcalib.cli.messages import new_console, show_error, shown_warnings

EXAMPLES = (
    "[bold]A first run[/bold]: what is here, what a network is made of, a file of settings, the run\n\n"
    "clcalib doctor\n\n"
    "clcalib describe --model torchvision:resnet18 --bits W4A8\n\n"
    "clcalib init torchvision:resnet18 --weights resnet18.safetensors --images images/ --out run.toml\n\n"
    "clcalib quantize run.toml\n\n"
    "[bold]A network of your own[/bold]: a function that builds it, its weights, a few hundred images\n\n"
    "clcalib quantize --model net.py:build --weights net.pt --calibration train.txt --bits W4A4 --out runs/a\n\n"
    "clcalib quantize run.toml --dry-run\n\n"
    "[bold]More accuracy[/bold]: another method, the contrastive term, more bits where they count\n\n"
    "clcalib recipes\n\n"
    "clcalib quantize run.toml --recipe qdrop --contrastive --out runs/qdrop\n\n"
    "clcalib quantize run.toml --bits W4A4 --max-drop 1.0 --out runs/within-one-point\n\n"
    "[bold]To deploy[/bold]: under the rules of a runtime, checked in it, timed against float\n\n"
    "clcalib targets\n\n"
    "clcalib quantize run.toml --bits W8A8 --target onnxruntime --out runs/deployed\n\n"
    "clcalib export runs/deployed --out quantized.onnx --float float.onnx\n\n"
    "clcalib bench float.onnx quantized.onnx\n\n"
    "[bold]To compare[/bold]: results, and the files of others, on the same images\n\n"
    "clcalib evaluate runs/a runs/qdrop quantized.onnx --evaluation test.txt\n\n"
    "clcalib report runs/a\n\n"
    "clcalib compare runs/a runs/qdrop --out compare.html\n\n"
    "[bold]In a terminal[/bold]: clcalib --install-completion teaches your shell the names; every command has --help."
    "\n\n"
)
EXIT_CODES = (
    "Exit codes: 0 done, 1 internal failure, 2 bad input, 3 the output exists, 4 a file could not be written "
    "(disk full, rights), 5 another process works in the folder, 6 some runs of a sweep failed, 7 a worker was lost "
    "and did not come back, 130 interrupted (Ctrl-C), 143 asked to end (SIGTERM)."
)

app = typer.Typer(
    name="clcalib",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="init", epilog=init.EXAMPLES)(init.init)
app.command(name="describe", epilog=describe.EXAMPLES)(describe.describe)
app.command(name="quantize", epilog=quantize.EXAMPLES)(quantize.quantize)
app.command(name="evaluate", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command(name="bench", epilog=bench.EXAMPLES)(bench.bench_command)
app.command(name="export", epilog=export.EXAMPLES)(export.export_command)
app.command(name="report", epilog=report.EXAMPLES)(report.report_command)
app.command(name="compare", epilog=compare.EXAMPLES)(compare.compare_command)
app.command(name="targets", epilog=targets.EXAMPLES)(targets.targets)
app.command(name="recipes", epilog=recipes.EXAMPLES)(recipes.recipes)
app.command(name="doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.command(name="sweep", epilog=sweep.EXAMPLES)(sweep.sweep)
app.command(name="leaderboard", epilog=leaderboard.EXAMPLES)(leaderboard.leaderboard_command)
app.add_typer(data.app, name="data")


@app.callback(
    invoke_without_command=True,
    epilog=EXAMPLES + EXIT_CODES,
)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option(DEBUG_FLAG, help="Show the traceback of an error, too.")] = False,
) -> None:
    """Post-training quantization of a trained PyTorch network, to 2 to 8 bits, from a few hundred images."""
    if version:
        sys.stdout.write(f"clcalib {clcalib.__version__}\n")
    elif context.invoked_subcommand is None:
        sys.stdout.write(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; an error is one message on stderr.

    Args:
        arguments: without the program's name; ``sys.argv`` by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Taken out here, so that it works before and after the command's name.
    is_debug = DEBUG_FLAG in given or bool(os.environ.get(DEBUG_VARIABLE))
    given = [argument for argument in given if argument != DEBUG_FLAG]
    errors = new_console(is_stderr=True)
    # The log of a CI service is no terminal, though typer takes some for one.
    rich_utils.FORCE_TERMINAL = True if os.environ.get("FORCE_COLOR") else None
    try:
        with shown_warnings(errors, is_debug=is_debug), with_whole_words(os.environ):
            code = app(args=given, prog_name="clcalib", standalone_mode=False)
    except Exception as error:
        if is_debug:
            traceback.print_exc()
        code, message = outcome(error)
        show_error(errors, message)
        return code
    except KeyboardInterrupt:
        code = INTERRUPTED
    # Most versions of typer turn Ctrl-C inside a command into this code, without a word.
    if code == INTERRUPTED:
        show_error(errors, NOTHING_WRITTEN)
    return code if isinstance(code, int) else OK
