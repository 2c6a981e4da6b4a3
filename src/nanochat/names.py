"""Names that everything below results/ goes by. Who shows what stages left there needs no schema, whose import takes a fifth of a second."""

PHASES = ("base", "mid", "sft", "rl")
STAGE_OF_PHASE = {"base": "base_train", "mid": "mid_train", "sft": "chat_sft", "rl": "chat_rl"}
NOT_A_RUN = ("contamination", "report", "text", "tokenizers", "tokens")  # folders of results/ that hold something else
