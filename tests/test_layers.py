"""Who may import whom, read off the source. A new module earns its place in LEVELS first."""

import ast
import sys
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

LEVELS = [
    "_errors _peak _typing",
    "_fork _job _reading _shell _numerics _models",
    "_sources _sweep _checkpoint _plan",
    "_fit _autotune _curve_fit _descent _facts _fingerprint _interrupt _streaming _result _outcome _problem "
    "_checks _profile _lockstep _progress _refusal _route _run _sample _search _stream "
    "_streaming_rows _streaming_saved _minimise",
    "_accessor _config _gpu _script cluster models",
    "__init__",
    # Comes in by the front door, as a user does: the package does not import it.
    "cli _cli_checkpoints _cli_jobs _terminal",
]
LEVEL = {unit: level for level, units in enumerate(LEVELS) for unit in units.split()}
JAX_FREE = {2, LEVEL["__init__"], LEVEL["cli"]}  # what a scheduler process loads, and every `dask` command
ARROWS = {("_models", "_numerics"), ("_numerics", "_fork")}  # between siblings; from level 3 up any arrow may go
NUMERIC = {"jax", "jaxlib", "numpy", "scipy"}  # third parties that level 1 may import
PURE = {"_errors": set(), "_peak": {"psutil"}, "_typing": {"numpy"}}  # and level 0
EXTRAS = {
    "IPython",
    "dask_jobqueue",
    "deltalake",
    "distributed",
    "h5py",
    "icechunk",
    "matplotlib",
    "optax",
    "pyiceberg",
}
EXTRAS |= {"s3fs", "xarray"}
LATE = {"scipy.optimize"}  # takes as long to import as pandas, and no worker that models lead to needs it
DOORS = {f"dask_nlsq._numerics.{name}" for name in ("faults", "kernel", "inspection")}
"""The task entry in _sweep opens them at its first call."""

ROOT = Path(__file__).parents[1] / "dask_nlsq"
FILES = {
    ".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted(ROOT.rglob("*.py"))
}


def unit(module):
    """The part of the package that `module` belongs to, as LEVELS names it."""
    return [*module.split("."), "__init__"][1]


@cache
def imports(module):
    """What `module` imports, as (target, "load" | "call" | "types", line)."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]

    def targets(node):
        if isinstance(node, ast.Import):
            return {alias.name for alias in node.names}
        base = resolve_name("." * node.level + (node.module or ""), package)
        names = {f"{base}.{alias.name}" for alias in node.names}
        return names & FILES.keys() | ({base} if names - FILES.keys() else set())

    def visit(node, when):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield from ((target, when, child.lineno) for target in sorted(targets(child)))
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from visit(child, "call")
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(child, "types")
            else:
                yield from visit(child, when)

    return list(visit(ast.parse(FILES[module].read_text("utf-8")), "load"))


def objection(module, target, when):
    """Why `module` must not import `target` in this way, or None."""
    here, root = unit(module), target.partition(".")[0]
    if when == "call" and root not in EXTRAS and target not in LATE and not (here == "_sweep" and target in DOORS):
        return "inside a function"
    if root != "dask_nlsq":
        free = root in sys.stdlib_module_names or when == "types" or LEVEL[here] > 1
        allowed = PURE.get(here, NUMERIC | ({"matplotlib"} if when == "call" else set()))
        return None if free or root in allowed else f"level {LEVEL[here]} is pure"
    there = unit(target)
    if LEVEL[here] == 2 and target.startswith("dask_nlsq._numerics.solver"):
        return "only the fit knows a solver"
    below = LEVEL[there] < LEVEL[here] or here == there or (here, there) in ARROWS
    if below or LEVEL[there] == LEVEL[here] > 2:
        return None
    return f"level {LEVEL[here]} sees level {LEVEL[there]}"


@pytest.mark.parametrize("module", FILES)
def test_imports_respect_levels(module):
    assert unit(module) in LEVEL, f"{module} has no level: name it in LEVELS"
    where = FILES[module].relative_to(ROOT.parent)
    objections = [
        f"{where}:{line} imports {target}: {why}"
        for target, when, line in imports(module)
        if (why := objection(module, target, when))
    ]
    assert not objections, "\n".join(objections)


@pytest.mark.parametrize("module", [m for m in FILES if LEVEL.get(unit(m)) in JAX_FREE])
def test_loads_without_jax(module):
    routes = {module: [module]}  # every module loaded on the way, and how it was reached
    for name in (queue := [module]):
        for target, when, _ in imports(name):
            parts = target.split(".") if when == "load" else []
            for step in (".".join(parts[: i + 1]) for i in range(len(parts))):
                assert step not in {"jax", "jaxlib"}, " → ".join([*routes[name], step])
                if step in FILES and step not in routes:
                    routes[step] = [*routes[name], step]
                    queue.append(step)


def test_no_cycles():
    graph = {m: {t for t, when, _ in imports(m) if when == "load" and t != m} for m in FILES}
    TopologicalSorter(graph).prepare()  # its CycleError spells the cycle out
