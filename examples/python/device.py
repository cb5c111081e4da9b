#!/usr/bin/env python3
"""A device that speaks to Pulsegate: everything that a real one should do, with the standard library alone.

    python3 device.py                      # native protocol, against a gateway started without a configuration
    python3 device.py --raw                # opaque bytes over TLS: b"heartbeat", again and again

What to learn here, in reading order:

    connect()     TLS with a certificate that is really checked, a client certificate, resumption
    Frames        frames in and out of a stream that may cut them anywhere
    live()        HELLO, WELCOME, heartbeats both ways, messages that are acknowledged, and noticing a dead gateway
    live_raw()    the same as far as it goes without a protocol
    main()        coming back: exponential back-off, full jitter, and the time that the gateway asks for

docs/PROTOCOL.md describes the bytes.
"""

import argparse
import random
import socket
import ssl
import struct
import sys
import time

HELLO, WELCOME, PING, PONG, MESSAGE, ACK, CLOSE = range(1, 8)
CLOSE_CODES = ["normal", "going_away", "taken_over", "expired", "protocol_error", "frame_too_large",
               "identity_mismatch", "token_rejected", "hello_timeout", "slow_consumer", "try_later", "requested",
               "denied"]
# Trying again soon will not help with these: somebody has to look.
HOPELESS = {"taken_over", "protocol_error", "identity_mismatch", "token_rejected", "denied"}

CONNECT_TIMEOUT = 10.0
BACKOFF_LONGEST = 300.0
UNACKNOWLEDGED_MAX = 16


class Gone(Exception):
    """The connection is over."""

    def __init__(self, why, retry_after=0.0, hopeless=False):
        super().__init__(why)
        self.retry_after = retry_after
        self.hopeless = hopeless


def say(*words):
    print(time.strftime("%H:%M:%S"), *words, flush=True)


# --- TLS --------------------------------------------------------------------------------------------------------------

