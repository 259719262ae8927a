"""The program behind ``lorada serve``: ``python -m … MAX_TOKENS NAME [options]``.

It is transformers' own ``transformers serve NAME`` with the ``Guard`` in front of it. NAME is a
folder in the working folder; the base is served beside it if the folder ``NAME-base`` is there.
"""

import sys
from pathlib import Path

import transformers
import typer
from starlette.middleware import Middleware
from transformers.cli.serve import Serve

from lorada.inference.serving.guard import Guard
from lorada.inference.serving.names import base_name
from lorada.inference.serving.served_models import ServedModels

BATCHING = "--continuous-batching"


def main(words: list[str]) -> None:
    """Serve a run, and its base, by transformers' server behind our guard, until it is ended.

    ``words`` are the most tokens of an answer, the run's folder and the server's options. A server
    of another version of transformers is refused.
    """
    max_tokens, run, *options = words
    base = None
    # Under continuous batching a request to another model ends all that are being answered.
    if BATCHING not in options and Path(base_name(run)).is_dir():
        base = base_name(run)

    class GuardedServe(Serve):  # type: ignore[misc]
        def start_server(self) -> None:
            """Put our guard before the server of transformers, which calls this, and start it."""
            models = ServedModels(
                manager=self._model_manager,
                run=run,
                base=base,
                most=int(max_tokens),
                template_settings=self._chat_handler.chat_template_kwargs,
            )
            # Behind the middleware for other origins, so that refusals have its headers too.
            self.server.config.app.user_middleware.append(Middleware(Guard, models=models))
            self.server.run()

    if not hasattr(Serve, "start_server"):
        raise ImportError(
            f"lorada serve does not know the server of transformers {transformers.__version__}: "
            "it was written for 5.24"
        )
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(GuardedServe)
    # transformers would start the server itself if it were not told that somebody else does.
    app([run, *options, "--non-blocking"], prog_name="lorada serve RUN")


if __name__ == "__main__":
    main(sys.argv[1:])
