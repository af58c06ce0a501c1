"""Allowed imports, checked on the source: one level per folder, and imports only through public interfaces."""

import ast
import functools
import sys
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

LEVELS = [
    "_errors _typing",
    "_system _display",
    "_model",
    "_kernel",
    "_solver",
    "_sources _plan _checkpoint",  # none of them sees another
    "_sweep",
    "_result",
    "_fit",
    "_streaming _many _study _curve_fit",
    "_accessors cluster models sklearn",
    "__init__",
    "cli",  # comes in by the front door, as a user does: the package does not import it
]
LEVEL = {unit: level for level, units in enumerate(LEVELS) for unit in units.split()}
JAX_FREE = {"_system", "_display", "_sources", "_plan", "_checkpoint", "_sweep", "_accessors"}
JAX_FREE |= {"cluster", "__init__", "cli"}
"""What a scheduler process loads, and every `dask` command."""
NUMERIC = {"jax", "jaxlib", "numpy", "scipy"}
THIRD_PARTIES = {  # what a folder may import of others, where that is limited
    "_errors": set(),
    "_typing": {"numpy"},
    "_system": {"psutil"},
    "_display": {"jinja2", "matplotlib"},
    "_model": NUMERIC | {"matplotlib"},  # which `Model.plot` imports when it draws
    "_kernel": NUMERIC,
    "_solver": NUMERIC,
}
EXTRAS = {
    "IPython",
    "dask_jobqueue",
    "deltalake",
    "diffrax",
    "distributed",
    "h5py",
    "icechunk",
    "matplotlib",
    "mpl_toolkits",
    "optax",
    "pyiceberg",
    "s3fs",
    "uncertainties",
    "xarray",
}
LATE = {"scipy.optimize", "jinja2"}  # take as long to import as pandas, and no worker that models lead to needs them
DOORS = {f"dask_nlsq._kernel.{name}" for name in ("cells", "faults", "kernel", "rows", "scores", "validate")}
"""The task entry in _sweep opens them at its first call."""

ROOT = Path(__file__).parents[1] / "dask_nlsq"
FILES = {
    ".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted(ROOT.rglob("*.py"))
}
FOLDERS = sorted(f"dask_nlsq.{p.name}" for p in ROOT.iterdir() if (p / "__init__.py").exists())
LAZY = [folder for folder in FOLDERS if FILES[folder].with_suffix(".pyi").exists()]


def unit(module):
    """The part of the package that `module` belongs to, as LEVELS names it."""
    return [*module.split("."), "__init__"][1]


@cache
def face(folder):
    """The names that a folder hands out, and the module that each is from."""
    tree = ast.parse(FILES[folder].with_suffix(".pyi").read_text("utf-8"))
    lines = [(node, alias.name) for node in tree.body for alias in node.names]
    return {name: f"{folder}.{node.module or name}" for node, name in lines}


@cache
def imports(module):
    """What `module` imports, as (door, module behind it, "load" | "call" | "types", line)."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]

    def targets(node):
        if isinstance(node, ast.Import):
            return {(alias.name, alias.name) for alias in node.names}
        base = resolve_name("." * node.level + (node.module or ""), package)
        names = [alias.name for alias in node.names]
        if base in LAZY:
            return {(base, face(base)[name]) if name in face(base) else (f"{base}.{name}",) * 2 for name in names}
        return {(f"{base}.{name}" if f"{base}.{name}" in FILES else base,) * 2 for name in names}

    def visit(node, when):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield from ((*target, when, child.lineno) for target in sorted(targets(child)))
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from visit(child, "call")
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(child, "types")
            else:
                yield from visit(child, when)

    return list(visit(tree(module), "load"))


@functools.cache
def tree(module):
    return ast.parse(FILES[module].read_text("utf-8"))


def objection(module, door, target, when):
    """Why `module` must not import `target` through `door` in this way, or None."""
    here, root = unit(module), target.partition(".")[0]
    if when == "call" and root not in EXTRAS and target not in LATE and not (here == "_sweep" and target in DOORS):
        return "inside a function"
    if root != "dask_nlsq":
        allowed = THIRD_PARTIES.get(here)
        if allowed is None or root in sys.stdlib_module_names | allowed or root == "lazy_loader":
            return None
        return f"{here} does without"
    there = unit(target)
    if here == there:
        return None
    if there == "_solver" and LEVEL["_solver"] < LEVEL[here] < LEVEL["_result"]:
        return "only the fit knows a solver"
    if LEVEL[there] >= LEVEL[here]:
        return f"level {LEVEL[here]} sees level {LEVEL[there]}"
    return None if door.count(".") <= 1 else f"from behind the face of {there}"


@pytest.mark.parametrize("module", FILES)
def test_imports_respect_levels(module):
    assert unit(module) in LEVEL, f"{module} has no level: name it in LEVELS"
    where = FILES[module].relative_to(ROOT.parent)
    objections = [
        f"{where}:{line} imports {target}: {why}"
        for door, target, when, line in imports(module)
        if (why := objection(module, door, target, when))
    ]
    assert not objections, "\n".join(objections)


@cache
def taken():
    """What is imported anywhere, as (part that imports, module, name)."""
    nodes = [(unit(module), node) for module in FILES for node in ast.walk(tree(module))]
    froms = [(part, node) for part, node in nodes if isinstance(node, ast.ImportFrom)]
    return {(part, node.module, alias.name) for part, node in froms for alias in node.names}


@pytest.mark.parametrize("folder", LAZY)
def test_a_face_shows_what_others_use(folder):
    public = ast.parse(FILES["dask_nlsq"].with_suffix(".pyi").read_text("utf-8"))
    used = {alias.name for node in public.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    used |= {name for part, module, name in taken() if module == folder and part != unit(folder)}
    assert set(face(folder)) <= used


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_shadows_a_module(folder):
    modules = {p.stem for p in FILES[folder].parent.iterdir()}
    names = face(folder) if folder in LAZY else {}
    assert not [name for name, module in names.items() if name in modules and module != f"{folder}.{name}"]
    if folder in LAZY:  # a submodule that is imported takes the place of a name that was not asked for before
        lines = ast.parse(FILES[folder].with_suffix(".pyi").read_text("utf-8")).body
        assert not [alias.name for line in lines if line.module for alias in line.names if alias.name == line.module]


def test_few_rooms():
    """What a stranger meets first fits on a screen."""
    assert len([p for p in ROOT.iterdir() if p.name != "__pycache__"]) <= 25


@pytest.mark.parametrize("module", [m for m in FILES if unit(m) in JAX_FREE])
def test_loads_without_jax(module):
    routes = {module: [module]}  # every module loaded on the way, and how it was reached
    for name in (queue := [module]):
        for door, target, when, _ in imports(name):
            steps = {parts for found in (door, target) for parts in prefixes(found)} if when == "load" else ()
            for step in sorted(steps):
                assert step not in {"jax", "jaxlib"}, " → ".join([*routes[name], step])
                if step in FILES and step not in routes:
                    routes[step] = [*routes[name], step]
                    queue.append(step)


def prefixes(module):
    """The packages that a module is in, and itself."""
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def test_no_cycles():
    graph = {m: {t for _, t, when, _ in imports(m) if when == "load" and t != m} for m in FILES}
    TopologicalSorter(graph).prepare()  # its CycleError spells the cycle out
