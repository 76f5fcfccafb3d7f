"""RECIPE and dotted flags to a command's arguments; a misspelt one is one line with the nearest match."""

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import recipe_of, run_of
from ddpm_core.artifacts.checkpoint_store import find_checkpoint
from ddpm_core.data.config import DataConfig
from ddpm_core.errors import InputError, nearest
from ddpm_core.model.form import UNetForm
from pipelines.cli.invocation import as_typed
from pipelines.cli.short_help import short_help
from pipelines.datasets import find_dataset
from pipelines.progress import say
from pipelines.recipes.config import Recipe, TrainStage, default_store
from pipelines.recipes.files import KEPT, find_recipe
from pipelines.recipes.fitting import fitted
from pipelines.recipes.recipes import RECIPES
from pipelines.tracking.registry import find_version
from pipelines.tracking.resolve import here, places
from pipelines.tracking.store import standing_server

A = TypeVar("A")
R = TypeVar("R", bound=Recipe)


_ON_THE_WAY = 4
"""Checkpoints and grids of samples: one of a photo project takes some seconds."""
_ATTENTION = "--unet.attention-resolutions"
_EVERYWHERE = """\
  --dry-run  print what would be done and how long it takes, touch nothing
  --json     print what was made (with --dry-run: every setting) as one JSON object, last line of stdout"""


def parse(args_type: type[A], argv: list[str], program: str, about: str, often: Sequence[str] = ()) -> A:
    """RECIPE, by name or as a file, and dotted flags to the command's arguments.

    Args:
        often: the flags that --help shows, dotted; --help-all shows all.

    Raises:
        InputError: for a misspelt recipe or flag, or a value that is none; one line with the nearest match.
        SystemExit: with 0, after --help.
    """
    name = argv.pop(0) if argv and not argv[0].startswith("-") else "digits"
    recipe = find_recipe((name in RECIPES and _recipe_of_model(argv)) or name)
    of_recipe = {f.name for f in fields(Recipe)}
    default = args_type(**{f.name: getattr(recipe, f.name) for f in fields(args_type) if f.name in of_recipe})  # type: ignore[arg-type]
    if often and {"-h", "--help"} & set(argv):
        print(short_help(program, about, default, often))
        raise SystemExit(0)
    parsed = parse_flags(args_type, argv, default, f"{program} [RECIPE]", f"{about}\n\n{_recipes()}")
    if hasattr(parsed, "train"):
        parsed = replace(parsed, train=_still_seen(parsed.train, recipe.train))  # type: ignore[type-var]
    typed = any(word.replace("_", "-").startswith(_ATTENTION) for word in argv)
    return parsed if typed or not isinstance(parsed, Recipe) else _fitted(parsed)


