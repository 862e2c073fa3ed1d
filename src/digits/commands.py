"""The sections of params.yaml and the commands that the model declares."""

from core.wings import Command, Section

COMMANDS = (
    Command("data", "Work", "digits.sources.command", "Inspect or fetch digits", ("click",)),
)
SECTIONS = (
    Section("mnist", "digits.pipeline.mnist:Params"),
    Section("foreign", "digits.pipeline.foreign:Params", each=True),
    Section("prepare", "digits.pipeline.prepare:Params"),
    Section("train", "digits.pipeline.train:Params"),
    Section("evaluate", "digits.pipeline.evaluate:Params"),
    Section("package", "digits.pipeline.package:Params"),
    Section("simulate", "digits.pipeline.simulate:Params"),
    Section("monitor", "digits.pipeline.monitor:Params"),
)
