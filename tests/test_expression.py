"""Expressions: allowed text has the meaning of NumPy, and anything else raises an error at once."""

import ast
import math
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

import dask_nlsq
from dask_nlsq import Model, ModelError
from dask_nlsq._model import expression
from dask_nlsq._model.expression import DEPTH, FUNCTIONS, LENGTH, SIGNS, Expression

X = np.linspace(0.1, 0.9, 7)  # inside the domain of every function
A, B = 1.7, -0.4

ALLOWED = {
    "a*exp(-b*x)+1": lambda a, b, x: a * np.exp(-b * x) + 1,
    "a - b - x": lambda a, b, x: a - b - x,
    "-x**2": lambda a, b, x: -(x**2),
    "a**x**b": lambda a, b, x: a ** (x**b),
    "x**-3 + x**17 + x**0.5": lambda a, b, x: x**-3 + x**17 + x**0.5,
    "+x/a*b": lambda a, b, x: x / a * b,
    "2*pi*x": lambda a, b, x: 2 * np.pi * x,
    "e*x*0 + a": lambda a, b, x: a + 0 * x,
    "1e-3*x + .5 + 1_000.": lambda a, b, x: 1e-3 * x + 0.5 + 1000,
    "x > 0.5": lambda a, b, x: 1.0 * (x > 0.5),
    "(x > .2)*(x <= .6) + (x >= .3) - (x < b) + (a == a) + (a != b)": lambda a, b, x: (
        1.0 * ((x > 0.2) & (x <= 0.6)) + (x >= 0.3) - 1.0 * (x < b) + 2
    ),
    "where(x > 0.5, a, b*x)": lambda a, b, x: np.where(x > 0.5, a, b * x),
    "minimum(a, maximum(x, 0.5))": lambda a, b, x: np.minimum(a, np.maximum(x, 0.5)),
    "arctan2(a, x) + arctan(b/x)/pi": lambda a, b, x: np.arctan2(a, x) + np.arctan(b / x) / np.pi,
    "erf(x) + erfc(x) + gammaln(x)": lambda a, b, x: 1 + special.gammaln(x),
    "asin(x) + acos(x) + atan(x)": lambda a, b, x: np.pi / 2 + np.arctan(x),
    " a\n + b*\tx ": lambda a, b, x: a + b * x,
    "log(b - x)": lambda a, b, x: np.full_like(x, np.nan),
    "a/(x - x)": lambda a, b, x: np.full_like(x, np.inf),
}
ALLOWED |= {
    f"{name}(x)": lambda a, b, x, full=full: getattr(np, full)(x)
    for name, (count, full) in FUNCTIONS.items()
    if count == 1 and hasattr(np, full)
}


