"""From texts to tokens: prompts, the tokenised data set, global batches."""
