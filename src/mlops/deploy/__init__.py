"""Deploy the model of a commit to an online endpoint, step by step, and roll it back."""
