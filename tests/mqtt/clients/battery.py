"""paho-mqtt through everything that a fleet does: QoS 0, 1 and 2 both ways, retained messages, a will, a session across a
reconnect, a shared subscription. Prints `done` when all of it held.

    battery.py PORT CA VERSION [PATH [ALPN]]   VERSION: 3 or 5; PATH: over WebSocket; ALPN: what it offers (paho says nothing)
"""

import queue
import ssl
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PORT, CA, VERSION = int(sys.argv[1]), sys.argv[2], sys.argv[3]
PATH = sys.argv[4] if len(sys.argv) > 4 else None
ALPN = sys.argv[5:]
PROTOCOL = {"3": mqtt.MQTTv311, "5": mqtt.MQTTv5}[VERSION]
WITHIN = 10
BASE = f"battery{VERSION}"


class Client:
    """A client whose messages and acknowledgements can be waited for."""

    def __init__(self, name, clean=True, will=None):
        self.heard, self.connected, self.subscribed = queue.Queue(), queue.Queue(), queue.Queue()
        arguments = {} if PROTOCOL == mqtt.MQTTv5 else {"clean_session": clean}
        if PATH:
            arguments["transport"] = "websockets"
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=f"{name}-{VERSION}", protocol=PROTOCOL, **arguments
        )
        if PATH:
            self.client.ws_set_options(path=PATH)
        context = ssl.create_default_context(cafile=CA)
        if ALPN:
            context.set_alpn_protocols(ALPN)
        self.client.tls_set_context(context)
        self.client.on_message = lambda _client, _data, message: self.heard.put(message)
        self.client.on_connect = lambda _client, _data, flags, reason, _properties: self.connected.put((flags, reason))
        self.client.on_subscribe = lambda _client, _data, _mid, reasons, _properties: self.subscribed.put(reasons)
        if will:
            self.client.will_set(*will, qos=1)
        options = {}
        if PROTOCOL == mqtt.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 0 if clean else 600
            options = {"clean_start": clean, "properties": properties}
        self.client.connect("localhost", PORT, keepalive=30, **options)
        self.client.loop_start()
        flags, reason = self.connected.get(timeout=WITHIN)
        assert not reason.is_failure, reason
        self.session_present = flags.session_present

    def subscribe(self, topic, qos):
        self.client.subscribe(topic, qos)
        reasons = self.subscribed.get(timeout=WITHIN)
        assert [reason.value for reason in reasons] == [qos], reasons

    def publish(self, topic, payload, qos=0, retain=False):
        self.client.publish(topic, payload, qos, retain).wait_for_publish(WITHIN)

    def expect(self, topic, payload, qos, retain=False):
        message = self.heard.get(timeout=WITHIN)
        heard = (message.topic, message.payload.decode(), message.qos, bool(message.retain))
        assert heard == (topic, payload, qos, retain), heard

    def expect_nothing(self):
        self.publish(f"{BASE}/own/{id(self)}", "x", 1)
        assert self.heard.empty(), self.heard.get().topic

    def leave(self):
        self.client.disconnect()
        self.client.loop_stop()

    def vanish(self):
        self.client.loop_stop()
        self.client.socket().close()


def messages():
    one, other = Client("one"), Client("other")
    for qos in (0, 1, 2):
        one.subscribe(f"{BASE}/q{qos}", qos)
        other.publish(f"{BASE}/q{qos}", f"with {qos}", qos)
        one.expect(f"{BASE}/q{qos}", f"with {qos}", qos)
    large = "x" * 200_000
    other.publish(f"{BASE}/q1", large, 1)
    one.expect(f"{BASE}/q1", large, 1)
    for number in range(500):
        other.client.publish(f"{BASE}/q{number % 3}", str(number), number % 3)
    got = [one.heard.get(timeout=WITHIN) for _ in range(500)]
    for qos in (0, 1, 2):
        assert [int(m.payload) for m in got if m.qos == qos] == [n for n in range(500) if n % 3 == qos]
    one.leave()
    other.leave()


def retained():
    one = Client("one")
    one.publish(f"{BASE}/kept", "state", 1, retain=True)
    other = Client("other")
    other.subscribe(f"{BASE}/kept/#", 1)
    other.expect(f"{BASE}/kept", "state", 1, retain=True)
    one.publish(f"{BASE}/kept", "", 1, retain=True)
    other.expect(f"{BASE}/kept", "", 1)
    third = Client("third")
    third.subscribe(f"{BASE}/kept", 1)
    third.expect_nothing()
    for client in (one, other, third):
        client.leave()


def many_retained():
    """More than a session may have waiting: all of them come, in whatever pieces."""
    one, other = Client("one"), Client("other")
    infos = [one.client.publish(f"{BASE}/many/{number:04}", "x" * 100, 1, True) for number in range(3000)]
    for info in infos:
        info.wait_for_publish(WITHIN)
    for qos in (0, 1):
        other.subscribe(f"{BASE}/many/+", qos)
        heard = [other.heard.get(timeout=WITHIN) for _ in infos]
        assert [m.topic for m in heard] == [f"{BASE}/many/{number:04}" for number in range(3000)]
        assert all(m.retain and m.qos == qos for m in heard)
    other.client.publish(f"{BASE}/end", "", 1).wait_for_publish(WITHIN)
    assert other.heard.empty()
    for client in (one, other):
        client.leave()


def will():
    watcher = Client("watcher")
    watcher.subscribe(f"{BASE}/will", 1)
    Client("mortal", will=(f"{BASE}/will", "gone")).vanish()
    watcher.expect(f"{BASE}/will", "gone", 1)
    Client("polite", will=(f"{BASE}/will", "gone")).leave()
    watcher.expect_nothing()
    watcher.leave()


def session():
    sleeper = Client("sleeper", clean=False)
    assert not sleeper.session_present
    sleeper.subscribe(f"{BASE}/mail", 1)
    sleeper.leave()
    writer = Client("writer")
    for number in range(20):
        writer.publish(f"{BASE}/mail", str(number), 1)
    sleeper = Client("sleeper", clean=False)
    assert sleeper.session_present
    for number in range(20):
        sleeper.expect(f"{BASE}/mail", str(number), 1)
    sleeper.leave()
    writer.leave()
    Client("sleeper", clean=True).leave()


def shared():
    members = [Client(f"member{number}") for number in range(3)]
    for member in members:
        member.subscribe(f"$share/crew/{BASE}/jobs", 1)
    writer = Client("writer")
    for number in range(30):
        writer.publish(f"{BASE}/jobs", str(number), 1)
    jobs = []
    for member in members:
        for _ in range(10):
            jobs.append(int(member.heard.get(timeout=WITHIN).payload))
    assert sorted(jobs) == list(range(30)), jobs
    for client in (*members, writer):
        client.leave()


for part in (messages, retained, many_retained, will, session, shared):
    part()
    print(part.__name__, flush=True)
print("done", flush=True)
