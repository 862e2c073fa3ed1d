"""Read TF_CONFIG, the environment variable that names the machines of a distributed training.

Azure ML sets it for jobs with `distribution: tensorflow`. TensorFlow is not imported.
"""

import json
import os

from core.errors import DigitsError


def read() -> tuple[int, int]:
    """Return the number of machines and the rank of this one; (1, 0) without TF_CONFIG.

    Raises DigitsError when TF_CONFIG cannot be parsed or does not contain this machine.
    """
    try:
        config = json.loads(os.environ.get("TF_CONFIG") or "{}")
        tasks = [
            (kind, index)
            for kind in ("chief", "worker")
            for index in range(len(config.get("cluster", {}).get(kind, [])))
        ]
        if not tasks:
            return 1, 0
        return len(tasks), tasks.index((config["task"]["type"], int(config["task"]["index"])))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DigitsError(
            f"TF_CONFIG: this machine is not among its workers ({error!r}). "
            "Azure ML sets it for `distribution: tensorflow`."
        ) from None
