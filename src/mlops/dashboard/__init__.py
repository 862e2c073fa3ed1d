"""`digits local`: the emulator and a live page of production, on this machine."""
