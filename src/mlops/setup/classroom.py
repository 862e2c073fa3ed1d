"""List and delete the endpoints of a class, whose names begin alike."""

from azure.core.exceptions import AzureError

from core.errors import DigitsError
from mlops import options
from mlops.azure.errors import explain_error
from mlops.azure.workspace import connect, quiet


def main(workspace: str, prefix: str, delete: bool, yes: bool) -> None:
    """List the endpoints whose names begin with `prefix`; delete them if asked to."""
    client = connect(workspace).client
    operations = {"online": client.online_endpoints, "batch": client.batch_endpoints}
    try:
        found = [
            (kind, one.name)
            for kind, operation in operations.items()
            for one in operation.list()
            if one.name.startswith(prefix)
        ]
        for kind, name in found:
            print(f"{name:32} {kind}")
        if not found:
            print(f"No endpoint begins with {prefix}.")
        elif delete:
            if not yes:
                options.confirm("all endpoints that begin with", prefix)
            with quiet():
                for deletion in [operations[kind].begin_delete(name) for kind, name in found]:
                    deletion.result()
            print(f"Deleted {len(found)} endpoints with their deployments; collected data stays.")
    except AzureError as error:
        raise DigitsError(explain_error(error)) from error
