"""What happened in production, as one page of HTML."""

from digits.monitoring import Analysis, Params


def page(analysis: Analysis, own: Params) -> str:
    """Return the page."""
    return "<!doctype html>\n"
