// A device in Node: MQTT 5 over TLS with mqtt.js, which does the heartbeats (keepalive) and keeps what was not acknowledged.
//
//     npm install && node mqtt.mjs --id meter-17
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import mqtt from "mqtt";

const text = (value) => ({ type: "string", default: value });
const { values: options } = parseArgs({
  options: {
    host: text("localhost"), port: text("8883"), ca: text("pulsegate-data/certs/ca.pem"), cert: { type: "string" }, key: { type: "string" },
    id: text("device-5"), username: { type: "string" }, password: { type: "string" }, keepalive: text("60"), report: text("10"),
  },
});
const say = (...words) => console.log(new Date().toTimeString().slice(0, 8), ...words);
const file = (path) => path && readFileSync(path);
const home = `devices/${options.id}`;

const client = mqtt.connect({
  protocol: "mqtts", host: options.host, port: Number(options.port), protocolVersion: 5,
  ca: file(options.ca), cert: file(options.cert), key: file(options.key), ALPNProtocols: ["mqtt"], minVersion: "TLSv1.2",
  clientId: options.id, username: options.username, password: options.password, keepalive: Number(options.keepalive),
  // The session outlives a connection, so that nothing is missed in between.
  clean: false, properties: { sessionExpiryInterval: 3600 },
  connectTimeout: 10_000,
});

// mqtt.js waits the same time again and again. A fleet that lost its gateway at one moment must not come back at one moment:
// a random time within a span that doubles with each failure. MQTT has no word for "come back after".
let [failures, steadyAfter] = [0, Infinity];
client.prependListener("close", () => {
  failures = performance.now() >= steadyAfter ? 0 : failures + 1;
  steadyAfter = Infinity;
  const wait = Math.random() * Math.min(300_000, 1000 * 2 ** failures);
  // 0 would mean never.
  client.options.reconnectPeriod = Math.max(1, wait);
  if (!client.disconnecting) say(`closed, coming back in ${(wait / 1000).toFixed(1)} s`);
});
client.on("connect", ({ sessionPresent }) => {
  steadyAfter = performance.now() + 1000 * client.options.keepalive;
  say(`connected as ${options.id}, session present: ${sessionPresent}`);
  client.subscribe(`${home}/set/#`, { qos: 1 }, (error) => { if (error) say("subscribing:", error.message); });
});
client.on("message", (topic, payload) => say("message", topic, payload.toString()));
client.on("disconnect", ({ reasonCode }) => say(`the gateway says goodbye, reason 0x${reasonCode.toString(16)}`));
// Several addresses that all refused come as one error without a text.
client.on("error", (error) => say("error:", error.message || error.errors?.map((one) => one.message).join(", ") || error.code));

let waiting = 0;
const report = () => {
  if (waiting >= 16) return;
  waiting += 1;
  client.publish(`${home}/power`, JSON.stringify({ w: 200 + Math.floor(Math.random() * 60) }), { qos: 1 }, (error) => {
    waiting -= 1;
    say(error ? `not published: ${error.message}` : "acknowledged");
  });
};
if (Number(options.report) > 0) {
  report();
  setInterval(report, 1000 * Number(options.report));
}

const stop = () => {
  const exit = () => process.exit(0);
  setTimeout(exit, 1000);
  if (client.connected) client.end(false, {}, exit); else exit();
};
process.on("SIGINT", stop).on("SIGTERM", stop);
