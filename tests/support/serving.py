"""The code of a deployment, as `digits deploy` uploads it."""

import shutil
from pathlib import Path

SERVING = Path(__file__).resolve().parents[2] / "src" / "digits" / "serving"
CODE = (
    "score.py",
    "request.py",
    "picture.py",
)  # the rest travels with the model


def serving_code(target: Path) -> Path:
    """Copy the code of a deployment into a folder, which is made; return the folder."""
    target.mkdir(parents=True, exist_ok=True)
    for name in CODE:
        shutil.copyfile(SERVING / name, target / name)
    return target
