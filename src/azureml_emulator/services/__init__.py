"""The services of Azure's management API, one module each; `urls` has the table of routes."""
