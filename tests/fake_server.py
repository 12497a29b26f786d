"""Stands in for llama-server: answers as it does, or as `mode` in the file `notes/mode` beside it says does
not. It notes there its process id, the requests and its environment.
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NOTES = Path(__file__).with_name("notes")
MODE = (NOTES / "mode").read_text("utf-8")
DRAFT = int(sys.argv[sys.argv.index("--spec-draft-n-max") + 1]) if "--spec-type" in sys.argv else 0
"""How many tokens it drafts at a time; it accepts one of each draft."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(503 if MODE == "loading" else 200)
        self.end_headers()

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with (NOTES / "requests").open("a", encoding="utf-8") as file:
            file.write(json.dumps(request) + "\n")
        self.send_response(200)
        self.end_headers()
        time.sleep(0.05)
        tokens = request["max_tokens"] - (MODE == "early")
        for number in range(tokens):
            last = number == tokens - 1
            reason = ("stop" if MODE == "early" else "length") if last else None
            if MODE != "withheld" or last:
                counts = {"draft_n": DRAFT * tokens, "draft_n_accepted": tokens} if DRAFT else {}
                timings = {"timings": counts} if last and MODE != "uncounted" else {}
                self.send({"choices": [{"text": "x", "finish_reason": reason}], **timings})
            if MODE == "dying" and number == 2:
                print("out of memory", file=sys.stderr, flush=True)
                os._exit(9)
            if MODE == "killed" and number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            while MODE == "silent" and number == 2:
                time.sleep(1)
            time.sleep(0.005)
        self.wfile.write(b"data: [DONE]\n\n")

    def send(self, chunk: object) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


if "--version" in sys.argv:
    print("version: 7 (abc)")
    sys.exit()
if MODE == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if MODE == "broken":
    sys.exit("no such model")
if MODE == "old" and DRAFT:
    sys.exit("error: invalid argument: --spec-type")
(NOTES / "pid").write_text(str(os.getpid()), encoding="utf-8")
(NOTES / "environment").write_text(json.dumps(dict(os.environ)), encoding="utf-8")
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
