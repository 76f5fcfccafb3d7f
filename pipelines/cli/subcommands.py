"""Commands of several words: `schedule.py list`, `registry.py show MODEL`."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddpm_core.errors import InputError, nearest
from pipelines.cli import command as cli
from pipelines.cli.command import Outcome, Use
from pipelines.cli.invocation import as_typed
from pipelines.cli.parsing import parse_flags
from pipelines.cli.written import written


@dataclass(frozen=True, kw_only=True)
class Subcommand:
    """One of a command's words."""

    about: str
    """For its --help."""
    args: type[Any]
    """Its flags, a dataclass with a `store`, and its words, which are no flags."""
    do: Callable[[Any], Outcome]
    store: Use
    words: tuple[str, ...] = ()
    """Fields that are typed before the flags, without their names."""
    optional: bool = False
    """Whether the last of these may be left out."""
    rest: str = ""
    """The field of all that follows `--`."""
    check: Callable[[Any], None] = lambda args: None
    plan: Callable[[Any], list[str]] | None = None
    """For --dry-run; unless told, a line of what it is about."""

    def usage(self) -> str:
        """How it is typed after its own word."""
        shown = [word.upper() for word in self.words]
        shown[-1:] = [f"[{last}]" if self.optional else last for last in shown[-1:]]
        return " ".join([*shown, "[flags]", *([f"-- {self.rest.upper()}"] if self.rest else [])])


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows in columns, below their names."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """What, and what is said of it, a line each."""
    width = max(len(what) for what, _ in rows)
    for what, said in rows:
        print(f"{what:{width}}  {said}")


def run_subcommand(script: str, about: str, commands: Mapping[str, Subcommand], argv: list[str]) -> None:
    """Run what the first word names, as `run_command` does."""
    with written():
        _run_named(script, about, commands, argv)


def _run_named(script: str, about: str, commands: Mapping[str, Subcommand], argv: list[str]) -> None:
    word = argv[0] if argv and not argv[0].startswith("-") else ""
    if word in commands:
        _run(script, word, commands[word], argv[1:])
        return
    if not word and {"-h", "--help"} & set(argv):
        print(as_typed(about))
        return
    known = f"expected {', '.join(commands)}{nearest(word, commands)} (--help says what each does)"
    lacks = f"has no command {word!r}" if word else "asks for a command"
    print(f"error: {script} {lacks}; {known}", file=sys.stderr)
    sys.exit(2)


def _run(script: str, word: str, command: Subcommand, argv: list[str]) -> None:
    place = argv.index("--") if command.rest and "--" in argv else len(argv)
    given = {command.rest: tuple(argv[place + 1 :])} if argv[place + 1 :] else {}

    def read(args_type: type[Any], flags: list[str], program: str, about: str) -> Any:
        words = {}
        for number, name in enumerate(command.words, 1):
            if flags and not flags[0].startswith("-"):
                words[name] = flags.pop(0)
            elif not (command.optional and number == len(command.words)) and not {"-h", "--help"} & set(flags):
                typed = " ".join([script, word, *(each.upper() for each in command.words)])
                raise InputError(f"{word} has no {name}; expected `{typed}`")
        return parse_flags(args_type, flags, args_type(**words, **given), f"{program} {word} {command.usage()}", about)

    def plan(args: Any) -> list[str]:
        named = [getattr(args, name) for name in command.words]
        return [f"{word}: {' '.join([*filter(None, named), 'in', args.store])}; {command.about}"]

    cli.run_command(
        command.args,
        command.about,
        check=command.check,
        plan=command.plan or plan,
        run=command.do,
        read=read,
        argv=argv[:place],
        store=command.store,
    )
