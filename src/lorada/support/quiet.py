"""What other libraries say for themselves, kept from who runs a command and its children.

It needs nothing but Python, as it is there before anything else is: `lorada run` loads this file by
its path into processes of other programs.
"""

import logging
import os

# The variable that tells the children of a command whose they are.
VARIABLE = "LORADA_COMMAND"
# By logger, for some have handlers of their own: kernels for other machines that torchao and
# bitsandbytes have not found, how torchao registers its types with torch, and each of the hub's
# attempts before it is given up.
UNHEARD = {
    "torchao": ("Failed to load ",),
    "bitsandbytes.backends.cpu.ops": ("Failed to load ",),
    "torch.utils._pytree": ("is an Enum subclass and is now natively supported",),
    "huggingface_hub.utils._http": ("thrown while requesting", "Retrying in"),
}


def heard(record: logging.LogRecord) -> bool:
    """Whether a message is of concern to who runs a command."""
    return not any(words in record.getMessage() for words in UNHEARD.get(record.name, ()))


def hush() -> None:
    """Keep those messages back from now on, in this process and in its children."""
    os.environ[VARIABLE] = "1"
    for name in UNHEARD:
        logging.getLogger(name).addFilter(heard)