@pytest.mark.parametrize("text", ALLOWED)
def test_means_what_it_means_in_numpy(text):
    formula = Expression(text)
    values = {"a": A, "b": B, "e": 5.0}
    expected = ALLOWED[text](A, B, X)
    np.testing.assert_allclose(formula(x=X, **values), expected, rtol=1e-15, atol=1e-15)
    with jax.enable_x64(True):
        traced = jax.jit(lambda **v: formula(**v))(x=X, **values)
        assert traced.dtype == np.float64
        np.testing.assert_allclose(traced, expected, rtol=1e-14, atol=1e-14)
    one = formula(x=float(X[2]), **values)  # plain numbers, as in a tie between parameters
    np.testing.assert_allclose(one, expected[2], rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("kind", ["int64", "uint8", "bool", "float32"])
def test_other_kinds_of_numbers_become_floats(kind):
    x = np.array([0, 1, 1], kind)
    np.testing.assert_allclose(Expression("-(x + 1)**-2 - x")(x=x), [-1, -1.25, -1.25])


def test_names_stand_in_order_of_appearance():
    assert Expression("b1+b2*exp(-x*b4)+b3*exp(-x*b2)").names == ("b1", "b2", "x", "b4", "b3")
    assert Expression("2*pi").names == ()


def test_a_pickle_holds_the_text_alone():
    formula = Expression("a*exp(-b*t)")
    again = pickle.loads(pickle.dumps(formula))
    assert again == formula and again.tree == formula.tree
    hostile = pickle.dumps(formula).replace(b"a*exp(-b*t)", b"a.__class__")
    with pytest.raises(ModelError):
        pickle.loads(hostile)


def test_a_missing_value_is_named():
    with pytest.raises(ModelError, match="'b'"):
        Expression("a + b")(a=1, c=2)


REFUSED = {
    "attribute": ["x.real", "x.__class__", "(1).real", "exp.__self__", "a.b.c"],
    "dunder": ["__import__", "__builtins__*x", "_x", "__import__(1)", "__class__"],
    "call": ["open(x)", "exp(x)(x)", "(exp)(x)(a)", "eval(x)", "a(b)", "2(x)", "print()", "max(a, b)"],
    "number of arguments": ["exp()", "exp(a, b)", "where(a, b)", "arctan2(a)"],
    "call by keyword": ["exp(x=1)", "exp(**x)", "exp(*x)", "where(a, b, c=1)"],
    "function without a call": ["exp", "a*where", "sin*x"],
    "lambda": ["lambda: x", "(lambda x: x)(a)", "lambda"],
    "comprehension": ["[x for x in y]", "exp(x for x in y)", "{x for x in y}", "(x for x in y)"],
    "f-string": ["f'{x}'", 'f"{open(x)}"', "rb'x'"],
    "text": ["'x'", '"x"', "'a' 'b'", "x*'a'", "`x`"],
    "walrus": ["(x := 1)", "x := 1"],
    "assignment": ["y = a*x", "x = 1", "x += 1", "a == b = c"],
    "subscript": ["x[0]", "x[()]", "[1][0]", "{}[x]"],
    "several": ["a, b", "(a, b)", "a; b", "(a,)", "*a", "a\nb"],
    "operator": ["a ^ b", "a // b", "a % b", "a @ b", "a << b", "a & b", "~a", "a -> b"],
    "logic": ["not a", "a and b", "a or b", "a if b else c", "a in b", "a is b", "a < b < c"],
    "glued": ["2x", "1.and x", "1if a else b", "1_x", "1e", "0b1", ".5t"],
    "statement": ["import os", "del x", "pass", "yield x", "await x", "return x", "raise x", "assert x", "@x"],
    "constant": ["True", "None*x", "...", "1j", "x*2j", "0x*x"],
    "no finite value": ["9**9**9", "9**9**9*x", "1/0", "0/0", "1e999", "10**400*x", "9" * 400, "9" * 5000, "log(-1)"],
    "comment": ["x # y", "x \\\n + y"],
    "nothing": ["", " ", "()", "\n"],
    "unclosed": ["(a", "a)", "exp(", "a)+(b", "a +", "**a", "2 x"],
    "look-alike letters": ["а*x", "ｅxp(x)", "x²", "2×x", "a−b", "λ*x", "ехр(x)", "ﬁ*x", "x\u200b", "𝑥", "１*x"],
    "control characters": ["x\0", "x\x1b", "x\x0c", "\ufeffx", "\ud800"],
    "too much": [
        "(" * 1_000_000, "(" * 500_000 + ")" * 500_000, "(" * 150 + "x" + ")" * 250, "exp(" * 400 + "x" + ")" * 400,
        "x" * 20_000, "-" * 5000 + "x", "x" + ".x" * 3000, "x" + "()" * 3000,
        "x" + "+x" * 400, "x" + "+x" * 4000, "x" + "<x" * 900, "x" + "**x" * 3000,
    ],
    "not text": [None, 5, b"x", ["x"], lambda x: x],
}  # fmt: skip
HOSTILE = [pytest.param(text, id=f"{kind} {i}") for kind, texts in REFUSED.items() for i, text in enumerate(texts)]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("text", HOSTILE)
def test_refused_in_little_memory(text):
    tracemalloc.start()
    try:
        with pytest.raises(ModelError) as seen:
            Expression(text)
        assert tracemalloc.get_traced_memory()[1] < 100e6  # the parser's own is counted too
    finally:
        tracemalloc.stop()
    assert len(str(seen.value)) < 800


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("text", [p for p in HOSTILE if isinstance(p.values[0], str) and len(p.values[0]) < 2000])
def test_the_tree_is_a_wall_of_its_own(text, monkeypatch):
    """Without the look at characters and words nothing but names that would be parameters comes through."""
    monkeypatch.setattr(expression, "_check_characters", lambda text: None)
    monkeypatch.setattr(expression, "_check_words", lambda text: None)
    try:
        formula = Expression(text)
    except (ModelError, UnicodeError):
        return
    assert not text.isascii() or set(formula.names) <= {"__import__", "__builtins__", "__class__", "_x", "x"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a^b", ["character 2", "**"]),
        ("a*exp(-b*t) + c.d", ["character 15", "Attribute", "gammaln"]),
        ("2*а", ["character 3", "CYRILLIC SMALL LETTER A"]),
        ("a*lambda", ["character 3", "'lambda'", "lambda_"]),
        ("a if b else c", ["where(condition, a, b)"]),
        ("a < b < c", ["(a < b) * (b < c)"]),
        ("y = a*x", ["right-hand side"]),
        ("  2 x", ["product needs *"]),
        ("a*log(x, 2)", ["character 3", "log takes 1 argument", "2"]),
        ("ln(x)", ["no function 'ln'", "log1p"]),
    ],
)
def test_the_error_names_the_place_and_the_remedy(text, said):
    with pytest.raises(ModelError) as seen:
        Expression(text)
    assert all(part in str(seen.value) for part in said), seen.value


