// A device in Node: the native protocol of docs/PROTOCOL.md with the standard library alone.
//
//     node device.mjs --id meter-17
//
// What to learn here, in reading order:
//
//     Frames       frames out of a stream that may cut them anywhere
//     Connection   HELLO, WELCOME, heartbeats both ways, messages that are acknowledged, a dead gateway noticed
//     dial         TLS with a certificate that is really checked, a client certificate, resumption
//     main         coming back: exponential back-off, full jitter, and the time that the gateway asks for
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import tls from "node:tls";
import { parseArgs } from "node:util";

const [HELLO, WELCOME, PING, PONG, MESSAGE, ACK, CLOSE] = [1, 2, 3, 4, 5, 6, 7];
const CLOSE_CODES = [
  "normal", "going_away", "taken_over", "expired", "protocol_error", "frame_too_large", "identity_mismatch", "token_rejected",
  "hello_timeout", "slow_consumer", "try_later", "requested", "denied",
];
// Trying again soon will not help with these: somebody has to look.
const HOPELESS = ["taken_over", "protocol_error", "identity_mismatch", "token_rejected", "denied"];
const PATIENCE = 10_000;
const SPAN_MAX = 300_000;
const UNACKNOWLEDGED_MAX = 16;

const say = (...words) => console.log(new Date().toTimeString().slice(0, 8), ...words);

// The connection is over: why, when to come back, and whether that helps.
class Gone extends Error {
  constructor(why, { retryAfter = 0, hopeless = false } = {}) {
    super(why);
    this.retryAfter = retryAfter;
    this.hopeless = hopeless;
  }
}

function frame(type, body = Buffer.alloc(0)) {
  const header = Buffer.from([type, body.length >> 8, body.length & 0xff]);
  return Buffer.concat([header, body]);
}

