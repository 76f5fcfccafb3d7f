"""How hard the tests bite: every small change to the mathematics that they do not notice.

    .venv/bin/pip install -e .[mutation]
    OMP_NUM_THREADS=1 nice .venv/bin/python tests/benchmarks/mutation.py /tmp/mutation

mutmut changes one thing at a time in ddpm_core/diffusion and runs the tests that reach the change, the quickest first.
It works in a copy, in the folder that is named; the tests that it runs are in pyproject.toml, [tool.mutmut]. Survivors
are printed as diffs. Run again, it tests what changed in the code since then alone; with --module, one module. All of
it takes half an hour of one core or more.

Error messages and constants of modules are not changed. jaxtyping's checks are off: the tests alone must notice.
"""

import argparse
import ast
import collections
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import libcst as cst
from mutmut.__main__ import cli
from mutmut.mutation import mutators
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

ROOT = Path(__file__).parents[2]
FOLDERS = ("ddpm_core", "tests")
MODULES = Path("ddpm_core/diffusion")

TWINS = {
    "alpha_bar": "alpha_bar_prev",
    "betas": "posterior_variance",
    "posterior_mean_coef_x_0": "posterior_mean_coef_x_t",
    "sqrt": "rsqrt",
    "exp": "expm1",
    "log": "log1p",
    "square": "abs",
    "min": "max",
    "zeros_like": "ones_like",
}
"""What is easily taken for each other."""


def twin(node: cst.Attribute) -> Iterable[cst.Attribute]:
    """s.alpha_bar to s.alpha_bar_prev, x.sqrt to x.rsqrt."""
    both = TWINS | {second: first for first, second in TWINS.items()}
    if node.attr.value in both:
        yield node.with_changes(attr=cst.Name(both[node.attr.value]))


def method_dropped(node: cst.Call) -> Iterable[cst.BaseExpression]:
    """x.sqrt() to x."""
    is_function = isinstance(node.func, cst.Attribute) and getattr(node.func.value, "value", None) in ("torch", "math")
    if isinstance(node.func, cst.Attribute) and not is_function:
        yield node.func.value


def arguments_swapped(node: cst.Call) -> Iterable[cst.Call]:
    """f(a, b) to f(b, a)."""
    for i, (first, second) in enumerate(zip(node.args, node.args[1:], strict=False)):
        positional = first.keyword is None and second.keyword is None and not first.star and not second.star
        if positional and getattr(node.func, "value", None) not in ("min", "max"):
            swapped = [first.with_changes(value=second.value), second.with_changes(value=first.value)]
            yield node.with_changes(args=[*node.args[:i], *swapped, *node.args[i + 2 :]])


def number_lowered(node: cst.Integer | cst.Float) -> Iterable[cst.BaseExpression]:
    """1 to 0; mutmut itself raises them."""
    yield cst.parse_expression(f"({node.evaluated_value - 1})")


MUTATORS = (
    (cst.Attribute, twin),
    (cst.Call, method_dropped),
    (cst.Call, arguments_swapped),
    (cst.Integer, number_lowered),
    (cst.Float, number_lowered),
)


def decorators_last(source: str) -> str:
    """The same module with its functions decorated in its last lines: mutmut leaves decorated ones alone."""
    tree, lines, last = ast.parse(source), source.splitlines(), []
    for owner in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
        prefix = f"{owner.name}." if isinstance(owner, ast.ClassDef) else ""
        for function in (node for node in owner.body if isinstance(node, ast.FunctionDef)):
            for decorator in reversed(function.decorator_list):
                name = prefix + function.name
                lines[decorator.lineno - 1] = ""
                last.append(f"{name} = {ast.unparse(decorator)}({name})")
                if ast.unparse(decorator) == "cached_property":  # which Python tells its name in a class's body alone
                    last.append(f"{name}.__set_name__({owner.name}, {function.name!r})")
    return "\n".join([*lines, *last, ""])


def copy(folder: Path) -> None:
    """The code and its tests, to a folder; what did not change keeps its results there."""
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for path in (folder / MODULES).glob("*.py"):
        path.write_text(decorators_last(path.read_text()))


def report() -> None:
    """The survivors as diffs, and a line for each module."""
    table = []
    for path in sorted(MODULES.glob("*.py")):
        data = SourceFileMutationData(path=path)
        data.load()
        statuses = {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}
        for name, status in statuses.items():
            if status not in ("killed", "not checked"):
                print(f"\n{status}: {get_diff_for_mutant(name, path=path)}")
        counts = collections.Counter(statuses.values())
        if statuses:
            table.append(
                f"{path.stem:12} {len(statuses):5} mutants: {', '.join(f'{n} {s}' for s, n in counts.items())}"
            )
    print("\n" + "\n".join(table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to work; it may grow to some MB")
    parser.add_argument("--module", default="*", help="one of ddpm_core/diffusion, as schedule")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    copy(arguments.folder)
    os.chdir(arguments.folder)
    mutators.mutation_operators.extend(MUTATORS)
    names = [] if arguments.module == "*" else [f"ddpm_core.diffusion.{arguments.module}.*"]
    cli(["run", "--max-children", str(arguments.processes), *names], standalone_mode=False)
    report()


if __name__ == "__main__":
    main()
