"""A repository with the real workflow files, whose programs are a script that does no work."""

from pathlib import Path

from conftest import NAME, ROOT, Project

PROGRAMS = (NAME, "dvc", "python")


def hollow(folder: Path, script: str, texts: dict[str, str]) -> tuple[Project, Path]:
    """Commit workflows, the scripts of GitHub's jobs and `texts` by path; return the repository.

    The second is the folder that a job links .venv from, where `script` is every program.
    """
    project, installed = Project(folder / "work"), folder / "installed"
    for name in PROGRAMS:
        program = installed / ".venv" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(script)
        program.chmod(0o755)
    files = [ROOT / "src/core" / name for name in ("__init__.py", "errors.py")]
    files += [*ROOT.glob(".github/**/*.yml"), *ROOT.glob("src/mlops/__init__.py")]
    files += [*ROOT.glob("src/mlops/bot/*.py"), *ROOT.glob("src/mlops/review/*.py")]
    contents = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in files}
    contents |= {"run.py": "", "params.yaml": "epochs: 1\n", "dvc.lock": "old\n"}
    for path, text in (contents | texts).items():
        (project.root / path).parent.mkdir(parents=True, exist_ok=True)
        (project.root / path).write_text(text, "utf-8", newline="\n")
    project.git("init", "--quiet", "--initial-branch", "main")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "main")
    return project, installed
