"""The command line: a table of commands, each in its own file, loaded when it is named."""

import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

from selfsight.cli.output import note, visible
from selfsight.cli.parser import Parser
from selfsight.errors import ConfigError, Error, suggestion

__all__ = ["COMMANDS", "main"]

# Each is a module of this package with `configure(parser)` and `run(arguments) -> int`.
COMMANDS = {
    "demo": "train, measure and diagnose on generated images; needs no data and no network",
    "pretrain": "train an encoder on unlabelled images",
    "resume": "continue an interrupted run",
    "evaluate": "measure an encoder by nearest neighbours, probes and other tasks, with intervals",
    "compare": "say what is and what is not a difference between runs",
    "convert": "make a model folder of an official checkpoint",
    "embed": "write the embedding of every image to a file",
    "methods": "list the methods, or describe one",
    "views": "draw what a method sees of your images",
    "bench": "time on this machine what training needs",
    "doctor": "check this machine and this installation",
    "check": "check every image of a data set before training",
    "pack": "write images into tar shards, in their order",
}

_HELP = """\
usage: selfsight COMMAND [ARGUMENTS]

From a folder of unlabelled images to an encoder that is measured.

commands:
{commands}

  selfsight COMMAND --help   what a command takes
  selfsight --version        which version this is

start here:
  selfsight demo
  selfsight pretrain photos/ --out runs/photos
"""

# What a shell reports for a program that a closed pipe ends.
_CLOSED_PIPE = 128 + 13


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` is without the program's name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # File names need not be valid text; printing one must not fail.
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words and words[0] in COMMANDS else ""
    program = f"selfsight {name}".rstrip()
    try:
        code = _command(name, words[1:]) if name else _top(words)
        sys.stdout.flush()
        return code
    except Error as error:
        note(f"{program}: {visible(str(error))}")
        return error.exit_code
    except KeyboardInterrupt:
        note(f"{program}: interrupted")
        return 130
    except BrokenPipeError:
        _give_up_stdout()
        return _CLOSED_PIPE
    except OSError as error:
        if error.errno is None:
            return _bug(program)
        try:
            sys.stdout.flush()
        except OSError:
            _give_up_stdout()
        where = f": {error.filename}" if error.filename else ""
        note(f"{program}: {visible(f'{error.strerror}{where}')}")
        return 74
    except Exception:
        return _bug(program)


def _top(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        commands = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
        print(_HELP.format(commands=commands), end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from selfsight import __version__

        print(f"selfsight {__version__}")
        return 0
    if words[0].startswith("-"):
        near = suggestion(words[0], ["--help", "--version"])
        raise ConfigError(f"unknown option {words[0]}{near}")
    near = suggestion(words[0], COMMANDS) or "; see selfsight --help"
    raise ConfigError(f"unknown command {words[0]}{near}")


def _command(name: str, words: list[str]) -> int:
    module = importlib.import_module(f"selfsight.cli.{name}")
    parser = Parser(prog=f"selfsight {name}", description=COMMANDS[name])
    module.configure(parser)
    arguments = parser.read(words)
    if arguments is None:
        return 0
    code: int = module.run(arguments)
    return code


def _give_up_stdout() -> None:
    """What cannot be written is dropped: the interpreter would try again as it leaves."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _bug(program: str) -> int:
    traceback.print_exc()
    note(f"{program}: this is a bug in selfsight; please report it with the lines above")
    return 1
