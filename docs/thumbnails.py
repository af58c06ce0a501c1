"""Write the pictures of gallery.md: the first figure of each notebook, as ``python docs/thumbnails.py [NAME...]``."""

import base64
import io
import sys
import tempfile
from pathlib import Path

import jupytext
import nbclient
from PIL import Image

DOCS = Path(__file__).parent
SIZE = 480, 270


def first_figure(path: Path) -> Image.Image | None:
    """Execute a notebook, and return its first figure."""
    notebook = jupytext.read(path, fmt="py:percent")
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                return Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    return None


def main(names: list[str]) -> None:
    """Draw those that gallery.md shows, or those that are named."""
    for name in names or [p.stem for p in sorted((DOCS / "_static/gallery").glob("*.png"))]:
        figure = first_figure(DOCS.parent / "examples" / f"{name}.py")
        if figure is not None:
            figure.thumbnail(SIZE)
            canvas = Image.new("RGB", SIZE, "white")
            canvas.paste(figure, ((SIZE[0] - figure.width) // 2, (SIZE[1] - figure.height) // 2))
            canvas.quantize(64).save(DOCS / f"_static/gallery/{name}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
