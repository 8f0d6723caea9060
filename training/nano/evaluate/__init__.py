"""Whether the nano model makes what its prompts ask for: signal processing, and small nets taught by renderings."""
