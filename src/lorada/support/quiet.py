"""Silences what other libraries say and users of the command line do not need.

This file imports only the standard library: `lorada run` loads it by its path into processes of
other programs, before anything else.
"""

import logging
import os

# Set in the environment of a command, so that its child processes are silent too.
VARIABLE = "LORADA_COMMAND"
BAR_DELAY = "1"  # seconds after which a bar of transformers, datasets or the hub appears
# Logger → parts of its messages: about missing kernels of torchao and bitsandbytes, torchao's types
# in torch, each retry of a download, and transformers' table of a checkpoint's weights, of which
# ``load_model`` says what matters. Filters are on loggers, as some have their own handlers.
SILENCED = {
    "torchao": ("Failed to load ",),
    "bitsandbytes.backends.cpu.ops": ("Failed to load ",),
    "torch.utils._pytree": ("is an Enum subclass and is now natively supported",),
    "transformers.modeling_utils": ("LOAD REPORT",),
    "huggingface_hub.utils._http": ("thrown while requesting", "Retrying in"),
}


def concerns_user(record: logging.LogRecord) -> bool:
    """Whether a log record is one that users need."""
    return not any(words in record.getMessage() for words in SILENCED.get(record.name, ()))


def silence() -> None:
    """Silence those messages, and short progress bars, in this process and its children."""
    os.environ[VARIABLE] = "1"
    os.environ.setdefault("TQDM_DELAY", BAR_DELAY)  # tqdm reads it when it is imported
    for name in SILENCED:
        logging.getLogger(name).addFilter(concerns_user)
