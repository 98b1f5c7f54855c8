"""The shard format, read and checked: any sample of a data set by its number."""
