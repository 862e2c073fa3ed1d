"""Retired words of this project: none may appear in a file that git tracks.

RETIRED is the only list: a word or an identifier without another use, and what to write instead.
Words with ordinary meanings are not in it.
"""

import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
RETIRED = {
    "sureness": "mean confidence",
    "strangeness": "anomaly weight",
    "foreignness": "out-of-distribution score",
    "rarity": "tail probability",
    "Episode": "Alarm",
    "why_not": "unavailable_reason",
    "MENDS": "FIXES",
    "ROWS_A_BATCH": "ROWS_PER_BATCH",
    "STEPS_A_CALL": "STEPS_PER_CALL",
    "AT_A_TIME": "MAX_CONCURRENT_TRIALS",
    "nothing_share": "outlier_exposure_share",
    "distance_auroc": "ood_score_auroc",
    "accuracy_told": "accuracy_given_script",
    "labels_doubled": "labels_duplicate",
    "read_pool": "read_split",
    "write_pool": "write_split",
    "tf_config.find": "tf_config.read",
    "find_foreign": "build_ood_score",
    "steps_of": "step_signature",
    "make_exact": "make_deterministic",
    "FEWEST": "MIN_DIGITS",
    "RAREST": "MIN_TAIL",
    "STEEP": "CALIBRATOR_EXPONENT",
    "SPOILT": "INPUT_QUALITY_SIGNALS",
    "DROWNED": "DOMINANCE_RATIO",
    "DOUBT_EDGES": "UNCERTAINTY_EDGES",
    "passed_over": "unexpected_models",
    "standin": "emulator",
    "StandIn": "Emulator",
    "stand-in": "emulator",
    "whole or absent": "complete or absent",
    "still_alone": "require_lease",
    "instead_of": "fall_back",
    "tell_of_gaps": "report_outages",
    "Recipe": "DeploymentSpec",
    "MEND": "FIX",
}
# This list, and files that programs write: they follow the code.
IGNORED = re.compile(r"tests/test_words\.py|package-lock\.json|dvc\.lock|data/.+\.(json|csv)")


def either(words: Iterable[str], flags: re.RegexFlag) -> re.Pattern[str]:
    """Return an expression that finds any of several words."""
    return re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", flags)


WORDS = {word for word in RETIRED if word.islower() and "_" not in word}  # in any case
EXPRESSIONS = either(WORDS, re.IGNORECASE), either(set(RETIRED) - WORDS, re.NOFLAG)


def find(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and retired word for each one in a text; case matters for identifiers only."""
    for expression in EXPRESSIONS:
        for match in expression.finditer(text):
            word = match[0] if match[0] in RETIRED else match[0].lower()
            yield text.count("\n", 0, match.start()) + 1, word


def test_no_retired_word_is_used() -> None:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    found = []
    for name in filter(None, listing.stdout.decode().split("\0")):
        if not IGNORED.fullmatch(name) and (ROOT / name).is_file():
            text = (ROOT / name).read_text("utf-8", errors="replace")
            found += [f"{name}:{line}: write {RETIRED[word]}" for line, word in find(text)]
    assert found == [], "\n".join(found)


def test_a_retired_word_is_found_with_its_line() -> None:
    assert list(find("One line.\nIts Sureness is 1.")) == [(2, "sureness")]
    assert list(find("the fewest, make_exactly, FEWEST")) == [(1, "FEWEST")]
