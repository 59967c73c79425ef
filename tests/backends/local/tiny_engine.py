"""The smallest engine that the cloud can run, for `--engine-cmd`: streams words at a set pace, dies on order.

python tiny_engine.py --port P [--rate TOKENS_PER_S] [--die-at-start] [--never-ready] [--child] [--ignore-sigterm]
The prompt orders the rest: "die" kills it before the first byte, "drop" only breaks the connection off.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--rate", type=float, default=50)
parser.add_argument("--die-at-start", action="store_true")
parser.add_argument("--never-ready", action="store_true")
parser.add_argument("--child", action="store_true")
parser.add_argument("--ignore-sigterm", action="store_true")
parser.add_argument("--die-once", metavar="FILE", help="a request 'die' kills only while FILE is not there")
args = parser.parse_args()

if args.die_at_start:
    print("CUDA out of memory (not really)", file=sys.stderr)
    sys.exit(7)
if args.ignore_sigterm:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if args.child:
    # A worker that outlives its server unless the whole group ends, and one that has left the group.
    stay = [sys.executable, "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
    subprocess.Popen(stay)
    subprocess.Popen(stay, start_new_session=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _json(self, shown, status=200):
        body = json.dumps(shown).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self._json(
            {"path": self.path, "pid": os.getpid(), "headers": {k.lower(): v for k, v in self.headers.items()}}
        )

    def do_POST(self):
        ask = json.loads(self.rfile.read(int(self.headers["content-length"])) or "{}")
        prompt = ask.get("prompt", "")
        if args.never_ready:
            self._json({"error": {"message": "loading"}}, 503)
            return
        if prompt == "die" and not (args.die_once and os.path.exists(args.die_once)):
            if args.die_once:
                open(args.die_once, "w").close()
            os._exit(1)
        if prompt == "drop":
            self.close_connection = True
            return
        if not ask.get("stream"):
            time.sleep(float(ask.get("sleep", 0)))
            self._json({"choices": [{"text": " word", "finish_reason": "length"}], "pid": os.getpid()})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for number in range(ask["max_tokens"]):
                self._chunk(f"data: {json.dumps({'choices': [{'text': f' w{number}'}]})}\n\n".encode())
                time.sleep(1 / args.rate)
            self._chunk(b"data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")
        except BrokenPipeError:
            print("client gone", flush=True)
            self.close_connection = True

    def _chunk(self, piece):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.flush()


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


print("tiny engine listens", flush=True)
Server((args.host, args.port), Handler).serve_forever()
