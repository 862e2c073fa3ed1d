"""Print how many lines each package has, and fail when a limit of pyproject.toml is exceeded.

    python tests/budget.py [FOLDER]

Counted are the lines of the Python files below src that git knows, blank lines and comments
included, the notebooks apart. Templates, web files, notebooks and tests are shown beside them.
The limits stand in [tool.digits.budget]:

total, core_and_digits, mlops, azureml_emulator: lines; src/__main__.py belongs to core_and_digits
csv_to_package: lines that lead from a CSV file to the packaged model: what the stages mnist,
    prepare, train and package import, and the files that travel in the package; no __init__, no
    reader of another format, and no tracking, which writes no output
file: lines of one file
modules: modules of one package, without __init__
"""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path, PurePosixPath

BESIDE = (
    "digits/serving/picture.py",
    "digits/serving/request.py",
    "digits/sources/archives.py",
    "digits/sources/arrays.py",
    "digits/sources/idx.py",
    "digits/tracking/runs.py",
)
STAGES = ("mnist", "prepare", "train", "package")
WINGS = {"mlops": "mlops", "azureml_emulator": "azureml_emulator"}  # any other: core_and_digits


def tracked(root: Path) -> dict[PurePosixPath, int]:
    """Return the number of lines of each text file below src and tests that git knows."""
    listing = ["git", "ls-files", "-z", "src", "tests"]
    names = subprocess.run(listing, cwd=root, check=True, capture_output=True).stdout.decode()
    found = {}
    for name in filter(None, names.split("\0")):
        if (root / name).is_file():  # not one that was deleted and is not yet committed
            found[PurePosixPath(name)] = (root / name).read_bytes().count(b"\n")
    return found


def imported(path: Path, source: Path) -> set[Path]:
    """Return the modules below `source` that a module imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = {source / Path(*name.split(".")).with_suffix(".py") for name in names}
    return {file for file in files if file.exists()}


def csv_to_package(root: Path) -> set[PurePosixPath]:
    """Return the modules that lead from a CSV file to the packaged model."""
    source = root / "src"
    waiting = {source / "digits" / "pipeline" / f"{stage}.py" for stage in STAGES}
    waiting |= set((source / "digits" / "runtime").glob("*.py"))
    seen: set[Path] = set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        waiting |= imported(module, source) - seen
    return {
        PurePosixPath(module.relative_to(root).as_posix())
        for module in seen
        if module.name != "__init__.py" and module.relative_to(source).as_posix() not in BESIDE
    }


def check(root: Path) -> list[str]:
    """Print the table of sizes; return a sentence for each limit that is exceeded."""
    limits = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["digits"]["budget"]
    lines = tracked(root)
    python = {
        path: count
        for path, count in lines.items()
        if path.suffix == ".py" and path.parts[0] == "src" and path.parts[1] != "notebooks"
    }
    packages: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    sizes: Counter[str] = Counter(total=sum(python.values()))
    for path, count in python.items():
        packages[str(path.parent)] += count
        modules[str(path.parent)] += path.name != "__init__.py"
        sizes[WINGS.get(path.parts[1], "core_and_digits")] += count
    sizes["csv_to_package"] = sum(python.get(path, 0) for path in csv_to_package(root))

    print(f"{'package':32}{'modules':>8}{'lines':>8}")
    for package in sorted(packages):
        print(f"{package:32}{modules[package]:>8}{packages[package]:>8}")
    print(f"\n{'Python below src':32}{'limit':>8}{'lines':>8}")
    for name in ("core_and_digits", "mlops", "azureml_emulator", "total", "csv_to_package"):
        print(f"{name:32}{limits[name]:>8}{sizes[name]:>8}")
    beside = {
        "templates and web files": [p for p in lines if p.parts[0] == "src" and p.suffix != ".py"],
        "notebooks": [p for p in lines if p.parts[:2] == ("src", "notebooks")],
        "tests": [p for p in lines if p.parts[0] == "tests" and p.suffix == ".py"],
    }
    for name, paths in beside.items():
        print(f"{name + ' (no limit)':40}{sum(lines[path] for path in paths):>8}")

    findings = [
        f"{name}: {sizes[name]:,} lines, the limit is {limits[name]:,}"
        for name in ("total", "core_and_digits", "mlops", "azureml_emulator", "csv_to_package")
        if sizes[name] > limits[name]
    ]
    findings += [
        f"{path}: {count} lines, the limit of a file is {limits['file']}"
        for path, count in python.items()
        if count > limits["file"]
    ]
    findings += [
        f"{package}: {count} modules, the limit of a package is {limits['modules']}"
        for package, count in modules.items()
        if count > limits["modules"]
    ]
    return findings


def main() -> int:
    """Check the folder named on the command line, or this project; return the exit code."""
    findings = check(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).resolve().parents[1])
    for finding in findings:
        print(f"budget: {finding}. Delete code, or raise [tool.digits.budget] with the reason.")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
