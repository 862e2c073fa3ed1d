"""Options of `digits deploy COMMAND`."""

from typing import Any

import click

from mlops import options

WAIT = click.option("--wait", is_flag=True, help="Wait while another deployment is running.")


def call(command: str, **given: Any) -> None:
    """Run a command in mlops.deploy.rollout."""
    from mlops.deploy.rollout import main

    main(command, **given)


@click.group(epilog=options.example("digits deploy plan", "digits deploy apply"))
def deploy() -> None:
    """Deploy the model of this commit, roll it back, pause it or delete it."""


@deploy.command(epilog=options.example("digits deploy plan --workspace local"))
@options.workspace("azure")
def plan(**given: Any) -> None:
    """Show what apply would change, need and cost. Nothing is changed."""
    call("plan", **given)


@deploy.command(epilog=options.example("digits deploy apply --workspace local"))
@options.workspace("azure")
@WAIT
def apply(**given: Any) -> None:
    """Deploy the model and the code of this commit.

    Traffic moves step by step. On any failure, traffic returns to the revision that was live.
    """
    call("apply", **given)


@deploy.command(epilog=options.example("digits deploy status --json"))
@options.workspace("azure")
@options.as_json
def status(**given: Any) -> None:
    """Show the endpoint, its revisions and their shares of the traffic."""
    call("status", **given)


@deploy.command(epilog=options.example("digits deploy logs"))
@click.argument("revision", required=False)
@options.workspace("azure")
def logs(**given: Any) -> None:
    """Print the latest log of REVISION (see `status`), by default the live one."""
    call("logs", **given)


@deploy.command(epilog=options.example("digits deploy rollback"))
@click.argument("revision", required=False)
@options.workspace("azure")
@WAIT
def rollback(**given: Any) -> None:
    """Return the traffic to REVISION (see `status`), by default the previous one."""
    call("rollback", **given)


@deploy.command(epilog=options.example("digits deploy pause"))
@options.workspace("azure")
@WAIT
def pause(**given: Any) -> None:
    """Delete the deployments, which cost money; keep the endpoint and its records."""
    call("pause", **given)


@deploy.command(epilog=options.example("digits deploy resume"))
@options.workspace("azure")
@WAIT
def resume(**given: Any) -> None:
    """Deploy again the revision that was live before the pause."""
    call("resume", **given)


@deploy.command(epilog=options.example("digits deploy destroy --workspace local"))
@options.workspace("azure")
@WAIT
@options.yes
def destroy(**given: Any) -> None:
    """Delete the endpoint, its deployments and all that it collected.

    What Azure does not delete is archived and listed. After an interruption, run this again.
    """
    call("destroy", **given)
