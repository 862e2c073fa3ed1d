"""Which machines train together: TF_CONFIG names them, as Azure ML sets it. Without TensorFlow."""

import json
import os

from core.errors import DigitsError


def find() -> tuple[int, int]:
    """Return how many machines train, and which of them this is; (1, 0) without TF_CONFIG.

    Raises DigitsError when TF_CONFIG is damaged.
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
            f"TF_CONFIG: does not name this machine among its workers ({error!r}); "
            "Azure ML sets it for `distribution: tensorflow`"
        ) from None
