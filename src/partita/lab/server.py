"""What `partita serve` starts in a process of its own: `transformers`' server, cut down to one model.

Run as `python -P server.py MODEL HOST PORT`, with the folder MODEL in the current one; ends when its standard input
does, and so with whoever started it. Imports nothing of ours.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

TEXT = ("/v1/models", "/v1/completions", "/health")
CHAT = ("/v1/chat/completions", "/v1/responses")


def main(model: str, host: str, port: int) -> None:
    """Serve the model until told to stop; in chat only if it has a chat template.

    `transformers` lets requests to other routes load any model that it finds, and lists what lies in the cache of this
    machine; neither is left here.
    """
    from transformers.cli import serve
    from transformers.cli.serving import model_manager, server

    whole: Any = server.build_server

    def pinned(manager: Any, *handlers: Any, **settings: Any) -> Any:
        app = whole(manager, *handlers, **settings)
        (loaded,) = manager.loaded_models.values()
        open_ = TEXT + CHAT if getattr(loaded.processor, "chat_template", None) else TEXT
        app.router.routes[:] = [route for route in app.router.routes if route.path in open_]
        return app

    listed = [{"id": model, "object": "model", "owned_by": "partita", "created": 0}]
    setattr(server, "build_server", pinned)  # noqa: B010
    setattr(model_manager.ModelManager, "get_gen_models", staticmethod(lambda: listed))  # noqa: B010
    threading.Thread(target=_follow, daemon=True).start()
    serve.Serve(force_model=model, host=host, port=port, trust_remote_code=False, log_level="error")


def _follow() -> None:
    """Stop this process, in good order, once its standard input is closed."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
