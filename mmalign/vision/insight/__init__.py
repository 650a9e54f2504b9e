"""Insight-V: long chains of reasoning, written step by step, assessed, and paired by quality."""

from mmalign.vision.insight.builder import InsightV
from mmalign.vision.insight.training_sets import write_reasoning, write_summaries

__all__ = ["InsightV", "write_reasoning", "write_summaries"]
