"""An identity server with the standard library alone: it answers the gateway's hook, or does not, as it is told.

POST /auth    the gateway's question; yes to whose secret is "right-" and its name
POST /mode    one of: answer, hang, slow, fail, nonsense; for the questions from then on
GET  /asked   how many questions there were
GET  /jwks    what the file named by the second argument holds

The first argument is the port, 0 for a free one; it is printed. A third and a fourth name a certificate and its key: it
speaks TLS then.
"""

import json
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STATE = {"mode": "answer", "asked": 0, "bearer": None}
LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/asked":
            with LOCK:
                self.reply(200, json.dumps(STATE).encode())
        elif self.path == "/jwks":
            with open(sys.argv[2], "rb") as file:
                self.reply(200, file.read())
        else:
            self.reply(404, b"{}")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/mode":
            with LOCK:
                STATE["mode"] = body.decode()
            self.reply(200, b"{}")
            return
        with LOCK:
            STATE["asked"] += 1
            STATE["bearer"] = self.headers.get("authorization")
            mode = STATE["mode"]
        question = json.loads(body)
        if mode == "hang":
            time.sleep(3600)
        if mode == "slow":
            time.sleep(0.3)
        if mode == "fail":
            self.reply(500, b"out of order")
            return
        if mode == "nonsense":
            self.reply(200, b"yes, of course")
            return
        right = question.get("secret") == "right-" + question["name"]
        answer = {"allow": right}
        if right and question["name"].startswith("bounded"):
            answer.update(device=question["name"], publish=["up/{device}"], subscribe=["down/{device}"])
        if right and question["name"].startswith("short"):
            answer.update(expires_in_s=1)
        if not right:
            answer["detail"] = "unknown here"
        self.reply(200, json.dumps(answer).encode())


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    if len(sys.argv) > 3:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[3], sys.argv[4])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print("listening on", server.server_address[1], flush=True)
    server.serve_forever()
