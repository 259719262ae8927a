"""The compared methods by name: their settings, and what a Trainer needs to train one."""
