// mqtt.js through what a fleet does: QoS 0, 1 and 2, a retained message, a will, a session across a reconnect, a shared
// subscription. Prints `done` when all of it held.
//
//     node battery.mjs PORT CA VERSION MODULES [PATH]          VERSION: 4 (3.1.1) or 5; MODULES: where node_modules lies;
//     PATH: over WebSocket
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [port, ca, version, modules, path] = process.argv.slice(2);
const mqtt = createRequire(`${modules}/`)("mqtt");
const protocolVersion = Number(version);
const base = `node${version}`;
setTimeout(() => { console.error("not in time"); process.exit(1); }, 60_000).unref();

async function client(name, { clean = true, will } = {}) {
    const properties = protocolVersion === 5 ? { sessionExpiryInterval: clean ? 0 : 600 } : undefined;
    const connected = mqtt.connect({
        protocol: path ? "wss" : "mqtts", path, host: "localhost", port: Number(port), ca: readFileSync(ca), protocolVersion, properties,
        clientId: `${name}-node-${version}`, clean, will, reconnectPeriod: 0,
    });
    const heard = [];
    const waiting = [];
    connected.on("message", (topic, payload, packet) => {
        const message = [topic, payload.toString(), packet.qos, packet.retain];
        const next = waiting.shift();
        if (next) next(message); else heard.push(message);
    });
    const connack = await new Promise((resolve, reject) => {
        connected.once("connect", resolve);
        connected.once("error", reject);
    });
    const hear = () => heard.length > 0 ? heard.shift() : new Promise((resolve) => waiting.push(resolve));
    return { connected, connack, hear, heard };
}

const one = await client("one");
const other = await client("other");
for (const qos of [0, 1, 2]) {
    const [granted] = await one.connected.subscribeAsync(`${base}/q${qos}`, { qos });
    assert.equal(granted.qos, qos);
    await other.connected.publishAsync(`${base}/q${qos}`, `with ${qos}`, { qos });
    assert.deepEqual(await one.hear(), [`${base}/q${qos}`, `with ${qos}`, qos, false]);
}

await other.connected.publishAsync(`${base}/kept`, "state", { qos: 1, retain: true });
await one.connected.subscribeAsync(`${base}/kept`, { qos: 1 });
assert.deepEqual(await one.hear(), [`${base}/kept`, "state", 1, true]);

await one.connected.subscribeAsync(`${base}/will`, { qos: 1 });
const mortal = await client("mortal", { will: { topic: `${base}/will`, payload: Buffer.from("gone"), qos: 1 } });
mortal.connected.stream.destroy();
assert.deepEqual(await one.hear(), [`${base}/will`, "gone", 1, false]);

const sleeper = await client("sleeper", { clean: false });
assert.equal(sleeper.connack.sessionPresent, false);
await sleeper.connected.subscribeAsync(`${base}/mail`, { qos: 2 });
await sleeper.connected.endAsync();
for (let number = 0; number < 10; number += 1) {
    await other.connected.publishAsync(`${base}/mail`, String(number), { qos: 2 });
}
const awake = await client("sleeper", { clean: false });
assert.equal(awake.connack.sessionPresent, true);
for (let number = 0; number < 10; number += 1) {
    assert.deepEqual(await awake.hear(), [`${base}/mail`, String(number), 2, false]);
}

await one.connected.subscribeAsync(`$share/crew/${base}/jobs`, { qos: 1 });
await awake.connected.subscribeAsync(`$share/crew/${base}/jobs`, { qos: 1 });
const jobs = [];
for (let number = 0; number < 10; number += 1) {
    await other.connected.publishAsync(`${base}/jobs`, String(number), { qos: 1 });
}
for (let number = 0; number < 5; number += 1) {
    jobs.push(Number((await one.hear())[1]), Number((await awake.hear())[1]));
}
assert.deepEqual(jobs.sort((a, b) => a - b), [...Array(10).keys()]);

await Promise.all([one, other, awake].map(({ connected }) => connected.endAsync()));
console.log("done");
