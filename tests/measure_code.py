"""Structural counts of a code base: `python tests/measure_code.py [PATH_OF_A_CHECKOUT]`.

Entries at the top of the package; imports between its folders; cycles of imports, those of types included; the share of
annotated arguments that are `Any`; the largest number of modules that one module imports; the most arguments of a
function that is not public; asserts that something is not None; comments in 100 lines of code.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path


def modules(root):
    """The files of the package by the names of their modules."""
    found = sorted(root.rglob("*.py"))
    return {".".join(p.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in found}


def faces(files):
    """The names that lazily loaded folders hand out, and the modules behind them."""
    found = {}
    for name, path in files.items():
        if (stub := path.with_suffix(".pyi")).exists():
            for node in ast.parse(stub.read_text("utf-8")).body:
                if isinstance(node, ast.ImportFrom):
                    behind = f"{name}.{node.module}" if node.module else name
                    found |= {(name, a.name): behind if node.module else f"{name}.{a.name}" for a in node.names}
    return found


def arrows(files):
    """For each module the modules of the package that it imports, types included."""
    behind = faces(files)
    found = {}
    for name, path in files.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dask_nlsq") and not node.level:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    found[name].add(behind.get((node.module, alias.name), full if full in files else node.module))
        found[name] = {target for target in found[name] if target in files and target != name}
    return found


def cycles(graph):
    """How many groups of modules import each other."""
    order, low, stack, count = {}, {}, [], 0

    def visit(node):
        nonlocal count
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in graph[node]:
            if target not in order:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            count += len(group) > 1

    for node in graph:
        if node not in order:
            visit(node)
    return count


def arguments(tree):
    """The arguments of every function, with its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def comments(text):
    """Comments, and lines that hold code."""
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code = {line for t in tokens if t.type not in skipped for line in range(t.start[0], t.end[0] + 1)}
    docstrings = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    return sum(t.type == tokenize.COMMENT and "noqa" not in t.string for t in tokens), len(code - docstrings)


def main(path):
    root = Path(path).resolve() / "dask_nlsq"
    files = modules(root)
    graph = arrows(files)
    trees = {name: ast.parse(path.read_text("utf-8")) for name, path in files.items()}
    unit = {name: [*name.split("."), "__init__"][1] for name in files}
    folders = {unit[name] for name, path in files.items() if path.parent != root}
    between = {(unit[a], unit[b]) for a, targets in graph.items() for b in targets if unit[a] != unit[b]}
    given = [a for tree in trees.values() for _, args in arguments(tree) for a in args if a.annotation is not None]
    named = [ast.unparse(a.annotation) for a in given]
    public = {"fit", "__init__"}  # whose signatures are the documentation
    most = max((len(args), name) for tree in trees.values() for name, args in arguments(tree) if name not in public)
    nones = [
        node
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert) and "is not None" in ast.unparse(node.test)
    ]
    said, lines = map(sum, zip(*(comments(path.read_text("utf-8")) for path in files.values()), strict=True))
    fan, widest = max((len(targets), name) for name, targets in graph.items())
    rows = {
        "entries at the top": len([p for p in root.iterdir() if p.name != "__pycache__"]),
        "folders": len(folders),
        "files": len(files),
        "arrows between units": len(between),
        "cycles, types included": cycles(graph),
        "annotated arguments that are Any, %": round(100 * named.count("Any") / len(named), 1),
        "largest fan-out": f"{fan} ({widest})",
        "most arguments, but of `fit`": f"{most[0]} ({most[1]})",
        "asserts that something is not None": len(nones),
        "comments in 100 lines of code": round(100 * said / lines, 1),
    }
    for name, value in rows.items():
        print(f"{name:36} {value}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1])
