"""The learning rates that may be given to a search, and that of a method without its own."""

# The learning rate of a tuner of PEFT without an entry in RATES: what `lorada train` takes by
# default.
DEFAULT_RATE = 1e-3
RATE_RANGE = (1e-5, 1e-1)