def make_context(options):
    """Made once: it keeps what sessions are resumed with."""
    # Checks the chain, the validity and the name. Never switch that off: without it this is not TLS.
    context = ssl.create_default_context(cafile=options.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if options.cert:
        context.load_cert_chain(options.cert, options.key)
    if not options.raw:
        context.set_alpn_protocols(["pulsegate/1"])
    return context


def connect(options, context, session):
    plain = socket.create_connection((options.host, options.port), timeout=CONNECT_TIMEOUT)
    try:
        # Small frames should leave at once. And where the network is gone without a word, what was sent and never
        # confirmed must end the connection, not wait for a quarter of an hour.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(options.timeout * 1000))
        return context.wrap_socket(plain, server_hostname=options.server_name or options.host, session=session)
    except BaseException:
        plain.close()
        raise


# --- The native protocol ----------------------------------------------------------------------------------------------

class Frames:
    """Frames over a TLS stream: one byte type, two bytes length, body."""

    def __init__(self, tls):
        self.tls = tls
        self.buffer = b""
        self.last_heard = time.monotonic()

    def send(self, kind, body=b""):
        self.tls.settimeout(CONNECT_TIMEOUT)
        # One write is one TLS record: cheaper than header and body apart.
        self.tls.sendall(struct.pack(">BH", kind, len(body)) + body)

    def receive(self, until):
        """The next frame as (kind, body), or None when there is none by then."""
        while True:
            if len(self.buffer) >= 3:
                kind, length = struct.unpack_from(">BH", self.buffer)
                if len(self.buffer) >= 3 + length:
                    body, self.buffer = self.buffer[3:3 + length], self.buffer[3 + length:]
                    return kind, body
            # A timeout of zero would mean something else: not to wait at all.
            self.tls.settimeout(max(until - time.monotonic(), 0.001))
            try:
                data = self.tls.recv(16_384)
            except TimeoutError:
                return None
            if not data:
                raise Gone("the gateway ended the connection")
            self.buffer += data
            self.last_heard = time.monotonic()


def hello(options):
    name, token = options.id.encode(), options.token.encode()
    wish = int(options.heartbeat * 1000)
    return struct.pack(">BIB", 1, wish, len(name)) + name + struct.pack(">H", len(token)) + token


def message(number, topic, payload):
    return struct.pack(">IB", number, len(topic)) + topic + payload


def closed(body):
    code, retry_after = struct.unpack_from(">BI", body)
    name = CLOSE_CODES[code] if code < len(CLOSE_CODES) else "normal"
    why = f"{name} {body[5:].decode()!r}, come back after {retry_after / 1000:.1f} s"
    return Gone(why, retry_after / 1000, name in HOPELESS)


class Outbox:
    """Messages that the gateway has not acknowledged. A real device keeps them where a power cut does not reach."""

    def __init__(self):
        self.number = 0
        self.waiting = {}

    def add(self, topic, payload):
        self.number = self.number % 0xFFFF_FFFF + 1
        self.waiting[self.number] = (topic, payload)
        return self.number


def live(options, tls, outbox):
    """One connection, from HELLO to its end, which is an exception. Gives back nothing, ever."""
    frames = Frames(tls)
    frames.send(HELLO, hello(options))
    answer = frames.receive(time.monotonic() + CONNECT_TIMEOUT)
    if answer is None:
        raise Gone("no WELCOME came")
    kind, body = answer
    if kind == CLOSE:
        raise closed(body)
    if kind != WELCOME:
        raise Gone(f"frame {kind} instead of WELCOME")
    _, heartbeat_ms, timeout_ms, _, _ = struct.unpack_from(">BIIBH", body)
    heartbeat, timeout = heartbeat_ms / 1000, timeout_ms / 1000
    options.steady_after = time.monotonic() + heartbeat
    say(f"connected as {options.id}, {tls.version()}, resumed: {tls.session_reused}, heartbeat {heartbeat:g} s")

    # What was not acknowledged may be lost: all of it again, in the old order, with the old numbers.
    for number, (topic, payload) in outbox.waiting.items():
        frames.send(MESSAGE, message(number, topic, payload))

    next_report = time.monotonic()
    asked = False
    while True:
        now = time.monotonic()
        if options.report and now >= next_report:
            next_report = now + options.report
            if len(outbox.waiting) < UNACKNOWLEDGED_MAX:
                topic, payload = b"power", b'{"w":%d}' % random.randint(200, 260)
                number = outbox.add(topic, payload)
                frames.send(MESSAGE, message(number, topic, payload))

        # A living gateway is never silent for longer than this, whatever this device does.
        silent_until = frames.last_heard + heartbeat + timeout
        if asked:
            silent_until += timeout
        if now >= silent_until:
            if asked:
                raise Gone("the gateway is dead: not a byte for too long")
            frames.send(PING, b"alive?")
            asked = True
            continue

        frame = frames.receive(min(silent_until, next_report) if options.report else silent_until)
        if frame is None:
            continue
        asked = False
        kind, body = frame
        if kind == PING:
            frames.send(PONG, body)
        elif kind == PONG:
            pass
        elif kind == MESSAGE:
            number, topic_length = struct.unpack_from(">IB", body)
            topic, payload = body[5:5 + topic_length], body[5 + topic_length:]
            say("message", topic.decode(), payload)
            # After the work is done, or kept safe: whoever sent it relies on that.
            if number:
                frames.send(ACK, struct.pack(">I", number))
        elif kind == ACK:
            (number,) = struct.unpack(">I", body)
            outbox.waiting.pop(number, None)
            say("acknowledged", number)
        elif kind == CLOSE:
            raise closed(body)
        else:
            frames.send(CLOSE, struct.pack(">BI", 4, 0))
            raise Gone(f"frame {kind} is not for a device")


# --- Raw --------------------------------------------------------------------------------------------------------------

def live_raw(options, tls):
    """b"heartbeat", again and again. Whether the gateway lives shows only where it answers (--reply)."""
    say(f"connected, {tls.version()}, resumed: {tls.session_reused}")
    interval = options.heartbeat or 10.0
    options.steady_after = time.monotonic() + interval
    last_heard = next_beat = time.monotonic()
    while True:
        now = time.monotonic()
        if now >= next_beat:
            tls.settimeout(CONNECT_TIMEOUT)
            tls.sendall(b"heartbeat")
            next_beat = now + interval
        if options.reply and now >= last_heard + interval + options.timeout:
            raise Gone("the gateway is dead: it does not answer")
        tls.settimeout(max(next_beat - time.monotonic(), 0.001))
        try:
            data = tls.recv(16_384)
        except TimeoutError:
            continue
        if not data:
            raise Gone("the gateway ended the connection")
        last_heard = time.monotonic()
        say("received", data)


# --- Coming back ------------------------------------------------------------------------------------------------------

def main():
    parser = argparse.ArgumentParser(description="A device for Pulsegate.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, help="7443, with --raw 7444")
    parser.add_argument("--server-name", help="the name in the gateway's certificate, if it is not HOST")
    parser.add_argument("--ca", default="pulsegate-data/certs/ca.pem", help="whom to trust (PEM)")
    parser.add_argument("--cert", help="client certificate (PEM)")
    parser.add_argument("--key", help="its key (PEM)")
    parser.add_argument("--id", default="device-1")
    parser.add_argument("--token", default="", help="proof of the id, where the gateway demands one")
    parser.add_argument("--heartbeat", type=float, default=0, help="seconds; 0: as the gateway likes (raw: 10)")
    parser.add_argument("--timeout", type=float, default=30, help="seconds until what nobody confirms counts as lost")
    parser.add_argument("--report", type=float, default=10, help="seconds between two messages; 0: none")
    parser.add_argument("--raw", action="store_true", help="no protocol: bytes over TLS")
    parser.add_argument("--reply", action="store_true", help="raw: the gateway answers heartbeats")
    options = parser.parse_args()
    options.port = options.port or (7444 if options.raw else 7443)

    context, session, outbox = make_context(options), None, Outbox()
    failures = 0
    while True:
        retry_after, hopeless = 0.0, False
        options.steady_after = float("inf")
        tls = None
        try:
            tls = connect(options, context, session)
            live_raw(options, tls) if options.raw else live(options, tls, outbox)
        except Gone as end:
            say("closed:", end)
            retry_after, hopeless = end.retry_after, end.hopeless
        except ssl.SSLCertVerificationError as error:
            say("closed: the gateway's certificate is not right:", error.verify_message)
            hopeless = True
        except OSError as error:
            # Refused, reset, unreachable, timed out, or a TLS alert: all the same from here.
            say("closed:", error)
        except KeyboardInterrupt:
            if tls and not options.raw:
                Frames(tls).send(CLOSE, struct.pack(">BI", 0, 0))
            return
        finally:
            if tls:
                # The newest ticket: it makes coming back three times cheaper for the gateway.
                session = tls.session or session
                tls.close()

        # Whoever held for a while begins anew; everybody else doubles the span, and takes a random point in it: a
        # fleet that lost its gateway at one moment must not come back at one moment.
        # A gateway that let it in and says when to come back has spread its devices itself.
        told = retry_after and options.steady_after < float("inf")
        failures = 0 if time.monotonic() >= options.steady_after or told else failures + 1
        span = BACKOFF_LONGEST if hopeless else min(BACKOFF_LONGEST, 2.0 ** min(failures, 16))
        wait = retry_after + random.uniform(0, span)
        say(f"coming back in {wait:.1f} s")
        try:
            time.sleep(wait)
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    sys.exit(main())
