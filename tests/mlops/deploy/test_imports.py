"""What deploys to production loads neither the emulator nor the page."""

import subprocess
import sys

import pytest
from conftest import ROOT, environment

LOADED = """
import sys, warnings
warnings.simplefilter("ignore")
import mlops.deploy.rollout
wrong = ("azureml_emulator", "mlops.dashboard")
print([name for name in sys.modules if name.startswith(wrong)])
"""


@pytest.mark.slow
def test_deploy_loads_no_module_of_emulator_or_dashboard() -> None:
    found = subprocess.run(
        [sys.executable, "-c", LOADED],
        env=environment() | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"
