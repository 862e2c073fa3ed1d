"""What this model declares: its sections of params.yaml."""

from core.wings import Command, Section

COMMANDS: tuple[Command, ...] = ()
SECTIONS = (
    Section("train", "digits.pipeline.train:Params"),
    Section("evaluate", "digits.pipeline.evaluate:Params"),
)
