"""The house rules that a machine can check, read from the source of the package.

Each rule is one function from a parsed file to its offences, "file:line what", and one test that
there are none. `test_rules_see_offences` feeds every rule a small offender, so that no rule can
fall silent.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import pytest

from mmalign import registry
from mmalign.commands.reproducing import find

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mmalign"
MODALITIES = ("text", "vision", "diffusion")
OUTER = (*MODALITIES, "tinyworld")
"""Packages the core must not know."""
MODALITY_BLIND = ("trainer", "objectives", "sources", "policy", "functional", "selectors")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PIPELINE_LINES = 80
PIPELINES = "diffusion/pipelines/"
MAX_POSITIONAL = 6
MAX_IMPORT_SECONDS = 0.5

FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "eval", "exec", "os.system", "os.popen", "torch.load", "torch.save", "tempfile.mktemp",
    "yaml.unsafe_load", "yaml.full_load", "hasattr",
}  # fmt: skip
FORBIDDEN_KEYWORDS = {"shell": True, "allow_pickle": True, "weights_only": False, "verify": False}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed file of the package; ``name`` is its path within the package."""

    name: str
    text: str
    tree: ast.Module

    @staticmethod
    def parse(name: str, text: str) -> Source:
        return Source(name, text, ast.parse(text))

    @property
    def package(self) -> str:
        """The folder directly under the package, or the module's own name."""
        return Path(self.name).parts[0].removesuffix(".py")

    def functions(self) -> Iterator[Function]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and dotted name of everything imported, wherever the statement stands."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                prefix = "." * node.level + (node.module or "")
                yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        """Dotted name of the called thing ("" where it has none), and the call."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield dotted(node.func), node


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an attribute chain; "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := dotted(node.value)):
        return f"{head}.{node.attr}"
    return ""


def code_of(source: Source) -> str:
    """The source without comments and docstrings, line numbers kept."""
    lines = source.text.splitlines(keepends=True)
    for node in ast.walk(source.tree):
        if _is_constant(node) and isinstance(ast.literal_eval(node.value), str):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = "\n"
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip() + "\n"
    return "".join(lines)


# ---- rules: each yields (line, what) ---------------------------------------------------------

Offences = Iterator[tuple[int, str]]


def core_imports_no_modality(source: Source) -> Offences:
    """The core never imports a modality or tinyworld; a modality never imports tinyworld."""
    if source.package == "tinyworld":
        return
    banned = ("tinyworld",) if source.package in MODALITIES else OUTER
    for line, name in source.imports():
        parts = name.split(".")
        if parts[0] == "mmalign" and len(parts) > 1 and parts[1] in banned:
            yield line, f"imports {name}"


def file_is_short(source: Source) -> Offences:
    """At most 400 lines."""
    length = len(source.text.splitlines())
    if length > MAX_FILE_LINES:
        yield length, f"{length} lines"


def pipeline_is_short(source: Source) -> Offences:
    """At most 80 lines for what takes a pipeline of diffusers apart: the rest is shared."""
    length = len(source.text.splitlines())
    if source.name.startswith(PIPELINES) and length > MAX_PIPELINE_LINES:
        yield length, f"{length} lines"


def functions_are_short(source: Source) -> Offences:
    """At most 60 lines, the docstring not counted."""
    for function in source.functions():
        first, last = function.lineno, function.end_lineno or function.lineno
        length = last - first + 1
        if ast.get_docstring(function) is not None:
            text = function.body[0]
            length -= (text.end_lineno or text.lineno) - text.lineno + 1
        if length > MAX_FUNCTION_LINES:
            yield first, f"{function.name} has {length} lines"


def few_positional_arguments(source: Source) -> Offences:
    """At most six arguments that may be given by position."""
    for function in source.functions():
        names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
        if names and names[0] in ("self", "cls"):
            names = names[1:]
        if len(names) > MAX_POSITIONAL:
            yield function.lineno, f"{function.name} takes {len(names)} positional arguments"


def no_public_kwargs(source: Source) -> Offences:
    """No ``**kwargs``: a misspelt name must be an error."""
    for function in _public_functions(source.tree):
        if function.args.kwarg is not None:
            yield function.lineno, f"{function.name} takes **{function.args.kwarg.arg}"


def _public_functions(scope: ast.Module | ast.ClassDef) -> Iterator[Function]:
    """Functions and methods that others may call, constructors and `__call__` among them."""
    for node in scope.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _public_functions(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
            node.name.startswith("__") or not node.name.startswith("_")
        ):
            yield node


def everything_annotated(source: Source) -> Offences:
    """Every argument and every result."""
    for function in source.functions():
        given = function.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        arguments += [a for a in (given.vararg, given.kwarg) if a is not None]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        if bare:
            yield function.lineno, f"{function.name}: no annotation on {', '.join(bare)}"
        if function.returns is None:
            yield function.lineno, f"{function.name}: no annotation on the result"


def nothing_dangerous(source: Source) -> Offences:
    """Nothing that runs code or trusts files: no pickle, eval, shell, remote code."""
    for line, name in source.imports():
        if name.split(".")[0] in FORBIDDEN_MODULES:
            yield line, f"imports {name}"
    for name, call in source.calls():
        if name in FORBIDDEN_CALLS:
            yield call.lineno, f"calls {name}"
        keywords = {k.arg: k.value for k in call.keywords if k.arg is not None}
        loader = dotted(keywords["Loader"]) if "Loader" in keywords else ""
        if name in ("yaml.load", "yaml.load_all") and not loader.endswith("SafeLoader"):
            yield call.lineno, f"calls {name} without a SafeLoader"
        for key, value in keywords.items():
            constant = value.value if isinstance(value, ast.Constant) else None
            if key in FORBIDDEN_KEYWORDS and constant is FORBIDDEN_KEYWORDS[key]:
                yield call.lineno, f"{key}={constant}"
            if key == "trust_remote_code" and constant is not False:
                yield call.lineno, "trust_remote_code is not the constant False"


def no_silent_except(source: Source) -> Offences:
    """No bare ``except``, none that only passes, no broad one that drops the error."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        if node.type is None:
            yield node.lineno, "bare except"
            continue
        if all(isinstance(s, ast.Pass | ast.Continue) or _is_constant(s) for s in node.body):
            yield node.lineno, "silent except"
        inside = [n for statement in node.body for n in ast.walk(statement)]
        told = any(isinstance(n, ast.Raise) for n in inside) or any(
            isinstance(n, ast.Name) and n.id == node.name for n in inside
        )
        if dotted(node.type) in ("Exception", "BaseException") and not told:
            yield node.lineno, f"except {dotted(node.type)} drops the error"
    for name, call in source.calls():
        broad = {dotted(a) for a in call.args} & {"Exception", "BaseException"}
        if name in ("suppress", "contextlib.suppress") and broad:
            yield call.lineno, "suppresses every error"