function u32(value) {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

class Frames {
  #bytes = Buffer.alloc(0);

  // The frames that are whole with these bytes, as [type, body].
  *take(bytes) {
    this.#bytes = Buffer.concat([this.#bytes, bytes]);
    while (this.#bytes.length >= 3) {
      const end = 3 + this.#bytes.readUInt16BE(1);
      if (this.#bytes.length < end) return;
      const [type, body] = [this.#bytes[0], this.#bytes.subarray(3, end)];
      this.#bytes = this.#bytes.subarray(end);
      yield [type, body];
    }
  }
}

// Messages that the gateway has not acknowledged. A real device keeps them where a power cut does not reach.
class Outbox {
  #number = 0;
  waiting = new Map();

  // The new message as a frame, or nothing when enough are under way.
  add(topic, payload) {
    if (this.waiting.size >= UNACKNOWLEDGED_MAX) return undefined;
    // Numbers go up from 1, and 0 means that no ACK is wanted.
    this.#number = this.#number % 0xffff_ffff + 1;
    const name = Buffer.from(topic);
    const bytes = frame(MESSAGE, Buffer.concat([u32(this.#number), Buffer.from([name.length]), name, Buffer.from(payload)]));
    this.waiting.set(this.#number, bytes);
    return bytes;
  }
}

// One connection, from HELLO to its end. `end` is a promise of the Gone that says why.
class Connection {
  #frames = new Frames();
  #asked = false;
  #watch = undefined;
  #report = undefined;
  heartbeat = 0;
  timeout = 0;
  // When it counts as one that has lasted; never before WELCOME.
  steadyAfter = Infinity;

  constructor(socket, options, outbox) {
    [this.socket, this.options, this.outbox] = [socket, options, outbox];
    this.end = new Promise((resolve) => {
      this.finish = (gone) => {
        clearTimeout(this.#watch);
        clearInterval(this.#report);
        resolve(gone);
      };
    });
    socket.on("data", (bytes) => this.#heard(bytes));
    socket.on("error", (error) => this.finish(new Gone(error.message)));
    socket.on("close", () => this.finish(new Gone("the gateway ended the connection")));
    const [id, token] = [Buffer.from(options.id), Buffer.from(options.token)];
    const length = Buffer.from([token.length >> 8, token.length & 0xff]);
    this.#send(HELLO, Buffer.concat([Buffer.from([1]), u32(Math.round(options.heartbeat * 1000)), Buffer.from([id.length]), id, length, token]));
    this.#watch = setTimeout(() => this.finish(new Gone("no WELCOME came")), PATIENCE);
  }

  // Says goodbye.
  leave() {
    this.#close(0);
    this.finish(new Gone("stopped"));
  }

  #send(type, body) {
    this.socket.write(frame(type, body));
  }

  #close(code) {
    this.socket.end(frame(CLOSE, Buffer.concat([Buffer.from([code]), u32(0)])));
  }

  #heard(bytes) {
    try {
      for (const [type, body] of this.#frames.take(bytes)) this.#handle(type, body);
    } catch (error) {
      if (error instanceof Gone) return this.finish(error);
      // A field that lies beyond its frame.
      this.#close(4);
      return this.finish(new Gone(`the gateway broke a rule: ${error.message}`, { hopeless: true }));
    }
    if (this.steadyAfter < Infinity) {
      this.#asked = false;
      this.#watchFor(this.heartbeat + this.timeout);
    }
  }

  // A living gateway is never silent for longer than this, whatever this device does.
  #watchFor(time) {
    clearTimeout(this.#watch);
    this.#watch = setTimeout(() => {
      if (this.#asked) return this.finish(new Gone("the gateway is dead: not a byte for too long"));
      this.#asked = true;
      this.#send(PING);
      this.#watchFor(this.timeout);
    }, time);
  }

  #handle(type, body) {
    if (type === CLOSE) {
      const retryAfter = body.readUInt32BE(1);
      const name = CLOSE_CODES[body[0]] ?? "normal";
      const why = `${name} '${body.subarray(5)}', come back after ${(retryAfter / 1000).toFixed(1)} s`;
      throw new Gone(why, { retryAfter, hopeless: HOPELESS.includes(name) });
    } else if (this.steadyAfter === Infinity) {
      if (type !== WELCOME) throw new RangeError(`frame ${type} instead of WELCOME`);
      this.#welcome(body);
    } else if (type === PING) {
      this.#send(PONG, body);
    } else if (type === MESSAGE) {
      const [number, end] = [body.readUInt32BE(0), 5 + body.readUInt8(4)];
      if (end > body.length) throw new RangeError("MESSAGE is too short");
      say("message", body.toString("utf8", 5, end), body.toString("utf8", end));
      // After the work is done, or kept safe: whoever sent it relies on that.
      if (number !== 0) this.#send(ACK, u32(number));
    } else if (type === ACK) {
      const number = body.readUInt32BE(0);
      if (this.outbox.waiting.delete(number)) say("acknowledged", number);
    } else if (type !== PONG) {
      throw new RangeError(`frame ${type} is not for a device`);
    }
  }

  #welcome(body) {
    [this.heartbeat, this.timeout] = [body.readUInt32BE(1), body.readUInt32BE(5)];
    this.steadyAfter = performance.now() + this.heartbeat;
    const { id, report } = this.options;
    say(`connected as ${id}, ${this.socket.getProtocol()}, resumed: ${this.socket.isSessionReused()}, heartbeat ${this.heartbeat / 1000} s`);
    // What was not acknowledged may be lost: all of it again, in the old order, with the old numbers.
    for (const bytes of this.outbox.waiting.values()) this.socket.write(bytes);
    const speak = () => {
      const bytes = this.outbox.add("power", JSON.stringify({ w: 200 + Math.floor(Math.random() * 60) }));
      if (bytes) this.socket.write(bytes);
    };
    if (report > 0) {
      speak();
      this.#report = setInterval(speak, report * 1000);
    }
  }
}

// What no later attempt changes by itself: the gateway's certificate is not one to trust.
const CERTIFICATE = /^(CERT_|ERR_TLS_CERT|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO_(GET|VERIFY)|HOSTNAME_MISMATCH|INVALID_CA)/;

function refusal(error) {
  if (CERTIFICATE.test(error.code ?? "")) return new Gone(`the gateway's certificate is not right: ${error.message}`, { hopeless: true });
  // Several addresses that all refused come as one error without a text.
  return new Gone(error.message || error.errors?.map((one) => one.message).join(", ") || error.code);
}

// A socket whose handshake is done; throws Gone. `session.ticket` is the newest that came.
function dial(options, identity, session) {
  const socket = tls.connect({
    ...identity, host: options.host, port: Number(options.port), ALPNProtocols: ["pulsegate/1"], minVersion: "TLSv1.2",
    // Never switch rejectUnauthorized off: without it this is not TLS.
    servername: isIP(options.serverName) ? "" : options.serverName, session: session.ticket,
    checkServerIdentity: (_, certificate) => tls.checkServerIdentity(options.serverName, certificate),
  });
  socket.setNoDelay(true);
  socket.on("session", (ticket) => { session.ticket = ticket; });
  return new Promise((resolve, reject) => {
    const fail = (gone) => { socket.destroy(); reject(gone); };
    const late = setTimeout(() => fail(new Gone(`no connection within ${PATIENCE / 1000} s`)), PATIENCE);
    socket.once("error", (error) => { clearTimeout(late); fail(refusal(error)); });
    socket.once("close", () => { clearTimeout(late); reject(new Gone("the gateway ended the handshake")); });
    socket.once("secureConnect", () => {
      clearTimeout(late);
      socket.removeAllListeners("error").removeAllListeners("close");
      resolve(socket);
    });
  });
}

function readOptions() {
  const text = (value) => ({ type: "string", default: value });
  const { values } = parseArgs({
    options: {
      host: text("localhost"), port: text("7443"), "server-name": { type: "string" }, ca: text("pulsegate-data/certs/ca.pem"),
      cert: { type: "string" }, key: { type: "string" }, id: text("device-4"), token: text(""), heartbeat: text("0"), report: text("10"),
    },
  });
  const options = { ...values, serverName: values["server-name"] ?? values.host, heartbeat: Number(values.heartbeat), report: Number(values.report) };
  if (!(options.heartbeat >= 0 && options.heartbeat <= 86_400 && options.report >= 0)) throw new Error("--heartbeat and --report are seconds");
  const idLength = Buffer.byteLength(options.id);
  if (idLength < 1 || idLength > 128 || Buffer.byteLength(options.token) > 1024) throw new Error("an id has 1 to 128 bytes, a token at most 1024");
  return options;
}

async function main() {
  const options = readOptions();
  const file = (path) => path && readFileSync(path);
  const identity = { ca: file(options.ca), cert: file(options.cert), key: file(options.key) };
  const [outbox, session] = [new Outbox(), {}];
  let connection;
  const stop = () => {
    connection?.leave();
    setTimeout(() => process.exit(0), 200).unref();
    if (!connection) process.exit(0);
  };
  process.on("SIGINT", stop).on("SIGTERM", stop);

  for (let failures = 0; ;) {
    let gone;
    try {
      const socket = await dial(options, identity, session);
      connection = new Connection(socket, options, outbox);
      gone = await connection.end;
      if (gone.message === "stopped") return;
      socket.on("error", () => {}).destroy();
    } catch (error) {
      if (!(error instanceof Gone)) throw error;
      gone = error;
    }
    say("closed:", gone.message);
    // Whoever held for a while begins anew, and whoever is told when to come back by a gateway that let it in; everybody
    // else doubles the span, and takes a random point in it: a fleet that lost its gateway at one moment must not come back
    // at one moment.
    const steadyAfter = connection?.steadyAfter ?? Infinity;
    connection = undefined;
    const held = performance.now() >= steadyAfter || (steadyAfter < Infinity && gone.retryAfter > 0);
    failures = held ? 0 : failures + 1;
    const span = gone.hopeless ? SPAN_MAX : Math.min(SPAN_MAX, 1000 * 2 ** failures);
    const wait = gone.retryAfter + Math.random() * span;
    say(`coming back in ${(wait / 1000).toFixed(1)} s`);
    await sleep(wait);
  }
}

main().catch((error) => {
  console.error(`device: ${error.message}`);
  process.exit(2);
});
