"""The paper's tables as experiments under DVC."""
