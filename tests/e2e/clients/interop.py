"""Python's ssl module against a raw and a native listener.

RAWPORT NATIVEPORT VERSION [CERT KEY]: VERSION is 1.2 or 1.3. Prints what it saw, one fact a line.
"""

import socket
import ssl
import struct
import sys

raw, native, version = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


def context(alpn=None):
    made = ssl.create_default_context(cafile="certs/ca.pem")
    wanted = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
    made.minimum_version = made.maximum_version = wanted
    if len(sys.argv) > 5:
        made.load_cert_chain(sys.argv[4], sys.argv[5])
    if alpn:
        made.set_alpn_protocols([alpn])
    return made


def connect(made, port, session=None):
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    return made.wrap_socket(plain, server_hostname="localhost", session=session)


def exactly(tls, count):
    data = b""
    while len(data) < count:
        part = tls.recv(count - len(data))
        if not part:
            raise EOFError(data)
        data += part
    return data


def frame(tls):
    kind, length = struct.unpack(">BH", exactly(tls, 3))
    return kind, exactly(tls, length)


made, session = context(), None
for attempt in ("full", "resumed"):
    tls = connect(made, raw, session)
    tls.sendall(b"heartbeat")
    reply = exactly(tls, 4).decode()
    print("raw", attempt, tls.version(), tls.session_reused, reply)
    session = tls.session
    tls.unwrap()

tls = connect(context("pulsegate/1"), native)
name = b"python-" + version.encode()
hello = struct.pack(">BIB", 1, 0, len(name)) + name + struct.pack(">H", 0)
tls.sendall(struct.pack(">BH", 1, len(hello)) + hello)
kind, welcome = frame(tls)
print("native", tls.selected_alpn_protocol(), kind, struct.unpack(">BIIBH", welcome))
tls.sendall(bytes.fromhex("030004") + b"ping")
print("pong", frame(tls))
tls.sendall(bytes.fromhex("05000e 00000001 05") + b"power" + b"230W")
print("ack", frame(tls))
tls.sendall(bytes.fromhex("070005 00 00000000"))
print("close", frame(tls)[0])
print("end", tls.recv(1))

try:
    connect(context("mqtt"), native)
except ssl.SSLError as error:
    print("refused", type(error).__name__)