def test_the_bounds_can_be_reached():
    sum_of = "+".join(["x"] * DEPTH)
    assert Expression(sum_of)(x=1.0) == DEPTH
    deep = "exp(" * 90 + "x" + ")" * 90
    assert np.isinf(Expression(deep)(x=1.0))
    assert Expression(f"x{' ' * (LENGTH - 3)}+1")(x=1.0) == 2


@pytest.mark.slow
def test_a_deep_formula_can_be_fitted():
    text = "+".join(["a*x"] * (DEPTH - 1))
    x = np.arange(5.0)
    result = dask_nlsq.fit(Model.from_expression(text), x, 3 * x)
    assert result.popt == pytest.approx([3 / (DEPTH - 1)])


@pytest.mark.parametrize("form", ["-" * SIGNS + "x", "x" + "+x" * SIGNS, "x" + "**x" * SIGNS, "x" + "()" * SIGNS])
def test_a_small_stack_is_enough(form):
    """The parser keeps within half a megabyte of stack, which threads have elsewhere."""
    program = f"""if True:
        import threading
        from dask_nlsq import ModelError
        from dask_nlsq._model.expression import Expression
        def read():
            try:
                Expression({form!r})
            except ModelError:
                print("refused")
        threading.stack_size(512 * 1024)
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    """
    seen = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (seen.returncode, seen.stdout) == (0, "refused\n"), seen.stderr


AUDIT = """
import pickle, sys, warnings
import numpy as np
import scipy.special
from dask_nlsq import ModelError
from dask_nlsq._model.expression import Expression

warnings.simplefilter("ignore")
texts = pickle.load(sys.stdin.buffer)
seen = []
sys.addaudithook(lambda event, args: seen.append((event, args)))
values = {name: np.linspace(0.1, 0.9, 3) for name in "abcetx"}
outcomes = []
for text in texts:
    try:
        Expression(text)(**values)
        outcomes.append(True)
    except ModelError:
        outcomes.append(False)
events = list(seen)
print(sum(outcomes), len(events))
for event, args in events:
    # Python's parser announces itself as a compilation; it makes a tree, and is given no other file name.
    if not (event == "compile" and args[1] == "<expression>"):
        print(event, args)
"""


def test_nothing_is_opened_imported_or_executed():
    texts = [*ALLOWED, *(text for texts in REFUSED.values() for text in texts if isinstance(text, str))]
    texts = [text for text in texts if "\ud800" not in text]
    seen = subprocess.run([sys.executable, "-c", AUDIT], input=pickle.dumps(texts), capture_output=True, timeout=60)
    assert seen.returncode == 0, seen.stderr.decode()
    counts, *events = seen.stdout.decode().splitlines()
    evaluated, announced = map(int, counts.split())
    assert evaluated == len(ALLOWED) and announced > 0
    assert not events, events


