"""Raw images -> a Dataset: planned, written shard by shard in any order, and committed with its census."""
