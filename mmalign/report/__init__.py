"""One self-contained HTML file about finished runs: scores, curves, samples, settings."""

from mmalign.report.page import write

__all__ = ["write"]
