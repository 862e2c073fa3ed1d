"""Options of `digits check`, `digits lab`, `digits verify` and `digits azure COMMAND`."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from core import console
from mlops import options

GROUP = click.option("--resource-group", metavar="NAME", required=True)


@click.command(epilog=options.example("digits check"))
@options.as_json
def check(as_json: bool) -> None:
    """Check params.yaml and what this machine and clone need. Nothing is changed."""
    from mlops.setup.local import main

    main(as_json)


@click.command(epilog=options.example("digits lab 1 --check"))
@click.argument("number", type=int)
@click.option("--check", is_flag=True, required=True, expose_value=False, help="Check the lab.")
def lab(number: int) -> None:
    """Check that lab NUMBER of .github/COURSE.md has been done. Nothing is changed."""
    from mlops.setup.local import check_lab

    check_lab(number)


@click.command(epilog=options.example("digits verify azure digits-verify"))
@click.argument("service", type=click.Choice(["azure", "github"]))
@click.argument("name")
@options.yes
def verify(service: str, name: str, yes: bool) -> None:
    """Test deployments on the real Azure, or reviews on the real GitHub, for at most two hours.

    NAME is that of a new resource group or a new private repository, which is deleted in the end.
    What it will do and what that costs is shown first. It writes verified.json.
    """
    console.interrupt_on_signals()
    sys.argv[1:] = [f"verify_{service}", name, *(["--yes"] if yes else [])]
    runpy.run_path(str(Path("tests", "benchmarks")), run_name="__main__")


@click.group(epilog=options.example("digits azure connect --resource-group digits"))
def azure() -> None:
    """Connect this repository with an Azure subscription, check that, or disconnect it."""


@azure.command("check", epilog=options.example("digits azure check"))
@options.repository
@options.as_json
def check_azure(**given: Any) -> None:
    """Show what is missing for reviews and deployments, each with its fix. Nothing is changed.

    GitHub and Azure are queried by `gh` and `az`; without an answer, a finding is unknown.
    """
    from mlops.setup.check import main

    main(**given)


@azure.command(epilog=options.example("digits azure connect --resource-group digits"))
@GROUP
@click.option("--location", help="Location of a new resource group, such as westeurope.")
@options.repository
@click.option("--without-cluster", is_flag=True, help="Create no cluster: the quota is too small.")
@click.option("--image-build-compute", metavar="NAME", default="", help="Cluster for image builds.")
def connect(**given: Any) -> None:
    """Create the Azure resources for reviews and deployments. It can be repeated at any time.

    It deploys .github/azure.json as a deployment stack, and writes its outputs into GitHub's
    variables, .dvc/config and .azureml/config.json. Each command is printed before it runs.
    """
    from mlops.setup.connect import main

    main(SimpleNamespace(**given))


@azure.command(epilog=options.example("digits azure disconnect --resource-group digits"))
@GROUP
@options.repository
@options.yes
def disconnect(**given: Any) -> None:
    """List what `digits azure connect` made, ask, and remove it with all data in it."""
    from mlops.setup.disconnect import main

    main(SimpleNamespace(**given))


@azure.command(epilog=options.example("digits azure endpoints --prefix ml101 --delete"))
@click.option("--prefix", required=True, help="Prefix of the endpoint names of a class.")
@click.option("--delete", is_flag=True, help="Delete the endpoints.")
@options.yes
def endpoints(**given: Any) -> None:
    """List or delete the endpoints of a class: those whose names begin with a prefix."""
    from mlops.setup.disconnect import of_class

    of_class(**given)
