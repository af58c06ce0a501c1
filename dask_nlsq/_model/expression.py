"""Expression: a formula as text, read through an allow-list and evaluated by walking its tree.

Nothing is ever executed. The text passes two walls, each of which would be enough: its characters and words are
looked at first (ASCII, no quotes, brackets or colons, no word of Python, no leading underscore, bounded length and
number of signs), then Python's own parser gives a tree, of which only the nodes listed here are taken over. What
is left is numbers, names, operators and calls of a fixed table of functions; every number is a float64, so
that no power of integers can grow without end.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import keyword
import operator
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn, Protocol

import numpy as np

from dask_nlsq._errors import ModelError

LENGTH = 10_000
"""Most characters."""

SIGNS = 1_000
"""Most operators, points and opening parentheses: Python's parser needs stack for each, and crashes at some
3000 on a thread whose stack has half a megabyte (CPython 3.13)."""

DEPTH = 200
"""Most levels of the tree, which are walked by recursion."""

_UNARY = ("exp", "expm1", "log", "log10", "log1p", "sqrt", "sin", "cos", "tan", "sinh", "cosh", "tanh")

FUNCTIONS: Mapping[str, tuple[int, str]] = {
    **{name: (1, name) for name in (*_UNARY, "abs", "sign", "floor")},
    **{f"{arc}{name}": (1, f"arc{name}") for arc in ("arc", "a") for name in ("sin", "cos", "tan")},
    **{name: (1, f"special.{name}") for name in ("erf", "erfc", "gammaln")},
    **{name: (2, name) for name in ("arctan2", "minimum", "maximum")},
    "where": (3, "where"),
}
"""Number of arguments, and the function's name in the array module or in SciPy's special functions."""

CONSTANTS: Mapping[str, float] = {"pi": np.pi}
"""Names that are numbers. Not ``e``, which is as likely the fifth parameter: write ``exp(1)``."""

_OPERATORS: Mapping[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.USub: "negative",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip

_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "negative": operator.neg,
}  # fmt: skip

_COMPARISONS: Mapping[str, Callable[..., Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip

_MULTIPLIED = 16
"""Up to here an integer power is a product: faster than the power function, and as exact to a few ulp."""

_ALLOWED = (
    "Allowed are numbers, names, + - * / **, parentheses, comparisons, pi, and the functions "
    f"{', '.join(sorted(FUNCTIONS))}."
)

_STRANGE = re.compile(r"[^A-Za-z0-9_ .+\-*/(),<>=!]")
_SIGN = re.compile(r"\*\*|[-+*/<>=.(]")
_WORD = re.compile(r"(?<!\w)[A-Za-z_]\w*", re.ASCII)
_NUMBER = r"(?>(?>\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d[\d_]*)?)"  # atomic: no second thoughts, linear time
_GLUED = re.compile(rf"(?<![\w.]){_NUMBER}(?=[A-Za-z])", re.ASCII)
_ASSIGNMENT = re.compile(r"(?<![<>=!])=(?!=)")

_REMEDIES = {
    "^": "a power is written **",
    "[": "subscripts and lists are not allowed; name each column",
    "'": "text is not allowed",
    '"': "text is not allowed",
    "&": "conditions are multiplied, (a < b) * (b < c)",
    "|": "conditions are combined with maximum(a < b, b < c)",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """An operator or function and its arguments."""

    function: str
    arguments: tuple[Node, ...]


Node = float | str | Call
"""A number, a name, or a call."""


@dataclasses.dataclass(frozen=True)
class Expression:
    """A formula of named values, such as ``a*exp(-b*t) + c``.

    Parameters
    ----------
    text : str
        Numbers, names, ``+ - * / **``, parentheses, comparisons (1 where true, else 0), the constant ``pi``, and
        calls of the functions in `FUNCTIONS`.

    Raises
    ------
    ModelError
        The text holds anything else; the message names the place.

    Examples
    --------
    >>> from dask_nlsq._model.expression import Expression
    >>> line = Expression("a + b*x")
    >>> line.names
    ('a', 'b', 'x')
    >>> float(line(a=1, b=2, x=3))
    7.0
    """

    text: str
    tree: Node = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tree", parse(self.text))

    def __reduce__(self) -> tuple[type[Expression], tuple[str]]:
        return Expression, (self.text,)  # read anew, so that a pickle's text is checked as well

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values, in the order in which they appear."""
        return tuple(dict.fromkeys(_names(self.tree)))

    def __call__(self, /, **values: Any) -> Any:
        """Evaluate with numbers, NumPy or JAX arrays; values that the text does not name are left alone.

        The rules are those of floating point whatever the values are: 1/0 is ``inf``, and log(-1) is NaN.
        """
        missing = [name for name in self.names if name not in values]
        if missing:
            raise ModelError(f"The expression {self.text!r} needs a value for {', '.join(map(repr, missing))}.")
        used = [values[name] for name in self.names]
        xp = _array_module(used)
        real = {name: _real(value, xp) for name, value in zip(self.names, used, strict=True)}
        with np.errstate(all="ignore"):
            return _value(self.tree, real, xp)


