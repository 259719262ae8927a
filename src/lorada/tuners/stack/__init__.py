"""A stack: any PEFT parts in one adapter, placed, saved, loaded and merged together."""
