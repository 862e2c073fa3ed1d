"""params.yaml's section `azure`: how the model is deployed, and where jobs run."""

from typing import Annotated, Literal

from pydantic import Field

from core import params

# Statuses that Azure returns to callers (learn.microsoft.com/azure/machine-learning/
# how-to-troubleshoot-online-endpoints): 429 above IN_FLIGHT times the concurrent requests of all
# instances; 424 when score.py does not answer 200; its status is then in a header.
BUSY_STATUS, MODEL_STATUS = 429, "ms-azureml-model-error-statuscode"
IN_FLIGHT = 2
INSTANCES = 50  # maximum of a deployment: .../how-to-manage-quotas
RECORDED = 130  # characters of instance_type and collections: a revision's record is one tag
Positive = Annotated[float, Field(gt=0)]


@params.strict
class Smoke:
    """The smoke test of the new deployment, before it gets traffic and in each step."""

    digits: Annotated[int, Field(ge=1, le=10_000)]
    accuracy: Annotated[float, Field(ge=0, le=1)]
    latency_seconds: Positive  # of the slowest answer


@params.strict
class Autoscale:
    """When instances beyond `instance_count` are added and removed."""

    most: Annotated[int, Field(ge=2, le=INSTANCES)]
    cpu_percent: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(le=99)]]
    minutes: Annotated[int, Field(ge=5, le=720)]

    def __post_init__(self) -> None:
        """Raise ValueError unless the bounds have a gap; otherwise instances would flap."""
        if self.cpu_percent[0] >= self.cpu_percent[1]:
            raise ValueError("cpu_percent must be [lower, higher]")


@params.strict
class Job:
    """Where `digits train` and `digits sweep` run the pipeline."""

    compute: str | None  # a cluster's name; None is serverless, which costs nothing when idle
    instance_type: str  # of serverless
    gpu: bool  # then TensorFlow is installed with CUDA
    nodes: Annotated[int, Field(ge=1, le=64)]
    timeout_hours: Annotated[float, Field(gt=0, le=168)]


@params.strict
class Batch:
    """Where a batch endpoint scores files."""

    compute: Annotated[str, Field(min_length=1)]
    instances: Annotated[int, Field(ge=1, le=100)]
    processes: Annotated[int, Field(ge=1, le=100)]  # of each
    retries: Annotated[int, Field(ge=0, le=10)]  # of a file
    timeout_seconds: Annotated[int, Field(ge=1, le=86_400)]  # of a file


@params.strict
class Params:
    """params.yaml's section `azure`."""

    endpoint: Annotated[str, Field(pattern=r"^[a-z]+(-?[a-z0-9])+$", max_length=23)]
    strategy: Literal["blue_green", "in_place"]
    traffic_percent: tuple[Annotated[int, Field(ge=1, le=100)], ...]
    step_seconds: Annotated[float, Field(ge=0)]
    smoke: Smoke
    auth_mode: Literal["key", "aml_token", "aad_token"]
    public_access: bool
    instance_type: str
    instance_count: Annotated[int, Field(ge=1, le=INSTANCES)]
    autoscale: Autoscale | None
    price_an_hour: Positive | None
    request_timeout_seconds: Annotated[float, Field(ge=0.5, le=180)]
    requests_at_a_time: Annotated[int, Field(ge=1, le=1000)]
    image: Annotated[str, Field(pattern=r"^[^ ]+(:|@sha256:)[^:/ ]+$")]
    verify: Literal["reproduce", "restore"]
    code: str
    identity: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w-]{2,127}$")] | None
    collections: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], ...]
    collection_days: Annotated[int, Field(ge=1, le=3650)] | None
    lease_seconds: Annotated[int, Field(ge=15, le=60)]  # the limits of a blob lease
    job: Job
    batch: Batch

    def __post_init__(self) -> None:
        """Raise ValueError unless traffic grows to 100 % and the image is pinned."""
        if self.autoscale and self.autoscale.most <= self.instance_count:
            raise ValueError("autoscale.most must be more than instance_count")
        if len(self.instance_type) + sum(len(name) + 3 for name in self.collections) > RECORDED:
            raise ValueError(
                "instance_type and collections are too long for the record of a revision: "
                f"at most {RECORDED} characters, including 3 for each collection"
            )
        if self.image.endswith(":latest"):
            raise ValueError("image must be pinned by a digest or a dated tag, not latest")
        steps = self.traffic_percent
        if not steps or steps[-1] != 100 or list(steps) != sorted(set(steps)):
            raise ValueError("traffic_percent must grow from step to step and end with 100")


def load() -> Params:
    """Return the section of params.yaml; raises DigitsError as core.params does."""
    return params.section(Params, params.load(), "azure")