def parse(text: str) -> Node:
    """Read an expression into its tree.

    Raises
    ------
    ModelError
        The text holds something that is not allowed; the message names the place.
    """
    if not isinstance(text, str):
        raise ModelError(f"The expression is a {type(text).__name__}; text is needed, such as 'a*exp(-b*t)'.")
    if len(text) > LENGTH:
        raise ModelError(f"The expression has {len(text)} characters; at most {LENGTH} are allowed. Write a function.")
    # A blank for each character, so that positions in messages are those of the text.
    flat = re.sub(r"[\t\r\n]", " ", text)
    _check_characters(flat)
    _check_words(flat)
    return _Reader(flat).node(_python_tree(flat), 0)


def _refuse(text: str, position: int, why: str) -> NoReturn:
    near = text[max(0, position - 12) : position + 12]
    raise ModelError(f"At character {position + 1} of the expression, near {near!r}: {why}. {_ALLOWED}")


def _check_characters(text: str) -> None:
    """Refuse characters that no expression needs, and more signs than the parser can take."""
    strange = _STRANGE.search(text)
    if strange is not None:
        character = strange[0]
        kind = "" if character.isascii() else f" ({unicodedata.name(character, 'unnamed')}, not ASCII)"
        why = _REMEDIES.get(character, f"the character {character!r}{kind} is not allowed")
        _refuse(text, strange.start(), why)
    assignment = _ASSIGNMENT.search(text)
    if assignment is not None:
        _refuse(text, assignment.start(), "= is not allowed; give the right-hand side alone, and arguments by position")
    signs = len(_SIGN.findall(text))
    if signs > SIGNS:
        raise ModelError(f"The expression has {signs} operators and calls; at most {SIGNS} are allowed.")


def _check_words(text: str) -> None:
    """Refuse names that are not names, and numbers that run into them."""
    glued = _GLUED.search(text)
    if glued is not None:
        _refuse(text, glued.start(), f"the number {glued[0][:12]} runs into a name; a product needs *")
    for word in _WORD.finditer(text):
        if word[0].startswith("_"):
            _refuse(text, word.start(), f"the name {word[0]!r} begins with an underscore")
        if keyword.iskeyword(word[0]):
            remedy = "where(condition, a, b) chooses" if word[0] in ("if", "else") else f"as a name, use {word[0]}_"
            _refuse(text, word.start(), f"{word[0]!r} is a word of Python; {remedy}")


def _python_tree(text: str) -> ast.expr:
    """Let Python parse; only a tree is made, nothing is compiled to code."""
    body = text.lstrip()
    if not body:
        raise ModelError("The expression is empty; a formula is needed, such as 'a*exp(-b*t)'.")
    try:
        return ast.parse(body, "<expression>", mode="eval").body
    except SyntaxError as error:
        position = len(text) - len(body) + max((error.offset or 1) - 1, 0)
        _refuse(text, position, f"this is not understood ({error.msg}); a product needs *")
    except (ValueError, RecursionError, MemoryError) as error:  # integers of thousands of digits; nesting
        raise ModelError(f"The expression is too long or too deep for Python's parser: {error}") from error


