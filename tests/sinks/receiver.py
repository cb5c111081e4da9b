#!/usr/bin/env python3
"""A receiver of webhooks that behaves as its mode file says at each request, and writes down all that it is sent.

  receiver.py PORT MODE_FILE LEDGER [SECRET [CERT KEY CA]]

The first line of the mode file: `ok`, `hang` (takes it, never answers), `STATUS` (takes nothing), `STATUS SECONDS` (the
same with Retry-After), `poison` (refuses with 422 what holds the word poison). A line of the ledger for each request: whether
it was taken, the answer, the headers that matter, whether the signature is right, the events.
"""

import base64
import hashlib
import hmac
import json
import os
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, MODE, LEDGER = int(sys.argv[1]), sys.argv[2], sys.argv[3]
SECRET = sys.argv[4].encode() if len(sys.argv) > 4 else None
LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        with open(MODE) as file:
            mode = file.readline().split()
        if mode[0] == "poison":
            status = 422 if b"poison" in body else 200
        else:
            status = {"ok": 200, "hang": 0}.get(mode[0]) if mode[0] in ("ok", "hang") else int(mode[0])
        if self.headers["content-type"] == "application/json":
            events = json.loads(body)["events"]
        else:
            events = [json.loads(line) for line in body.splitlines()]
        line = {
            "taken": status in (0, 200),
            "status": status,
            "id": self.headers["webhook-id"],
            "idempotency_key": self.headers["idempotency-key"],
            "authorization": self.headers["authorization"],
            "signed": self.is_signed(body),
            "path": self.path,
            "at": time.monotonic(),
            "events": events,
        }
        with LOCK, open(LEDGER, "a") as ledger:
            ledger.write(json.dumps(line) + "\n")
            ledger.flush()
            os.fsync(ledger.fileno())
        if status == 0:
            time.sleep(3600)
        answer = b"as the mode file says\n"
        self.send_response(status)
        if len(mode) > 1:
            self.send_header("retry-after", mode[1])
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def is_signed(self, body):
        if SECRET is None:
            return None
        stamp = self.headers["webhook-timestamp"]
        signed = f"{self.headers['webhook-id']}.{stamp}.".encode() + body
        right = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
        is_fresh = abs(time.time() - int(stamp)) < 300
        return is_fresh and hmac.compare_digest(self.headers["webhook-signature"] or "", f"v1,{right}")

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, *_):
        """Connections that are cut are what this is for."""


server = Server(("127.0.0.1", PORT), Handler)
if len(sys.argv) > 5:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[5], sys.argv[6])
    context.load_verify_locations(sys.argv[7])
    context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print("listening", flush=True)
server.serve_forever()
