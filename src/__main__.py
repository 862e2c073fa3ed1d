"""Run one stage of the pipeline: `python src STAGE ...`.

Started this way, a stage always runs the code of the current folder, also in the temporary folder
of a DVC experiment.
"""

import difflib
import pkgutil
import sys

import digits.pipeline
from core import console


def main(arguments: list[str]) -> int:
    """Run the stage that the first argument names; return the exit code."""
    stages = [module.name for module in pkgutil.iter_modules(digits.pipeline.__path__)]
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        print(f"usage: python src {{{','.join(stages)}}} ...")
        return 0
    if name not in stages:
        print(f"usage: python src {{{','.join(stages)}}} ...", file=sys.stderr)
        if near := difflib.get_close_matches(name, stages, 1):
            print(f"No such stage {name!r}. Did you mean {near[0]!r}?", file=sys.stderr)
        return 2
    return console.run(name, f"digits.pipeline.{name}", arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