class _Reader:
    """Takes the allowed nodes of Python's tree over, and refuses all others."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.shift = len(text) - len(text.lstrip())

    def node(self, tree: ast.AST, depth: int) -> Node:
        """Return one node with what is below it."""
        if depth > DEPTH:
            self.refuse(tree, f"this is nested more than {DEPTH} deep (every term of a sum counts)")
        match tree:
            # True is an int to Python.
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return self.number(tree, value)
            case ast.Name(id=name):
                return self.name(tree, name)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.node(operand, depth + 1)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                return self.call(tree, _OPERATORS[type(op)], [operand], depth)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return self.call(tree, _OPERATORS[type(op)], [left, right], depth)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
                return self.call(tree, _OPERATORS[type(op)], [left, right], depth)
            case ast.Compare(ops=[_, _, *_]):
                self.refuse(tree, "a chain of comparisons is written (a < b) * (b < c)")
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                self.check_function(tree, name, args)
                return self.call(tree, name, args, depth)
        self.refuse(tree, f"this is not allowed ({type(getattr(tree, 'op', tree)).__name__})")

    def number(self, tree: ast.AST, value: float) -> float:
        """Return a finite float64."""
        try:
            number = float(value)
        except OverflowError:
            number = np.inf
        if not np.isfinite(number):
            self.refuse(tree, "the number is beyond float64")
        return number

    def name(self, tree: ast.AST, name: str) -> Node:
        """Return a constant's value, or the name."""
        if name in FUNCTIONS:
            self.refuse(tree, f"{name} is a function and needs its arguments, {name}(…)")
        return CONSTANTS.get(name, name)

    def check_function(self, tree: ast.AST, name: str, arguments: Sequence[ast.AST]) -> None:
        """Refuse functions that are not in the table, and the wrong number of arguments."""
        if name not in FUNCTIONS:
            self.refuse(tree, f"there is no function {name!r}; a product needs *")
        count, _ = FUNCTIONS[name]
        if len(arguments) != count:
            self.refuse(tree, f"{name} takes {count} argument{'s' * (count > 1)}, and {len(arguments)} are given")

    def call(self, tree: ast.AST, function: str, arguments: Sequence[ast.AST], depth: int) -> Node:
        """Return a call, or its value where every argument is a number."""
        nodes = tuple([self.node(argument, depth + 1) for argument in arguments])
        numbers = [np.float64(node) for node in nodes if isinstance(node, float)]
        if len(numbers) < len(nodes):
            return Call(function, nodes)
        with np.errstate(all="ignore"):
            # What holds numbers alone is the same for all rows, and a mistake where it is not finite.
            value = float(_apply(function, numbers, np))
        if not np.isfinite(value):
            self.refuse(tree, f"this part is {value}, whatever the data")
        return value

    def refuse(self, tree: ast.AST, why: str) -> NoReturn:
        """Raise an error that names the place of a node."""
        _refuse(self.text, self.shift + getattr(tree, "col_offset", 0), why)


def _names(node: Node) -> Iterable[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, Call):
        for argument in node.arguments:
            yield from _names(argument)


def _value(node: Node, values: Mapping[str, Any], xp: ModuleType) -> Any:
    if isinstance(node, Call):
        return _apply(node.function, [_value(argument, values, xp) for argument in node.arguments], xp)
    return values[node] if isinstance(node, str) else node


def _apply(function: str, arguments: Sequence[Any], xp: ModuleType) -> Any:
    """Evaluate one operator or function of the array module `xp`."""
    if function in _ARITHMETIC:
        return _ARITHMETIC[function](*arguments)
    if function == "**":
        return _power(*arguments)
    if function in _COMPARISONS:
        return xp.where(_COMPARISONS[function](*arguments), 1.0, 0.0)
    if function == "where":
        condition, *branches = arguments
        return xp.where(condition != 0, *branches)
    _, name = FUNCTIONS[function]
    if name.startswith("special."):
        # `scipy.special` for NumPy, and `jax.scipy.special` for jax.numpy.
        module = importlib.import_module(xp.__name__.replace("numpy", "scipy.special"))
        return getattr(module, name.removeprefix("special."))(*arguments)
    return getattr(xp, name)(*arguments)


class _Power(Protocol):
    """What can be raised to a power."""

    def __pow__(self, exponent: object, /) -> Any: ...


def _power(base: _Power, exponent: object) -> Any:
    if isinstance(exponent, float) and exponent.is_integer() and abs(exponent) <= _MULTIPLIED:
        return base ** int(exponent)
    return base**exponent


def _array_module(values: Iterable[Any]) -> ModuleType:
    """Return jax.numpy where a value is a JAX array, which knows its own module; else NumPy."""
    for value in values:
        # Other arrays than JAX's, such as those of NumPy 2, say here that they are NumPy's.
        module = value.__array_namespace__() if hasattr(value, "__array_namespace__") else np
        if module is not np:
            return module
    return np


def _real(value: object, xp: ModuleType) -> Any:
    """Return a value as a floating-point array or scalar."""
    if getattr(getattr(value, "dtype", None), "kind", "") == "f":
        return value
    # Indexed by (), an array of no dimensions becomes a scalar, as it does in NumPy's own functions.
    return xp.asarray(value, float)[()]
