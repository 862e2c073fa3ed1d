"""The live page of production, and the command that runs all of it on this machine."""
