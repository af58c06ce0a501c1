"""Time our side of comparisons with two checkouts of the package, in turns.

Each checkout has a process of its own, which takes the comparisons from this folder and the package from its checkout;
for each line on its standard input it makes one call and prints the figure.
"""

import os
import statistics
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve()


@contextmanager
def served(checkout, name, small, folder):
    """Open the process of a checkout, and yield a function that returns one figure."""
    command = [sys.executable, str(HERE), name, str(int(small)), str(folder)]
    environ = os.environ | {"PYTHONPATH": str(Path(checkout).resolve())}
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask():
            process.stdin.write("again\n")
            process.stdin.flush()
            if not (line := process.stdout.readline()):
                raise RuntimeError(f"{name} has failed with {checkout}; its traceback is above.")
            return float(line)

        try:
            yield ask
        finally:
            process.stdin.close()


def alternate(name, checkouts, small, folder, repeat):
    """Return the figures of each checkout, taken in turns after one call each."""
    with served(checkouts[0], name, small, folder) as one:
        one()  # by now it has written the rows, which both read
        with served(checkouts[1], name, small, folder) as two:
            two()
            pairs = [(one(), two()) for _ in range(repeat)]
    return list(zip(*pairs, strict=True))


def row(name, what, figures, unit):
    """Return one line: the medians of this checkout and of the other, and their ratio."""
    ours, theirs = map(statistics.median, figures)
    scale, label = (1e-6, "MB") if unit == "B" else (1e3, "ms")
    return f"{name:18} {scale * ours:10.4g} {label} {scale * theirs:10.4g} {label}  {theirs / ours:6.3g}  {what}"


def serve(name, small, folder):
    """Answer every line with the figure of one call."""
    from comparisons import COMPARISONS, Size
    from measure import clock

    chosen = COMPARISONS[name]
    with chosen.prepare(Size(small, folder)) as (ours, _):
        for _ in sys.stdin:
            print(clock(ours), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], bool(int(sys.argv[2])), Path(sys.argv[3]))
