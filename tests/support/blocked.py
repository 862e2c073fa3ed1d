"""Packages that are not installed, for what a test starts."""

from pathlib import Path


def blocking(folder: Path, *names: str) -> str:
    """Return a PYTHONPATH with which these packages cannot be found, nor imported."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name in {names}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    return str(folder)
