"""GLoSS, step by step: the helper package behind the notebooks."""
