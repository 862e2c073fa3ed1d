"""Run one stage of the code beside this file: `python src STAGE ...`.

Started this way a stage always runs the src of the directory it stands in, also in an
experiment's temporary folder.
"""

import pkgutil
import sys

import digits.pipeline
from core import console


def main(arguments: list[str]) -> int:
    """Run the stage named first with the other arguments; return the exit code."""
    stages = [module.name for module in pkgutil.iter_modules(digits.pipeline.__path__)]
    name = arguments[0] if arguments else ""
    if name not in stages:
        print(f"usage: python src {{{','.join(stages)}}} ...", file=sys.stderr)
        return 1
    return console.run(name, f"digits.pipeline.{name}", arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
