"""From words to prompts."""
