"""Parts that answer prompts with masks."""
