"""A server on this machine that speaks the OpenAI protocol, for tests: what it answers is a function of theirs."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Heard:
    """One request: path, body as a dictionary, headers, and its number from 0."""

    def __init__(self, number, method, path, headers, body):
        self.number, self.method, self.path, self.headers, self.body = number, method, path, headers, body


def said(text, finish="stop", usage=(7, 2)):
    """A completion in both forms of the protocol."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": finish}
    counts = {} if usage is None else {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}}
    return 200, {"id": "x", "choices": [choice], **counts}


def error(status, message="no", headers=None, **more):
    """A reply that turns a request down."""
    return status, {"error": {"message": message, **more}}, headers or {}


@contextmanager
def speaking(reply, models=("tiny",)):
    """An address and the list of POST requests heard so far; `reply(heard)` gives (status, body[, headers])."""
    heard, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_):
            pass

        def do_GET(self):
            if models is None:
                return self.send(404, {"error": "not found"}, {})
            self.send(200, {"object": "list", "data": [{"id": name} for name in models]}, {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                one = Heard(len(heard), "POST", self.path, dict(self.headers), body)
                heard.append(one)
            status, content, *headers = reply(one)
            self.send(status, content, headers[0] if headers else {})

        def send(self, status, content, headers):
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except ConnectionError:
                pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", heard
    finally:
        server.shutdown()
        server.server_close()
