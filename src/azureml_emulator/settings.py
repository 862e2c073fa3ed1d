"""The settings of an emulator: settings.json in its folder, read when it starts.

{"quota": {"standardDSv2Family": 4}, "image_build_seconds": 30}
"""

from pathlib import Path

from pydantic import Field, NonNegativeFloat
from pydantic.dataclasses import dataclass

from azureml_emulator.web import read_file


@dataclass(frozen=True, config={"extra": "forbid"})
class Settings:
    """The settings; every one has a default."""

    sizes: dict[str, tuple[int, str]] = Field(  # cores, and the family that has their quota
        default={
            "Standard_DS2_v2": (2, "standardDSv2Family"),
            "Standard_DS3_v2": (4, "standardDSv2Family"),
            "Standard_F4s_v2": (4, "standardFSv2Family"),
        }
    )
    quota: dict[str, int] = Field(default={"standardDSv2Family": 24, "standardFSv2Family": 24})
    identity_datastores: bool = False  # blobs need tokens, over TLS; the account's key stays secret
    image_build_seconds: NonNegativeFloat = 0  # delay of an environment's first deployment


def read_settings(folder: Path) -> Settings:
    """Return the settings in a folder. Raises EmulatorError, with the place, if they are wrong."""
    return read_file(folder / "settings.json", Settings, "Correct or delete it.") or Settings()
