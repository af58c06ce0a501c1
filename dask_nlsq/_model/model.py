"""Model: a function of columns and parameters, and which of its arguments are which.

The function's first argument is a column, or several columns when the data names several. A later
argument is a column only when the data names it; every other argument is a parameter, unless its
default is not a number (a flag, a string, ``None``), which leaves it at that default, or `functools.partial`
holds it by name.

An expression has no first argument: each of its columns is taken by name, and which of its names are columns is
said by the user or by the data.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

from dask_nlsq._errors import ModelError
from dask_nlsq._model import composition, curve, ode
from dask_nlsq._model.expression import Expression
from dask_nlsq._model.guess import Guess
from dask_nlsq._model.html import fragment_of
from dask_nlsq._model.parametric_function import ParametricFunction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BY_PLACE_ONLY = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclasses.dataclass(frozen=True, init=False, repr=False, eq=False)
class Model(ParametricFunction):
    r"""A model function :math:`f(x; \theta)` with named parameters.

    Two models are equal where their functions are, their names, starts and guesses; two functions are equal where
    Python says so.

    Parameters
    ----------
    func : callable, str or Model
        ``func(column, *parameters)``, written with ``jax.numpy`` and acting on each row by itself, or a formula such as
        ``"a*exp(-b*t) + c"``. What follows is read from it where `arguments` is not given; see `from_function` and
        `from_expression`.
    arguments : tuple of str, optional
        Arguments in the order of the signature, options left out; the names of an expression.
    inputs : tuple of str
        Those of them that take columns if nobody says more; empty for an expression that leaves it to the data.
    keywords : frozenset of str
        Those of them that can only be passed by name.
    defaults : mapping of str to float
        Starting values; by default those that the signature gives.
    columns : mapping of str to tuple of int, or sequence of str
        Which columns each column argument takes, by position; filled in by `bind`. Of a formula, which of its names are
        columns.
    name : str
        What reports call it.
    guess_func : callable, optional
        ``guess_func(x, y)`` returns ``{name: start}`` from a sample of the rows; x is a sequence of columns in the
        order of `inputs`, without rows that are not finite or have no weight.
    parts : tuple of Model
        Of a sum, what was added; see `components`.

    Raises
    ------
    ModelError
        `func` cannot be read.

    Examples
    --------
    >>> from dask_nlsq import Model
    >>> def decay(t, amplitude, rate, offset=0.0):
    ...     return amplitude * 2.0 ** (-rate * t) + offset
    >>> model = Model(decay)
    >>> model
    Model(decay(t; amplitude, rate, offset=0))
    >>> "rate" in model.parameters
    True
    >>> model.eval([0.0, 1.0], amplitude=3, rate=1).tolist()
    [3.0, 1.5]
    """

    def __init__(
        self,
        func: Callable[..., Any] | str | Model,
        arguments: tuple[str, ...] | None = None,
        inputs: tuple[str, ...] = (),
        keywords: frozenset[str] = frozenset(),
        defaults: Mapping[str, float] | None = None,
        columns: Mapping[str, tuple[int, ...]] | Sequence[str] | None = None,
        name: str = "",
        guess_func: Guess | None = None,
        parts: tuple[Model, ...] = (),
    ) -> None:
        if arguments is None:
            if inputs or keywords:
                raise ModelError("inputs= and keywords= are some of arguments=, which is not given.")
            read = _read(func, columns, defaults, name or None)
            func, arguments, inputs, keywords = read.func, read.arguments, read.inputs, read.keywords
            defaults, columns, name = read.defaults, read.columns, read.name
            guess_func, parts = guess_func or read.guess_func, read.parts
        places = columns if isinstance(columns, Mapping) else {}
        arguments, inputs = tuple(arguments), tuple(inputs)
        super().__init__(func, arguments, inputs, keywords, defaults or {}, places, name, guess_func, parts)  # type: ignore[arg-type]

    @classmethod
    def from_function(cls, func: Callable[..., Any], n_parameters: int | None = None) -> Model:
        """Read names and starting values from a function's signature.

        Parameters
        ----------
        func : callable
            The model function.
        n_parameters : int, optional
            How many parameters there are, where ``*args`` stands for some; those are named ``p1``, ``p2``, …

        Raises
        ------
        ModelError
            The object has no signature, no argument for a column, or no parameter; or one that can be given by
            position only stands behind an option.
        """
        name = getattr(func, "__name__", type(func).__name__)
        try:
            signature = inspect.signature(func)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"The model {name!r} has no signature that Python can read ({error}). "
                "Wrap it: def model(x, a, b): return ..."
            ) from error
        arguments: list[str] = []
        keywords: set[str] = set()
        defaults: dict[str, float] = {}
        held = _held(func)
        option: str | None = None  # the first one; what follows is given by name, or would take its place
        for parameter in signature.parameters.values():
            if option is not None and parameter.kind in _BY_PLACE_ONLY:
                raise ModelError(
                    f"The model {name!r} takes {str(parameter)!r} behind the option {option!r}, in whose place its "
                    f"value would come. Put a star before the options: def {name}(x, a, b, *, {option}=...)."
                )
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                arguments = arguments or ["x"]
                arguments += [f"p{i + 1}" for i in range((n_parameters or 0) - len(arguments[1:]))]
            elif parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                if parameter.name in held or _is_option(parameter.default):
                    option = option or parameter.name
                else:
                    arguments.append(parameter.name)
                    if option is not None or parameter.kind not in _POSITIONAL:
                        keywords.add(parameter.name)
                    if isinstance(parameter.default, numbers.Real):
                        defaults[parameter.name] = float(parameter.default)
        if len(arguments) < 2:
            raise ModelError(
                f"The model {name!r} takes the arguments {tuple(arguments)}; a first one for the data and at "
                "least one parameter are needed: def model(x, a, b): return ..., or give p0 for *args."
            )
        defaults.pop(arguments[0], None)  # the first argument is a column, whatever its default
        return cls(func, tuple(arguments), tuple(arguments[:1]), frozenset(keywords), defaults, {}, name)

    @classmethod
    def from_expression(
        cls,
        text: str,
        columns: Sequence[str] | None = None,
        name: str | None = None,
        defaults: Mapping[str, float] | None = None,
        guess: Guess | None = None,
    ) -> Model:
        """Make a model from a formula such as ``"a*exp(-b*t) + c"``.

        The text is read, never executed. It may hold numbers, names, ``+ - * / **``, parentheses, comparisons
        (1 where true, else 0), ``pi``, and calls of abs, arccos, arcsin, arctan, arctan2 (also acos, asin, atan), cos,
        cosh, erf, erfc, exp, expm1, floor, gammaln, log, log10, log1p, maximum, minimum, sign, sin, sinh, sqrt, tan,
        tanh and ``where(condition, a, b)``. Every other name is a column or a parameter; so is ``e``.

        Parameters
        ----------
        text : str
            The formula; parameters are ordered as they appear in it.
        columns : sequence of str, optional
            Which of its names are columns; by default those that the data has, or ``x=`` names.
        name : str, optional
            What reports call the model; by default the text.
        defaults : mapping of str to float, optional
            Starting values.
        guess : callable, optional
            ``guess(x, y)`` returns starting values from a sample of the rows.

        Raises
        ------
        ModelError
            The text holds anything else, or lacks a name in `columns` or `defaults`.

        Examples
        --------
        >>> from dask_nlsq import Model
        >>> decay = Model.from_expression("a*exp(-b*t) + c", columns=["t"], defaults={"c": 0.0})
        >>> decay.parameters
        ('a', 'b', 'c')
        """
        expression = Expression(text)
        inputs = (columns,) if isinstance(columns, str) else tuple(columns or ())
        starts = {key: float(value) for key, value in (defaults or {}).items()}
        for argument, given in {"columns": inputs, "defaults": starts}.items():
            unknown = [key for key in given if key not in expression.names]
            if unknown:
                raise ModelError(f"{argument}= names {unknown}; the names in {text!r} are {list(expression.names)}.")
        return cls(expression, expression.names, inputs, frozenset(expression.names), starts, {}, name or text, guess)

    @classmethod
    def from_ode(
        cls,
        rhs: Callable[..., Any],
        y0: Any,
        *,
        t1: float,
        t0: float = 0.0,
        observe: int | Callable[[Any], Any] | None = None,
        rtol: float = 1e-8,
        atol: float = 1e-10,
        solver: Any = None,
        max_steps: int = 4096,
        name: str | None = None,
    ) -> Model:
        r"""Make a model of an initial value problem: :math:`dy/dt = f(t, y; \theta)` with :math:`y(t_0) = y_0`.

        The model's one column is the time, in any order. The rows of a tile are in one solve, and the derivatives with
        respect to parameters are those of the solve. Needs the extra ``ode``.

        Parameters
        ----------
        rhs : callable
            ``rhs(t, y, *parameters)``, written with ``jax.numpy``. With one state y is a number, with several an array
            of shape (k,), and as many slopes are returned.
        y0 : float, str, or sequence of them
            Initial state; a text names a parameter, of `rhs` or another one that is fitted.
        t0, t1 : float
            Where the solution begins, and to where it is needed: no row may lie outside. The steps do not depend on the
            rows then.
        observe : int or callable, optional
            With several states, which one is fitted: its place, or a function of the state (k,).
        rtol, atol : float
            Relative and absolute error of a step, as in `scipy.integrate.solve_ivp`.
        solver : diffrax solver, optional
            ``diffrax.Tsit5()`` by default; ``diffrax.Kvaerno5()`` for stiff equations.
        max_steps : int
            Most steps. Where they do not suffice, the model is not finite.
        name : str, optional
            What reports call the model; by default as `rhs`.

        Raises
        ------
        ModelError
            There is no parameter, `t1` is not after `t0`, a state begins at neither a number nor a name, or `observe`
            is not given though there are several.
        NlsqError
            diffrax is not installed.

        Examples
        --------
        >>> import numpy as np, dask_nlsq
        >>> def growth(t, y, rate, capacity):
        ...     return rate * y * (1 - y / capacity)
        >>> model = dask_nlsq.Model.from_ode(growth, "start", t1=10.0)
        >>> model.parameters
        ('rate', 'capacity', 'start')
        """
        function = ode.solution(rhs, y0, t0, t1, observe, rtol, atol, solver, max_steps)
        read = cls.from_function(function)
        return read if name is None else dataclasses.replace(read, name=name)

    @property
    def components(self) -> tuple[Model, ...]:
        """The models that this is the sum of, with the names that their parameters have here; itself where it is none.

        Examples
        --------
        >>> from dask_nlsq import models
        >>> [part.name for part in (models.gaussian + models.line).components]
        ['gaussian', 'line']
        """
        return composition.components(self)

    def eval(self, x: Any, /, **params: float) -> Any:
        """Return the values of the model at given parameters, in float64.

        Parameters
        ----------
        x : array, tuple of arrays, array of shape (k, rows), mapping or frame
            Columns, as for `fit`; all in memory.
        **params : float
            Parameters by name; those that the signature gives a default may be left out.

        Returns
        -------
        ndarray of the shape of a column, or float where x is a number

        Raises
        ------
        ModelError
            A parameter has no value, or there is none of that name.
        DataError
            A column holds no numbers, or is a collection of Dask.

        Examples
        --------
        >>> from dask_nlsq import models
        >>> models.line.eval([0.0, 1.0], intercept=1, slope=2).tolist()
        [1.0, 3.0]
        """
        return curve.evaluate(self, x, params)

    def guess(self, x: Any, y: Any) -> dict[str, float]:
        """Return where a fit to these rows would start without p0 and bounds.

        That is the default in the signature, else what the model's guess says of the rows that are finite, else 1. A
        fit guesses from some of the rows where there are many.

        Parameters
        ----------
        x : array, tuple of arrays, array of shape (k, rows), mapping or frame
            Columns, as for `fit`; all in memory.
        y : array
            The observations.

        Raises
        ------
        ModelError
            The model's guess failed.
        DataError
            A column holds no numbers, or is not as long as y.

        Examples
        --------
        >>> import numpy as np
        >>> from dask_nlsq import models
        >>> x = np.linspace(0, 1, 50)
        >>> {name: round(value, 6) for name, value in models.line.guess(x, 1 + 2 * x).items()}
        {'intercept': 1.0, 'slope': 2.0}
        """
        return curve.starts(self, x, y)

    def plot(self, x: Any, /, *, ax: Axes | None = None, **params: float) -> Axes:
        """Draw the model over one column at given parameters; needs the extra ``plot``.

        Parameters
        ----------
        x : array
            Where to evaluate it.
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure by default.
        **params : float
            As for `eval`.

        Returns
        -------
        matplotlib.axes.Axes

        Examples
        --------
        >>> import numpy as np
        >>> from dask_nlsq import models
        >>> ax = models.gaussian.plot(np.linspace(0, 1, 50), amplitude=2, center=0.5, sigma=0.1)
        >>> ax.get_xlabel()
        'x'
        """
        return curve.plot(self, x, params, ax)

    def __repr__(self) -> str:
        text = self.func.text if isinstance(self.func, Expression) else None
        if text == self.name:
            columns = f", columns={list(self.inputs)}" if self.inputs else ""
            defaults = f", defaults={dict(self.defaults)}" if self.defaults else ""
            return f"Model({text!r}{columns}{defaults})"
        name = self.name if self.name.isidentifier() else f"({self.name})"
        starts = [f"{n}={self.defaults[n]:g}" if n in self.defaults else n for n in self.parameters]
        return f"Model({name}({', '.join(self.columns or self.inputs)}; {', '.join(starts)}))"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Model):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))

    def __hash__(self) -> int:
        return hash((self.arguments, self.inputs, self.name))

    def __add__(self, other: Model) -> Model:
        """Add two models of the same columns; the right one's column takes the name of the left one's.

        The start of a sum is guessed from the guesses of its parts, each on what others leave.

        Raises
        ------
        ModelError
            They have a parameter's name in common, which `prefix` mends, or take other columns.

        Examples
        --------
        >>> from dask_nlsq import models
        >>> (models.gaussian + models.line).parameters
        ('amplitude', 'center', 'sigma', 'intercept', 'slope')
        """
        # With NotImplemented, Python asks the other operand, and then raises its own TypeError.
        return composition.add(self, other) if isinstance(other, Model) else NotImplemented

    def prefix(self, text: str) -> Model:
        """Put a prefix before the name of every parameter.

        Examples
        --------
        >>> from dask_nlsq import models
        >>> models.gaussian.prefix("p1_").parameters
        ('p1_amplitude', 'p1_center', 'p1_sigma')
        """
        return composition.prefix(self, text)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the formula, the columns, and the parameters with their starts."""
        return fragment_of(self).html()

    def inputs_among(self, present: Sequence[str], taken: Sequence[str]) -> tuple[str, ...]:
        """Return the arguments that are columns of the data, by their names.

        Parameters
        ----------
        present : sequence of str
            Columns of the data.
        taken : sequence of str
            Those that play another part, as y or sigma.
        """
        inputs = tuple(name for name in self.arguments if name in present)
        clash = [name for name in inputs if name in taken]
        if clash:
            raise ModelError(
                f"{clash[0]!r} stands in {self.name!r} and is also the column given as y or sigma. Say which names are "
                "columns with columns=, or name the fitted column with y=."
            )
        if not inputs:
            raise ModelError(
                f"None of the names in {self.name!r}, which are {list(self.arguments)}, is a column of the data, which "
                f"has {list(present)}. Say which are columns with columns= and x=."
            )
        return inputs

    def array_names(self, count: int, p0: object = None) -> tuple[str, ...]:
        """Name so many columns that are given as arrays, without names.

        The first argument of a function takes them all, as in SciPy; or each of the first arguments takes one, where p0
        has as many numbers as there are others.
        """
        if not isinstance(self.func, Expression):
            if count > 1 and self._leaves(count, p0):
                return self.arguments[:count]
            (first,) = self.inputs
            return (first,) if count == 1 else tuple(f"{first}[{i}]" for i in range(count))
        names = self.inputs or self._usual
        if len(names) != count:
            raise ModelError(
                f"x holds {count} column{'s' * (count > 1)}, and which names in {self.name!r} they are is not known. "
                "Say it with columns= in Model.from_expression, or give x as a mapping from names to arrays."
            )
        return names

    @property
    def _usual(self) -> tuple[str, ...]:
        """The name that stands for a single column in an expression where nobody says which does: the first of x, t."""
        return tuple(name for name in self.arguments if name in ("x", "t"))[:1]

    def _leaves(self, count: int, p0: object) -> bool:
        """Whether p0 has a number for each parameter behind the first `count` arguments, and no other."""
        numbered = isinstance(p0, Sequence) or getattr(p0, "ndim", 0) == 1
        # A scalar array has no length, and a mapping names its parameters itself.
        return numbered and isinstance(p0, Sized) and 0 < len(p0) == len(self.arguments) - count

    def bind(self, names: Sequence[str]) -> Model:
        """Say which argument takes which of the columns called `names`.

        Of a function, a later argument takes the column that bears its name; the first argument takes the rest, as
        one array of shape (rows,), or of shape (k, rows) when k columns are left. Of an expression, every name takes
        the column of that name; columns of other names go to the names in ``inputs`` that are left, in order; a single
        one goes to x or t, where nothing is said.
        """
        columns = self._by_name(names) if isinstance(self.func, Expression) else self._by_position(names)
        bound = dataclasses.replace(self, columns=columns)
        if not bound.parameters:
            raise ModelError(f"x={list(names)} leaves no parameter to fit in {self.name!r}.")
        return bound

    def _by_position(self, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        first, *others = self.arguments
        later = {name: (i,) for i, name in enumerate(names) if name in others}
        taken = {i for (i,) in later.values()}
        rest = tuple(i for i in range(len(names)) if i not in taken)
        if not rest:
            raise ModelError(
                f"Every column in x={list(names)} is a later argument of {self.name!r}, and none is left for "
                f"its first argument {first!r}."
            )
        return {first: rest} | later

    def _by_name(self, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        same: dict[str, tuple[int, ...]] = {n: (i,) for i, n in enumerate(names) if n in self.arguments}
        strangers = [i for i, name in enumerate(names) if name not in self.arguments]
        usual = self._usual if len(names) == 1 and not {"x", "t"} <= set(self.arguments) else ()
        inputs = self.inputs or usual
        open_inputs = [name for name in inputs if name not in same]
        if not names or len(strangers) != len(open_inputs):
            raise ModelError(
                f"x={list(names)} does not fit {self.name!r}, whose names are {list(self.arguments)}"
                f"{f' with the columns {list(self.inputs)}' if self.inputs else ''}. Use those names, or say "
                "columns= in Model.from_expression, for which x= then names the data in the same order."
            )
        return same | {name: (i,) for name, i in zip(open_inputs, strangers, strict=True)}


def _read(func: object, columns: object, defaults: Mapping[str, float] | None, name: str | None) -> Model:
    """Return the model that a function, a formula or a model is, with what is said of it besides."""
    if isinstance(func, str):
        if func.strip().isidentifier():
            raise ModelError(
                f"{func!r} is no formula, such as 'a*exp(-b*t) + c'. A model of the library is an attribute of "
                "dask_nlsq.models, and fit takes its name."
            )
        return Model.from_expression(func, columns, name, defaults)  # type: ignore[arg-type]
    if columns:
        raise ModelError("columns= names those of a formula; of a function, x= names them in the call of fit.")
    if not isinstance(func, Model) and not callable(func):
        raise ModelError(f"func is a {type(func).__name__}; a function, a formula or a Model is needed.")
    read = func if isinstance(func, Model) else Model.from_function(func)
    unknown = [key for key in defaults or {} if key not in read.parameters]
    if unknown:
        raise ModelError(f"defaults= names {unknown}; the parameters of {read.name!r} are {list(read.parameters)}.")
    starts = {**read.defaults, **{key: float(value) for key, value in (defaults or {}).items()}}
    return dataclasses.replace(read, defaults=starts, name=name or read.name)


def _same(one: object, other: object) -> bool:
    """Whether two objects are equal; not where they do not say so, as those that hold arrays."""
    if type(one) is not type(other):
        return False
    # Partials compare by identity, and so does what holds them.
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        return _same((one.func, one.args, one.keywords), (other.func, other.args, other.keywords))
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if dataclasses.is_dataclass(one) and not isinstance(one, (Model, type)):
        return all(_same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    try:
        return one is other or bool(one == other)
    except Exception:  # whatever the objects of users raise
        return False


def _is_option(default: object) -> bool:
    """Whether a default marks an argument as an option rather than a parameter."""
    if default is inspect.Parameter.empty:
        return False
    # True is a number to Python, and a flag to whoever wrote the model.
    return isinstance(default, bool) or not isinstance(default, numbers.Real)


def _held(func: Callable[..., Any]) -> set[str]:
    """Return the arguments that `functools.partial` holds by name, also beneath what wraps it, such as `jax.jit`."""
    held: set[str] = set()
    while isinstance(func := inspect.unwrap(func), functools.partial):
        held |= func.keywords.keys()
        func = func.func
    return held