def _is_constant(statement: ast.AST) -> TypeGuard[ast.Expr]:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def nothing_unfinished(source: Source) -> Offences:
    """No notes to ourselves, no stubs."""
    pattern = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError")
    for number, line in enumerate(source.text.splitlines(), start=1):
        if found := pattern.search(line):
            yield number, found.group()


def public_things_documented(source: Source) -> Offences:
    """Public classes, functions and methods have docstrings, and so has the module."""
    if source.text.strip() and ast.get_docstring(source.tree) is None:
        yield 1, "no module docstring"
    yield from _undocumented(source.tree)


def _undocumented(scope: ast.Module | ast.ClassDef) -> Offences:
    for node in scope.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield node.lineno, f"no docstring on {node.name}"
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(node)


def code_is_ascii(source: Source) -> Offences:
    """ASCII, so that what is read is what is run."""
    for number, line in enumerate(source.text.splitlines(), start=1):
        if not line.isascii():
            yield number, "not ASCII"


def core_is_blind_to_modality(source: Source) -> Offences:
    """The loop, the objectives and the sources do not mention a modality outside comments."""
    if source.package not in MODALITY_BLIND:
        return
    for number, line in enumerate(code_of(source).splitlines(), start=1):
        if found := re.search(r"\b(text|lvlm|vision|diffusion)\b", line):
            yield number, f"mentions {found.group()!r}"


