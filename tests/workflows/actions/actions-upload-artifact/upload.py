"""Put a file or a folder into $ARTIFACTS/RUN/NAME.zip."""

import os
import sys
import zipfile
from pathlib import Path

source = Path(os.environ["SOURCE"])
target = Path(os.environ["ARTIFACTS"], os.environ["GITHUB_RUN_ID"], os.environ["NAME"] + ".zip")
if not source.exists():
    print(f"No files were found with the provided path: {source}")
    sys.exit(0)
if target.exists() and os.environ["OVERWRITE"] != "true":  # actions/upload-artifact README, v4
    sys.exit("Conflict: an artifact with this name already exists on the workflow run")
target.parent.mkdir(parents=True, exist_ok=True)
root = source if source.is_dir() else source.parent
with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        name = path.relative_to(root)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and (os.environ["HIDDEN"] == "true" or not hidden):
            archive.write(path, name.as_posix())