def test_the_parser_only_parses():
    """The one call into Python's compiler asks for a tree, and the module has no other way to run text."""
    tree = ast.parse(Path(expression.__file__).read_text("utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"eval", "exec", "compile", "__import__", "open", "globals", "vars"}


VALUES = {"a": 1.5, "b": -0.25, "x": 0.75}


def leaf():
    number = st.floats(0, 100).map(lambda v: (repr(v), v))
    return number | st.sampled_from(list(VALUES.items()))


def grow(children):
    pairs = st.tuples(children, children)
    return st.one_of(
        pairs.map(lambda p: (f"({p[0][0]} + {p[1][0]})", p[0][1] + p[1][1])),
        pairs.map(lambda p: (f"({p[0][0]} - {p[1][0]})", p[0][1] - p[1][1])),
        pairs.map(lambda p: (f"({p[0][0]})*({p[1][0]})", p[0][1] * p[1][1])),
        pairs.map(lambda p: (f"({p[0][0]}) / (1 + abs({p[1][0]}))", p[0][1] / (1 + abs(p[1][1])))),
        pairs.map(lambda p: (f"where({p[0][0]} < {p[1][0]}, {p[0][0]}, 2)", p[0][1] if p[0][1] < p[1][1] else 2.0)),
        pairs.map(lambda p: (f"minimum({p[0][0]}, {p[1][0]})", min(p[0][1], p[1][1]))),
        children.map(lambda c: (f"-({c[0]})", -c[1])),
        children.map(lambda c: (f"({c[0]})**2", c[1] * c[1])),
        children.map(lambda c: (f"tanh({c[0]})", math.tanh(c[1]))),
        children.map(lambda c: (f"sqrt(abs({c[0]}))", math.sqrt(abs(c[1])))),
    )


@settings(max_examples=200, deadline=None)
@given(st.recursive(leaf(), grow, max_leaves=12))
def test_any_formula_equals_pythons_arithmetic(pair):
    text, value = pair
    if len(text) > LENGTH or not math.isfinite(value):
        return
    # Only tanh may differ from Python's, by an ulp or two, which later operations pass on.
    seen = Expression(text)(**VALUES)
    assert seen == pytest.approx(value, rel=1e-12, abs=1e-12 * max(1.0, abs(value)))


FRAME = pd.DataFrame({"t": np.linspace(0, 3, 50), "u": np.cos(np.arange(50.0))})
FRAME["y"] = 2 * np.exp(-0.5 * FRAME["t"]) + 0.3 * FRAME["u"]
PLANE = "a*exp(-b*t) + c*u"
TRUTH = {"a": 2.0, "b": 0.5, "c": 0.3}


@pytest.mark.crossed
@pytest.mark.parametrize(
    ("columns", "x", "rename"),
    [
        (None, None, {}),
        (None, ["t", "u"], {}),
        (None, ["u", "t"], {}),
        (["u", "t"], None, {}),
        (["t", "u"], ["time", "u"], {"t": "time"}),
        (["t", "u"], ["time", "level"], {"t": "time", "u": "level"}),
    ],
)
def test_columns_are_found_by_name(columns, x, rename):
    result = FRAME.rename(columns=rename).nlsq.fit(Model.from_expression(PLANE, columns), x)
    assert result.params.to_dict() == pytest.approx(TRUTH)
    assert list(result.params.index) == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["a*exp(-b*t)", "a*exp(-b*x)"])
def test_a_single_column_goes_to_x_or_t(text):
    frame = pd.DataFrame({"time": np.linspace(0, 3, 30), "level": 2 * np.exp(-0.5 * np.linspace(0, 3, 30))})
    assert frame.nlsq.fit(text, x="time", y="level").popt == pytest.approx([2, 0.5])


@pytest.mark.parametrize("store", ["parquet", "zarr", "mapping"])
def test_every_source_says_which_names_are_columns(store, tmp_path):
    data = {name: FRAME[name].to_numpy() for name in FRAME}
    if store == "parquet":
        FRAME.to_parquet(tmp_path / "rows.parquet")
        data = str(tmp_path / "rows.parquet")
    elif store == "zarr":
        import zarr

        group = zarr.create_group(tmp_path / "rows.zarr")
        for name, values in data.items():
            group.create_array(name, data=values)
        data = str(tmp_path / "rows.zarr")
    assert dask_nlsq.fit(Model.from_expression(PLANE), data=data).params.to_dict() == pytest.approx(TRUTH)


def test_arrays_go_to_x_or_t_or_to_names():
    t, u, y = (FRAME[name].to_numpy() for name in ("t", "u", "y"))
    by_name = dask_nlsq.fit(Model.from_expression(PLANE), {"u": u, "t": t}, y)
    in_order = dask_nlsq.fit(Model.from_expression(PLANE, ["t", "u"]), (t, u), y)
    alone = dask_nlsq.fit(Model.from_expression("a*exp(-b*t)"), t, 2 * np.exp(-0.5 * t))
    assert by_name.popt == pytest.approx([2, 0.5, 0.3]) and in_order.popt == pytest.approx([2, 0.5, 0.3])
    assert alone.popt == pytest.approx([2, 0.5])


def test_a_column_called_y_is_not_the_fitted_one():
    x, y = np.linspace(0, 1, 20), np.cos(np.arange(20.0))
    result = dask_nlsq.fit(Model.from_expression("a*x + b*y"), {"x": x, "y": y}, 2 * x + 3 * y)
    assert result.popt == pytest.approx([2, 3])


def test_defaults_are_starts():
    model = Model.from_expression("a*exp(-b*t)", ["t"], name="decay", defaults={"b": 0.4})
    result = dask_nlsq.fit(model, FRAME["t"].to_numpy(), 2 * np.exp(-0.5 * FRAME["t"].to_numpy()))
    assert result.provenance["model"] == "decay"
    assert result.history["b"].iloc[0] == 0.4 and result.history["a"].iloc[0] == 1


@pytest.mark.slow
def test_predicts_and_travels(client):
    import dask.dataframe as dd

    rows = dd.from_pandas(FRAME, npartitions=3)
    result = rows.nlsq.fit(Model.from_expression(PLANE), client=client)
    assert result.params.to_dict() == pytest.approx(TRUTH)
    np.testing.assert_allclose(result.predict(rows).compute(), FRAME["y"], atol=1e-9)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Model.from_expression("a*t", ["s"]), ["columns=", "'s'"]),
        (lambda: Model.from_expression("a*t", defaults={"s": 1}), ["defaults=", "'s'"]),
        (lambda: FRAME.nlsq.fit(Model.from_expression("a*z + b")), ["None of the names", "'z'", "columns="]),
        (lambda: FRAME.nlsq.fit(Model.from_expression("a*t + y")), ["'y'", "y="]),
        (lambda: FRAME.nlsq.fit(Model.from_expression("t + u")), ["no parameter"]),
        (lambda: FRAME.nlsq.fit(Model.from_expression("a*s"), x="time"), ["'time'", "columns="]),
        (lambda: FRAME.nlsq.fit(Model.from_expression("a*t*x"), x="time"), ["'time'", "columns="]),
        (lambda: FRAME.nlsq.fit(Model.from_expression("a*t"), x=[]), ["x=[]"]),
        (lambda: dask_nlsq.fit(Model.from_expression("a*s"), X, X), ["1 column,", "columns="]),
        (lambda: dask_nlsq.fit(Model.from_expression("a*t*u"), (X, X), X), ["2 columns", "mapping"]),
    ],
)
def test_models_that_cannot_be_bound(make, said):
    with pytest.raises(ModelError) as seen:
        make()
    assert all(part in str(seen.value) for part in said), seen.value


@pytest.mark.slow
def test_integer_powers_are_products():
    """So that the derivative of a square is exact, and no logarithm is taken of a negative base."""
    program = str(jax.make_jaxpr(lambda x: Expression("(x - 1)**2")(x=x))(jnp.ones(3)))
    assert "integer_pow" in program or "square" in program
