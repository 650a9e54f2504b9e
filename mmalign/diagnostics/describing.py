"""The symbolic form of losses in words: what ``mmalign logic`` prints."""

from __future__ import annotations

from collections.abc import Sequence

from mmalign.diagnostics import formulas
from mmalign.diagnostics.comparing import Comparison, compare
from mmalign.diagnostics.logic import FORMS, SHORT, STATEMENTS, Form, Statement, Structure, written

LETTERS = (
    "pw, pl: the policy's probability of the chosen and of the rejected output; rw, rl: the "
    "reference's."
)
PLAIN = "-log sigmoid(beta log rho)"


def names() -> list[str]:
    """Every loss and statement that can be named."""
    return sorted({*FORMS, *STATEMENTS})


def statement_of(name: str) -> tuple[Statement, Form | None]:
    """The statement that ``name`` makes, and its form where it is a loss with more to it.

    Args:
        name: A loss, a statement, or a formula for P.

    Raises:
        ValueError: It is none of these.
    """
    if name in FORMS:
        return STATEMENTS[FORMS[name].statement], FORMS[name]
    if name in STATEMENTS:
        return STATEMENTS[name], None
    if not any(atom[0] in name and "(" in name for atom in formulas.ATOMS):
        raise ValueError(
            f"no loss called {name!r} has a symbolic form; there are {', '.join(names())}. A "
            'formula works too, such as "M(l) -> M(w)"'
        )
    return Statement(proposition=name), None


def shown(name: str) -> list[str]:
    """The symbolic form of a loss, line by line.

    Raises:
        ValueError: As `statement_of`.
    """
    statement, form = statement_of(name)
    return [*described(name, statement, form), "", *truth_table(statement.structure())]


def described(name: str, statement: Statement, form: Form | None) -> list[str]:
    """What the loss says and what it is as a number."""
    structure = statement.structure()
    outer = PLAIN if form is None else form.outer
    lines = [
        f"{name}",
        f"  preferred      {statement.proposition}",
        f"  condition      {statement.condition}",
        f"  counted twice  {statement.ambiguous}",
        f"  rho            {written(structure)}",
        f"  loss           {outer}",
        f"  log-probs      {'sum' if form is None else form.reduction} over steps",
    ]
    if form is None and structure.reads_complements:
        lines[-1] = "  log-probs      mean over steps, since rho has factors 1 - p"
    if twin := _without_reference(structure):
        lines.append(f"  the same as    {twin} with rho divided by the reference's")
    return [*lines, f"  {LETTERS}"]


def truth_table(structure: Structure) -> list[str]:
    """One line a row of the atoms that matter: does it count for the preference or against it."""
    atoms = structure.atoms
    heads = [formulas.ATOMS[i] for i in atoms]
    lines = ["  " + "  ".join(heads) + "   counts"]
    outside = sum(1 << i for i in range(len(formulas.ATOMS)) if i not in atoms)
    for row in reversed(range(formulas.ROWS)):
        if row & outside:
            continue
        values = [("yes" if row >> i & 1 else "no").ljust(4) for i in atoms]
        sides = (bool(structure.right >> row & 1), bool(structure.wrong >> row & 1))
        verdict = {
            (True, True): "for both",
            (True, False): "for the preference",
            (False, True): "against it",
            (False, False): "not at all",
        }[sides]
        lines.append("  " + "  ".join(values) + "   " + verdict)
    return lines


def contrasted(first: str, second: str, *, beta: float) -> list[str]:
    """How two losses relate, line by line.

    Args:
        first: A loss, a statement or a formula.
        second: Another.
        beta: Of the example losses.

    Raises:
        ValueError: One is unknown, or beta is not positive.
    """
    if beta <= 0:
        raise ValueError(f"beta={beta} must be more than 0")
    sides = [statement_of(name) for name in (first, second)]
    said: list[str] = []
    for name, (statement, form) in zip((first, second), sides, strict=True):
        said += described(name, statement, form)[:-1]
    found = compare(sides[0][0].structure(), sides[1][0].structure())
    said += [f"  {LETTERS}", "", *verdicts(first, second, found, beta=beta)]
    forms = [form for _, form in sides if form is not None]
    if any(form.outer != PLAIN for form in forms):
        said += [
            "",
            "This compares the losses -log sigmoid(beta log rho); what a loss adds or changes "
            "outside rho (see above) is not compared.",
        ]
    if len({form.reduction for form in forms}) > 1:
        said += [
            "",
            "One takes probabilities of whole outputs (sum), the other mean probabilities of a "
            "step (mean): on real outputs their letters are different numbers.",
        ]
    return said


def verdicts(first: str, second: str, found: Comparison, *, beta: float) -> list[str]:
    """The comparison in sentences."""
    names = (first, second)
    said = {
        "equal": f"Entailment: {first} and {second} make the same statement.",
        "first": f"Entailment: {first} entails {second}, so {first} asks for more.",
        "second": f"Entailment: {second} entails {first}, so {second} asks for more.",
        "neither": "Entailment: neither entails the other.",
    }
    lines = [said[found.entailment], f"Strength: {_order(names, found.order)}"]
    for example in found.examples:
        lines.append(f"  {_example(names, example.probabilities, example.losses(beta), beta)}")
    if found.flat is not None:
        lines.append(
            f"Where the reference finds both sides equally likely: {_order(names, found.flat)}"
        )
    return lines


def _order(names: Sequence[str], order: str) -> str:
    first, second = names
    if order == "equal":
        return f"the losses of {first} and {second} are equal for all probabilities."
    if order == "either":
        return "either loss can be the larger one, depending on the probabilities."
    if order == "unknown":
        return "undecided: no case was found on a grid in which the losses swap places."
    larger, smaller = (first, second) if order == "first" else (second, first)
    return f"the loss of {larger} is never below that of {smaller}."


def _example(
    names: Sequence[str], probabilities: Sequence[float], losses: Sequence[float], beta: float
) -> str:
    where = ", ".join(f"{name} {p:g}" for name, p in zip(SHORT, probabilities, strict=True))
    what = ", ".join(f"{name} {loss:.4f}" for name, loss in zip(names, losses, strict=True))
    return f"{where}: {what} (beta {beta:g})"


def _without_reference(structure: Structure) -> str | None:
    """The named statement that, held against the reference, is this one."""
    for name, statement in STATEMENTS.items():
        found = statement.structure()
        if not found.reads_reference and found.against_reference() == structure:
            return name
    return None
