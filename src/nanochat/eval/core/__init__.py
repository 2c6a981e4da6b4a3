"""CORE: 22 tasks in context, after DCLM. bundle (rows) -> prompts (tokens) -> scoring (losses) -> score (one number)."""