Rule = Callable[[Source], Offences]
OFFENDERS: list[tuple[Rule, str, str]] = [
    (core_imports_no_modality, "trainer.py", "from mmalign.text import TextPolicy"),
    (core_imports_no_modality, "policy.py", "def f():\n    from mmalign import vision"),
    (core_imports_no_modality, "vision/lvlm.py", "import mmalign.tinyworld.tasks"),
    (file_is_short, "a.py", "x = 1\n" * 401),
    (pipeline_is_short, f"{PIPELINES}a.py", "x = 1\n" * 81),
    (functions_are_short, "a.py", "def f():\n    '''Doc.'''\n" + "    x = 1\n" * 60),
    (few_positional_arguments, "a.py", "def f(self, a, b, c, d, e, f, g): ..."),
    (no_public_kwargs, "a.py", "class A:\n    def __init__(self, **options): ..."),
    (everything_annotated, "a.py", "def f(a: int, *, b) -> None: ..."),
    (everything_annotated, "a.py", "def f(a: int): ..."),
    (nothing_dangerous, "a.py", "import pickle"),
    (nothing_dangerous, "a.py", "from joblib import load"),
    (nothing_dangerous, "a.py", "torch.load(path)"),
    (nothing_dangerous, "a.py", "np.load(path, allow_pickle=True)"),
    (nothing_dangerous, "a.py", "yaml.load(text)"),
    (nothing_dangerous, "a.py", "subprocess.run(line, shell=True)"),
    (nothing_dangerous, "a.py", "f(path, trust_remote_code=flag)"),
    (nothing_dangerous, "a.py", "eval(line)"),
    (no_silent_except, "a.py", "try:\n    f()\nexcept:\n    g()"),
    (no_silent_except, "a.py", "try:\n    f()\nexcept KeyError:\n    pass"),
    (no_silent_except, "a.py", "try:\n    f()\nexcept Exception:\n    x = 0"),
    (no_silent_except, "a.py", "with suppress(Exception):\n    f()"),
    (nothing_unfinished, "a.py", "x = 1  # " + "TO" + "DO: later"),
    (
        public_things_documented,
        "a.py",
        "'''Doc.'''\nclass A:\n    '''Doc.'''\n    def f(self): ...",
    ),
    (code_is_ascii, "a.py", "x = '\u00e9'"),
    (core_is_blind_to_modality, "trainer.py", "if kind == 'text': ..."),
    (core_is_blind_to_modality, "objectives/dpo.py", "x = diffusion.steps"),
]
RULES = list(dict.fromkeys(rule for rule, _, _ in OFFENDERS))


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    files = sorted(PACKAGE.rglob("*.py"))
    return [Source.parse(f.relative_to(PACKAGE).as_posix(), f.read_text("utf-8")) for f in files]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps(rule: Rule, sources: list[Source]) -> None:
    found = [f"mmalign/{s.name}:{line}: {what}" for s in sources for line, what in rule(s)]
    assert not found, f"{rule.__doc__}\n" + "\n".join(found)


@pytest.mark.parametrize(("rule", "name", "text"), OFFENDERS)
def test_rules_see_offences(rule: Rule, name: str, text: str) -> None:
    assert list(rule(Source.parse(name, text)))


def test_rules_allow_what_is_right() -> None:
    """Look-alikes of the offenders above that must pass."""
    text = (
        '"""Aligns text, vision and diffusion models."""\n'
        "from mmalign.objectives import DPO\n\n"
        "def f(path: Path, *, a: int, b: int, c: int, d: int, e: int, g: int) -> str:\n"
        '    """Read. It is diffusion that is slow."""\n'
        "    try:\n"
        "        return model.eval(path.read_text(), trust_remote_code=False)  # text\n"
        "    except OSError as error:\n"
        "        raise ValueError(str(error)) from error\n"
    )
    source = Source.parse("trainer.py", text)
    assert [list(rule(source)) for rule in RULES] == [[] for _ in RULES]


# ---- importing -------------------------------------------------------------------------------

HEAVY = ("torch", "transformers", "diffusers", "open_clip", "datasets", "peft", "accelerate")


def fresh_import() -> tuple[float, set[str]]:
    """Seconds that ``import mmalign`` takes in a new interpreter, and the heavy modules loaded."""
    program = (
        "import sys, time; start = time.perf_counter(); import mmalign; "
        "print(time.perf_counter() - start, "
        f"*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    seconds, *loaded = result.stdout.split()
    return float(seconds), set(loaded)


def test_import_is_light() -> None:
    runs = [fresh_import() for _ in range(3)]
    assert runs[0][1] == set()
    assert min(seconds for seconds, _ in runs) < MAX_IMPORT_SECONDS


# ---- registry --------------------------------------------------------------------------------

NAMES = [
    (kind, name) for kind, table in registry.TABLES.items() if kind != "claims" for name in table
]


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_registered_name_is_a_documented_class(kind: str, name: str) -> None:
    found = registry.resolve(kind, name)
    assert isinstance(found, type)
    text = found.__doc__ or ""
    # A dataclass without a docstring gets its signature for one.
    assert text and not text.startswith(f"{found.__name__}("), f"{found} has no docstring"


@pytest.mark.parametrize("name", registry.TABLES["claims"])
def test_registered_claim_says_what_must_come_out(name: str) -> None:
    claim = find(name)
    assert claim.statement.endswith(".") and claim.source and claim.comparisons


@pytest.mark.parametrize("kind", registry.TABLES)
def test_tables_are_literal(kind: str) -> None:
    """Every value is a dotted path within the package, so that reading a table imports nothing."""
    for path in registry.TABLES[kind].values():
        assert re.fullmatch(r"mmalign(\.\w+)+:\w+", path), path


@pytest.mark.parametrize("kind", registry.TABLES)
def test_unknown_name_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="no_such_thing"):
        registry.resolve(kind, "no_such_thing")
