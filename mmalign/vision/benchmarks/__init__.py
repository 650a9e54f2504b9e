"""Published benchmarks of hallucination: their own files, scored by their own rules."""
