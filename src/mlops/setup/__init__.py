"""Connect a repository with Azure, check the connection, and remove it."""
