#!/usr/bin/env python3
"""A device that speaks MQTT 5 over TLS, with paho-mqtt, which does the heartbeats and keeps what was not acknowledged.

    pip install paho-mqtt==2.1.0 && python3 device_mqtt.py --id meter-17
"""

import argparse
import random
import ssl
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

parser = argparse.ArgumentParser(description="A device for Pulsegate.")
parser.add_argument("--host", default="localhost")
parser.add_argument("--port", type=int, default=8883)
parser.add_argument("--ca", default="pulsegate-data/certs/ca.pem", help="whom to trust (PEM)")
parser.add_argument("--cert", help="client certificate (PEM)")
parser.add_argument("--key", help="its key (PEM)")
parser.add_argument("--id", default="device-7")
parser.add_argument("--username")
parser.add_argument("--password")
parser.add_argument("--keepalive", type=int, default=60, help="seconds")
parser.add_argument("--report", type=float, default=10, help="seconds between two messages; 0: none")
options = parser.parse_args()
home = f"devices/{options.id}"
steady_after = float("inf")


def say(*words):
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def on_connect(client, _data, flags, reason, _properties):
    global steady_after
    if reason.is_failure:
        say("refused:", reason)
        return
    steady_after = time.monotonic() + options.keepalive
    say(f"connected as {options.id}, session present: {flags.session_present}")
    client.subscribe(f"{home}/set/#", qos=1)


# The loop below comes back: paho would, without the jitter.
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, options.id, protocol=mqtt.MQTTv5, reconnect_on_failure=False)
# Checks the chain, the validity and the name. Never switch that off: without it this is not TLS.
context = ssl.create_default_context(cafile=options.ca)
context.set_alpn_protocols(["mqtt"])
if options.cert:
    context.load_cert_chain(options.cert, options.key)
client.tls_set_context(context)
client.username_pw_set(options.username, options.password)
client.on_connect = on_connect
client.on_message = lambda _client, _data, message: say("message", message.topic, message.payload)
client.on_publish = lambda *_: say("acknowledged")
client.on_disconnect = lambda _client, _data, _flags, reason, _properties: say("closed:", reason)
# The session outlives a connection, so that nothing is missed in between.
session = Properties(PacketTypes.CONNECT)
session.SessionExpiryInterval = 3600

failures, waiting, next_report = 0, [], time.monotonic()
while True:
    steady_after = float("inf")
    try:
        client.connect(options.host, options.port, options.keepalive, clean_start=False, properties=session)
        while client.loop(timeout=1.0) == mqtt.MQTT_ERR_SUCCESS:
            waiting = [one for one in waiting if not one.is_published()]
            if options.report and client.is_connected() and time.monotonic() >= next_report and len(waiting) < 16:
                next_report = time.monotonic() + options.report
                waiting.append(client.publish(f"{home}/power", b'{"w":%d}' % random.randint(200, 260), qos=1))
    except OSError as error:
        say("closed:", error)
    except KeyboardInterrupt:
        client.disconnect()
        break
    # A fleet that lost its gateway at one moment must not come back at one moment: a random time within a span that
    # doubles with each failure. MQTT has no word for "come back after".
    failures = 0 if time.monotonic() >= steady_after else failures + 1
    wait = random.uniform(0, min(300.0, 2.0 ** min(failures, 16)))
    say(f"coming back in {wait:.1f} s")
    time.sleep(wait)