def _still_seen(asked: TrainStage, own: TrainStage) -> TrainStage:
    """A shorter training than the recipe's own, with as many checkpoints and grids of samples on the way, or with four.

    The recipe spreads its own over all its steps: of fewer, none might come before the last.
    """
    if asked.steps >= own.steps:
        return asked
    for name in ("checkpoint_every", "preview_every"):
        every = getattr(own, name)
        many = min(_ON_THE_WAY, own.steps // every)
        if getattr(asked, name) == every and many > 1:
            asked = replace(asked, **{name: max(1, min(every, asked.steps // many))})
    return asked


def parse_named(
    args_type: type[A], argv: list[str], program: str, about: str, *, field: str, word: str, often: Sequence[str]
) -> A:
    """What a word names, before or after the flags, for a command that is about one thing that is there.

    Args:
        field: that gets the word, a positional one.
        word: what it may be, for --help: RUN|MODEL.
        often: the flags that --help shows, dotted; --help-all shows all.

    Raises:
        InputError: for a misspelt flag, a value that is none, or no word; in one line.
        SystemExit: with 0, after --help.
    """
    if {"-h", "--help"} & set(argv):
        print(short_help(program, about, args_type(), often, word))
        raise SystemExit(0)
    parsed = parse_flags(args_type, argv, args_type(), program, about)
    if not getattr(parsed, field):
        raise InputError(f"nothing is named; expected `{program} {word}` (--help shows examples)")
    return parsed


def parse_alone(args_type: type[A], argv: list[str], program: str, about: str) -> A:
    """Flags, for a command without a recipe.

    Raises:
        InputError, SystemExit: as `parse_flags`.
    """
    return parse_flags(args_type, argv, args_type(), program, about)


def _fitted(recipe: R) -> R:
    """The recipe with a network for images of its size, which may be another than that of the recipe's name; it is said."""
    shape = recipe.data if recipe.dataset is None else find_dataset(recipe.dataset, recipe.store)
    unet = fitted(recipe.unet, shape.image_size)
    if unet != recipe.unet:
        before, now = (" ".join(map(str, each.attention_resolutions)) for each in (recipe.unet, unet))
        say(
            f"attention at {now}: the recipe's {before} is no level's size with these images ({_ATTENTION} chooses another)"
        )
    return replace(recipe, unet=unet)


def _recipe_of_model(argv: list[str]) -> str | None:
    """The recipe of the model that --model names, or the file that a project's run keeps, which say how its images are made."""
    words = [word for each in argv for word in each.split("=", 1)]
    model, store = (words[words.index(flag) + 1] if flag in words[:-1] else "" for flag in ("--model", "--store"))
    if registered := re.match(r"models:/ddpm-([^@/]+)[@/]", model):
        if registered[1] in RECIPES:
            return registered[1]
        checkpoint = _checkpoint_of(model, store or default_store())
    elif model and not model.startswith("models:/"):
        checkpoint = next(filter(None, map(find_checkpoint, places(model, store or default_store()))), None)
    else:
        return None
    if checkpoint is None:
        return None
    name, kept = recipe_of(checkpoint), storage.join(run_of(checkpoint), KEPT)
    return name if name in RECIPES else kept if storage.exists(kept) else None


def _checkpoint_of(registered: str, store: str) -> str | None:
    """That of a registered version, by what it says of itself; None if it does not stand any more, or nothing is registered.

    Raises:
        InputError: in one line, if there is no such version.
    """
    server = standing_server(store)
    if server is None:
        return None
    version = find_version(server.client, registered)
    return find_checkpoint(here(store, "runs", version.tags.get("checkpoint_uri", ""), "state.json"))


def parse_flags(args_type: type[A], argv: list[str], default: A, program: str, about: str) -> A:
    """Dotted flags to a dataclass; what they leave out is as in the default.

    Raises:
        InputError: for a misspelt flag, or a value that is none; one line with the nearest match.
        SystemExit: with 0, after --help.
    """
    told, argv = io.StringIO(), ["--help" if word == "--help-all" else word for word in argv]
    try:
        with contextlib.redirect_stderr(told):
            parsed = tyro.cli(
                args_type,
                args=argv,
                default=default,
                prog=program,
                description=f"{as_typed(about)}\n\n{_EVERYWHERE}",
                registry=_hiding() if {"-h", "--help"} & set(argv) else None,
            )
    except SystemExit as exit_:  # tyro ends the process; here the caller does
        if exit_.code == 0:
            raise
        raise InputError(_one_line(told.getvalue())) from None
    return _anchored(parsed)


def _hiding() -> ConstructorRegistry:
    """What --help does not show: flags that only weights from elsewhere ask for. They stand in `UNetForm`."""
    registry = ConstructorRegistry()

    @registry.struct_rule
    def no_flags(info: StructTypeInfo) -> StructConstructorSpec | None:
        return StructConstructorSpec(instantiate=lambda: info.default, fields=()) if info.type is UNetForm else None

    return registry


def _anchored(args: A) -> A:
    """The arguments with absolute paths: workers have other working directories."""
    anchored: dict[str, Any] = {}
    for f in fields(args):  # type: ignore[arg-type]
        value = getattr(args, f.name)
        if f.name == "store":
            anchored["store"] = storage.absolute(value)
        if isinstance(value, DataConfig) and value.source != "digits":
            anchored[f.name] = replace(value, source=storage.absolute(value.source))
    return replace(args, **anchored)  # type: ignore[type-var]


def _recipes() -> str:
    width = max(map(len, RECIPES))
    recipes = "\n".join(
        f"  {name:{width}}  {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items()
    )
    return (
        f"RECIPE (default: digits; any flag below overrides its field):\n{recipes}\n"
        "  NAME.toml: one of these with changes, as a sweep writes its winner; or a project, as `ddpm new NAME` writes it"
    )


def _one_line(box: str) -> str:
    """tyro's box as one line: what, the value, what was expected, the nearest match."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box).strip()  # on a terminal it is coloured
    _title, inside = re.sub(r"^╰.*$|│", " ", plain, flags=re.M).split("\n", 1)
    parts = (" ".join(part.split()) for part in re.split(r"^\s*[-─]{5,}\s*$", inside, flags=re.M))
    said, *more = (part for part in parts if part)  # where no lines can be drawn, a rule of dashes follows the title
    said = re.sub(r"^Error parsing (?!-)\w+: ", "", said).rstrip(".?")
    said = re.sub(r"'None', |, 'None'", "", said)  # not given, that is
    if number := re.match(
        r"Error parsing (--\S+): (?:invalid literal for int|could not convert string to float).*?('.*')$", said
    ):
        said = f"{number[1]} is {number[2]}"
    if union := re.match(r"Error parsing (--\S+): no type matching (.*?) could be instantiated from \[(.*?)\]\.", said):
        flag, kinds, words = union.groups()
        given = " ".join(re.findall(r"'(.*?)'", words))
        return f"{flag} is {given or 'empty'}; expected {kinds} (all flags: --help-all)"
    rest = " ".join(more)
    match = re.search(r"Perhaps you meant: (--[\w.-]+)", rest) or re.search(r"Argument helptext: (--[\w.-]+ \S+)", rest)
    hint = ""
    if match:
        hint = f"; did you mean {match.group(1)}?" if "Perhaps" in rest else f"; expected {match.group(1)}"
    if choice := re.search(r"invalid choice '(.*?)' .*Expected one of \((.*)\)", said):
        hint = nearest(choice[1], re.findall(r"'(.*?)'", choice[2]))
    return f"{said}{hint} (all flags: --help-all)"
