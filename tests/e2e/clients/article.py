"""The client of the article: it sends b'heartbeat' over an ssl-wrapped socket, and nothing else, for ever.

Only where to connect, whom to trust and how often to send come from outside: HOST PORT CAFILE INTERVAL [CERT KEY].
"""

import socket
import ssl
import sys
import time

host, port, cafile, interval = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])

context = ssl.create_default_context(cafile=cafile)
if len(sys.argv) > 6:
    context.load_cert_chain(sys.argv[5], sys.argv[6])

with socket.create_connection((host, port)) as sock:
    with context.wrap_socket(sock, server_hostname=host) as ssock:
        while True:
            ssock.sendall(b'heartbeat')
            time.sleep(interval)
