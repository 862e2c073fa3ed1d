"""The privileged jobs of the workflows: standard library only, since they install nothing."""
