// The page at the admin address. It shows what the API tells and does what the API can do; nothing else is behind it.
//
// Whatever a device, a user or a stranger has named comes into the document as text, by `element` alone. There is no innerHTML here,
// and the page's policy (Content-Security-Policy, trusted types) would refuse it.
"use strict";

const TOKEN = "pulsegate.token";
const LOOK_EVERY_MS = 1000;
const POINTS_MAX = 300;
const ROWS = 50;
const EVENTS_SHOWN = 200;
const ROLES = ["read", "command", "admin"];

// ---- The document -------------------------------------------------------------------------------------------------------------

/** An element with properties, and children that are elements or become text. */
function element(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const byId = (id) => document.getElementById(id);
const view = () => byId("view");

function table(titles, rows, empty) {
  if (rows.length === 0) return element("p", { class: "quiet" }, empty);
  const cell = (tag) => (content, index) => element(tag, { class: titles[index].class ?? "" }, content);
  const head = element("tr", {}, titles.map((title, index) => cell("th")(title.text, index)));
  const body = rows.map((row) => element("tr", {}, row.map(cell("td"))));
  return element("div", { class: "scroll" }, element("table", {}, element("thead", {}, head), element("tbody", {}, body)));
}

const column = (text, kind) => ({ text, class: kind });
const section = (title, ...content) => element("section", {}, element("h2", {}, title), ...content);
const wide = (part) => (part.classList.add("wide"), part);

// ---- Figures ------------------------------------------------------------------------------------------------------------------

const count = (number) => (number ?? 0).toLocaleString("en");
const rate = (number) => (number === null ? "–" : `${number.toFixed(number < 10 ? 1 : 0)}/s`);
const share = (part, whole) => (whole > 0 ? Math.min(1, part / whole) : 0);

function bytes(number) {
  if (number === null || number === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) [number, unit] = [number / 1024, unit + 1];
  return `${number.toFixed(unit === 0 ? 0 : 1)} ${units[unit]}`;
}

function span(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const start = parts.findIndex(([size]) => seconds >= size);
  if (start < 0) return "0 s";
  const told = parts.slice(start, start + 2).map(([size, name], index) => {
    const number = Math.floor(index === 0 ? seconds / size : (seconds % parts[start][0]) / size);
    return number > 0 || index === 0 ? `${number} ${name}` : "";
  });
  return told.filter(Boolean).join(" ");
}

const ago = (time) => `${span(Math.max(0, (Date.now() - Date.parse(time)) / 1000))} ago`;

// ---- The API ------------------------------------------------------------------------------------------------------------------

class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function authorized(headers) {
  const token = sessionStorage.getItem(TOKEN);
  return token === null ? headers : { ...headers, authorization: `Bearer ${token}` };
}

async function ask(method, path, body, signal) {
  const headers = authorized(body === undefined ? {} : { "content-type": "application/json" });
  let answer;
  try {
    answer = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "the gateway cannot be reached");
  }
  const text = await answer.text();
  let told = null;
  try {
    told = text === "" ? null : JSON.parse(text);
  } catch {
    throw new ApiError(answer.status, "this is not a gateway's answer");
  }
  if (answer.ok) return told;
  throw new ApiError(answer.status, told?.error?.message ?? `the gateway answered ${answer.status}`);
}

const devicePath = (id) => `/v1/devices/${encodeURIComponent(id)}`;

/** Follows the events of `query` until `signal`; comes back behind the last one when the gateway was gone. */
async function follow(query, signal, take) {
  let last = null;
  while (!signal.aborted) {
    try {
      const headers = authorized(last === null ? {} : { "last-event-id": last });
      const answer = await fetch(`/v1/events?${query}`, { headers, signal, cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) return signIn("Your token is not taken any more.");
      if (answer.ok) await readEvents(answer.body, take, (id) => { last = id; });
    } catch (error) {
      if (error.name === "AbortError") return;
    }
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

async function readEvents(body, take, seen) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) take(JSON.parse(line.slice(5)));
      else if (line.startsWith("id:")) seen(line.slice(3).trim());
    }
  }
}

// ---- What is known ------------------------------------------------------------------------------------------------------------

const known = { role: null, overview: null, before: null, at: 0, beforeAt: 0, series: { time: [] } };
const may = (role) => ROLES.indexOf(known.role) >= ROLES.indexOf(role);

const CHARTS = [
  { title: "New connections a second", keys: [["accepted", "accepted"], ["handshakes", "handshakes done"], ["refused", "refused"]], unit: "" },
  { title: "Handshakes", keys: [["in_flight", "in flight"], ["waiting", "waiting"]], unit: "" },
  { title: "Heartbeats and expiry late by (worst of 10 s)", keys: [["late", "ms"]], unit: " ms" },
  { title: "Memory of the process", keys: [["memory", "MiB"]], unit: " MiB" },
];

const sum = (numbers) => Object.values(numbers ?? {}).reduce((total, number) => total + number, 0);

/** What grew in a second since the look before; null where there was none in this life of the gateway. */
function grown(read) {
  const { overview, before, at, beforeAt } = known;
  if (before === null || before.epoch !== overview.epoch || at <= beforeAt) return null;
  return Math.max(0, (read(overview) - read(before)) / ((at - beforeAt) / 1000));
}

function remember(overview) {
  if (known.overview !== null && known.overview.epoch !== overview.epoch) known.series = { time: [] };
  [known.before, known.beforeAt] = [known.overview, known.at];
  [known.overview, known.at] = [overview, performance.now()];
  const workers = overview.workers;
  const point = {
    accepted: grown((o) => o.accepted),
    handshakes: grown((o) => o.handshakes_full + o.handshakes_resumed),
    refused: grown((o) => sum(o.refused)),
    in_flight: workers.reduce((total, worker) => total + worker.handshakes_in_flight, 0),
    waiting: workers.reduce((total, worker) => total + worker.handshakes_waiting, 0),
    late: Math.max(...workers.map((worker) => worker.loop_lateness_ms)),
    memory: (overview.memory.process_resident_bytes ?? 0) / 1048576,
  };
  const series = known.series;
  series.time.push(Date.now() / 1000);
  for (const [key, value] of Object.entries(point)) (series[key] ??= []).push(value);
  if (series.time.length > POINTS_MAX) Object.values(series).forEach((values) => values.shift());
}

function say(text, isBad) {
  const state = byId("state");
  state.textContent = text;
  state.classList.toggle("bad", Boolean(isBad));
}

async function look() {
  if (document.hidden || known.role === null) return;
  try {
    remember(await ask("GET", "/v1/overview"));
  } catch (error) {
    if (error.status === 401) return signIn("Your token is not taken any more.");
    say(error.message, true);
    return;
  }
  const { node, version, uptime_s } = known.overview;
  byId("node").textContent = node;
  byId("fleet").hidden = known.overview.fleet === null;
  document.title = `${node} – Pulsegate`;
  say(`${version}, up ${span(uptime_s)}${known.role === "admin" ? "" : `, ${known.role === "read" ? "read-only" : known.role}`}`);
  current.update?.();
}

// ---- Views --------------------------------------------------------------------------------------------------------------------
// Each makes its part of the document and gives back what brings it up to date and what ends it.

function overviewView() {
  const figures = element("div", { class: "figures" });
  const memory = element("div");
  const reasons = { closed: element("div"), refused: element("div") };
  const workers = element("div");
  const charts = CHARTS.map((chart) => ({ ...chart, place: element("div"), plot: null }));
  view().replaceChildren(element("div", { class: "cards" },
    wide(section("Now", figures)),
    ...charts.map((chart) => section(chart.title, chart.place)),
    section("Memory against budget", memory),
    wide(section("Workers", workers)),
    section("Refused before TLS", reasons.refused),
    section("Ends of connections", reasons.closed)));

  const figure = (value, name) => element("div", { class: "figure" }, element("b", {}, value), element("span", {}, name));
  const byReason = (key) => {
    const rows = Object.entries(known.overview[key]).filter(([, number]) => number > 0).sort((a, b) => b[1] - a[1]);
    return table([column("Reason"), column("Count", "number"), column("Now", "number")],
      rows.map(([reason, number]) => [reason, count(number), rate(grown((o) => o[key][reason]))]), "None.");
  };
  const draw = () => charts.forEach((chart) => {
    const data = [known.series.time, ...chart.keys.map(([key]) => known.series[key] ?? [])];
    if (chart.plot === null) chart.plot = plot(chart, data);
    else chart.plot.setData(data);
  });
  const redraw = () => {
    charts.forEach((chart) => { chart.plot?.destroy(); chart.plot = null; });
    if (known.overview !== null) draw();
  };
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", redraw);
  const resized = new ResizeObserver(() => charts.forEach((chart) => chart.plot?.setSize({ width: chart.place.clientWidth, height: 170 })));
  resized.observe(view());
  const update = () => {
    const o = known.overview;
    if (o === null) return;
    figures.replaceChildren(
      figure(count(o.devices), "devices"),
      figure(count(o.connections), `connections of ${count(o.connections_max)}`),
      figure(rate(grown((x) => x.accepted)), "accepted"),
      figure(rate(grown((x) => sum(x.refused))), "refused before TLS"),
      figure(rate(grown((x) => x.messages_received)), "messages from devices"),
      figure(rate(grown((x) => x.messages_sent)), "messages to devices"),
      figure(count(o.sessions), "MQTT sessions"),
      figure(count(o.expired), "expired since the start"));
    const { process_resident_bytes: resident, budget_bytes: budget, pool_used_bytes: used, pool_bytes: pool } = o.memory;
    const meter = (part, whole) => element("meter", { class: "meter", min: "0", max: "1", high: "0.9", value: String(share(part, whole)) });
    memory.replaceChildren(
      element("div", {}, `${bytes(resident)} in memory of ${bytes(budget)} at every bound`), meter(resident, budget),
      element("div", {}, `${bytes(used)} of the pool of ${bytes(pool)}`), meter(used, pool));
    workers.replaceChildren(table(
      [column("Worker"), column("Connections", "number"), column("Devices", "number"), column("Handshakes", "number"), column("Waiting", "number"), column("Longest wait", "number"), column("Late by", "number")],
      o.workers.map((worker) => [String(worker.worker), count(worker.connections), count(worker.devices), count(worker.handshakes_in_flight), count(worker.handshakes_waiting), `${count(worker.handshakes_longest_wait_ms)} ms`,
        element("span", { class: worker.loop_lateness_ms > 100 ? "bad" : "" }, `${worker.loop_lateness_ms.toFixed(1)} ms`)]), "None."));
    reasons.refused.replaceChildren(byReason("refused"));
    reasons.closed.replaceChildren(byReason("closed"));
    draw();
  };
  return { update, end: () => { scheme.removeEventListener("change", redraw); resized.disconnect(); redraw(); charts.forEach((chart) => chart.plot?.destroy()); } };
}

const clock = (seconds) => new Date(seconds * 1000).toTimeString().slice(0, 8);

function plot(chart, data) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const colours = ["--accent", "--series-2", "--series-3"].map(colour);
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
  const digits = (value) => (value === null || value === undefined ? "–" : `${value.toFixed(value < 10 ? 1 : 0)}${chart.unit}`);
  return new uPlot({
    width: chart.place.clientWidth || 320, height: 170, cursor: { drag: { x: false, y: false } },
    scales: { y: { range: (_, low, high) => [0, Math.max(1, high ?? 1) * 1.1] } },
    axes: [{ ...axis, space: 70, values: (_, times) => times.map(clock) }, { ...axis, size: 56 }],
    series: [{ value: (_, time) => clock(time ?? Date.now() / 1000) }, ...chart.keys.map(([, label], index) => ({
      label, stroke: colours[index], width: 2, points: { show: false }, value: (plotted, value, series) => digits(value ?? plotted.data[series].at(-1)),
    }))],
  }, data, chart.place);
}

function devicesView() {
  const rows = element("div");
  const search = element("input", { type: "search", placeholder: "Id begins with…", "aria-label": "Id begins with", maxlength: "512" });
  const next = element("button", { type: "button", class: "plain" }, "Next");
  const outcome = element("p", { class: "outcome" });
  const blocks = element("div");
  let after = null;
  const load = async (from) => {
    try {
      const query = new URLSearchParams({ limit: String(ROWS), prefix: search.value, after: from ?? "" });
      const page = await ask("GET", `/v1/devices?${query}`);
      after = page.next;
      next.disabled = after === null;
      outcome.textContent = "";
      rows.replaceChildren(table(
        [column("Device", "name"), column("State"), column("Protocol"), column("Listener"), column("Address"), column("Connected"), column("Heard"), column("Round trip", "number")],
        page.devices.map((device) => [element("a", { href: `#/device/${encodeURIComponent(device.id)}` }, device.id), device.state, device.protocol, device.listener, device.peer ?? "–", ago(device.connected_at), ago(device.last_heard),
          device.round_trip_ms === null ? "–" : `${device.round_trip_ms.toFixed(1)} ms`]), "No device whose id begins so is connected."));
    } catch (error) {
      outcome.textContent = error.message;
    }
  };
  const loadBlocks = async () => blocks.replaceChildren(await blockTable(loadBlocks));
  next.addEventListener("click", () => load(after));
  const form = element("form", { onsubmit: (event) => { event.preventDefault(); load(null); } }, search, element("button", { type: "submit" }, "Search"),
    element("button", { type: "button", class: "plain", onclick: () => { if (search.value !== "") location.hash = `#/device/${encodeURIComponent(search.value)}`; } }, "Open this id"));
  view().replaceChildren(element("div", { class: "cards" }, wide(section("Devices", form, outcome, rows, element("div", { class: "row" }, next))), wide(section("Kept out", blocks))));
  load(null);
  loadBlocks();
  return {};
}

async function blockTable(again) {
  let told;
  try {
    told = (await ask("GET", "/v1/blocks")).blocks;
  } catch (error) {
    return element("p", { class: "bad" }, error.message);
  }
  const letIn = (block) => {
    if (!may("admin") || block.source !== "api") return "";
    const subject = block.device === undefined ? { network: block.network } : { device: block.device };
    return element("button", { type: "button", class: "plain", onclick: async () => { await attempt(() => ask("DELETE", "/v1/blocks", subject)); again(); } }, "Let in again");
  };
  return table([column("Device or network", "name"), column("Until"), column("By"), column("")],
    told.map((block) => [block.device ?? block.network, block.until ?? "for good", block.source === "file" ? "deny_file" : "API", letIn(block)]), "Nobody is kept out.");
}

/** Does something that may be refused, and says so. */
async function attempt(act, place) {
  try {
    const told = await act();
    if (place) [place.textContent, place.className] = [told?.outcome ?? "done", "outcome good"];
    return true;
  } catch (error) {
    if (error.status === 401) return signIn("Your token is not taken any more.");
    if (place) [place.textContent, place.className] = [error.message, "outcome bad"];
    else say(error.message, true);
    return false;
  }
}

function deviceView(id) {
  const facts = element("div");
  const session = element("div");
  const ends = element("div");
  const live = element("div", { class: "events", "aria-live": "off" });
  const ended = new AbortController();
  const load = async () => {
    try {
      const device = await ask("GET", devicePath(id), undefined, ended.signal);
      facts.replaceChildren(pairs(deviceFacts(device)));
      session.replaceChildren(...sessionParts(device));
    } catch (error) {
      if (error.name === "AbortError") return;
      facts.replaceChildren(element("p", { class: error.status === 404 ? "quiet" : "bad" }, error.status === 404 ? "Not connected now." : error.message));
      session.replaceChildren();
    }
  };
  const loadEnds = async () => {
    try {
      const told = await ask("GET", `${devicePath(id)}/history`, undefined, ended.signal);
      ends.replaceChildren(table([column("When"), column("Reason"), column("What it means, and what to do")],
        told.ends.map((end) => [end.at, end.reason, element("div", {}, end.detail ? element("div", {}, end.detail) : null, element("div", {}, end.meaning), element("div", { class: "quiet" }, end.remedy))]),
        "Nothing is remembered: it has not left, nor failed since the gateway started."));
    } catch (error) {
      if (error.name !== "AbortError") ends.replaceChildren(element("p", { class: "bad" }, error.message));
    }
  };
  view().replaceChildren(element("h1", {}, id), element("div", { class: "cards" },
    section("Connection", facts), section("MQTT session", session), ...deviceActions(id, () => { load(); loadEnds(); }),
    wide(section("Last ends", ends)), wide(section("As it happens", live))));
  load();
  loadEnds();
  const timer = setInterval(() => { if (!document.hidden) load(); }, 3000);
  follow(new URLSearchParams({ device: id }), ended.signal, (event) => { showEvent(live, event); if (event.kind === "disconnected") loadEnds(); });
  return { end: () => { clearInterval(timer); ended.abort(); } };
}

const pairs = (facts) => element("dl", {}, facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));

const deviceFacts = (device) => [
  ["State", device.state === "heard" ? "heard" : "silent, asked whether it lives"],
  ["Identity from", device.identity],
  ["Address", device.peer ?? "–"],
  ["Listener", `${device.listener} (${device.protocol})`],
  ["TLS", `${device.tls_version}, ${device.tls_suite}`],
  ["Connected", `${device.connected_at} (${ago(device.connected_at)})`],
  ["Last heard", ago(device.last_heard)],
  ["Round trip", device.round_trip_ms === null ? "not measured yet" : `${device.round_trip_ms.toFixed(1)} ms`],
  ["Generation", `${device.generation}, worker ${device.worker}`],
];

function sessionParts(device) {
  const session = device.session;
  if (session === null) return [element("p", { class: "quiet" }, "It speaks no MQTT.")];
  const facts = [
    ["Version", session.version],
    ["Keep-alive", session.keep_alive_s === 0 ? "none" : `${session.keep_alive_s} s`],
    ["Kept for", session.expiry_s === null ? "ever" : session.expiry_s === 0 ? "as long as it is connected" : span(session.expiry_s)],
    ["In flight", count(session.inflight)],
    ["Queue", `${count(session.queued)} messages, ${bytes(session.queued_bytes)}`],
  ];
  return [pairs(facts), table([column(`Filters (${count(session.subscription_count)})`, "name"), column("QoS", "number")], session.subscriptions.map(({ filter, qos }) => [filter, String(qos)]), "It has subscribed to nothing.")];
}

function deviceActions(id, again) {
  if (!may("command")) return [section("Commands", element("p", { class: "quiet" }, "Your token may look only."))];
  const outcome = element("p", { class: "outcome", role: "status" });
  const topic = element("input", { type: "text", placeholder: "Topic", "aria-label": "Topic", maxlength: "255" });
  const payload = element("textarea", { placeholder: "Payload", "aria-label": "Payload", maxlength: "65535" });
  const ack = element("input", { type: "checkbox", id: "ack" });
  const send = async (event) => {
    event.preventDefault();
    outcome.textContent = "…";
    await attempt(() => ask("POST", `${devicePath(id)}/messages`, { topic: topic.value, payload: payload.value, ack: ack.checked }), outcome);
  };
  const disconnect = async () => {
    if (confirm(`Disconnect ${id}? It may come back at once.`)) await attempt(() => ask("DELETE", `${devicePath(id)}/connection`), outcome) && again();
  };
  const form = element("form", { onsubmit: send }, topic, payload, element("label", { for: "ack" }, ack, " wait for its acknowledgement"), element("button", { type: "submit" }, "Send"));
  const buttons = [element("button", { type: "button", class: "danger", onclick: disconnect }, "Disconnect")];
  if (may("admin")) {
    const blockFor = element("input", { type: "text", placeholder: "for, such as 1h (else until a restart)", "aria-label": "Block for", maxlength: "40" });
    const block = async () => {
      const order = blockFor.value.trim() === "" ? { device: id } : { device: id, for: blockFor.value.trim() };
      if (confirm(`Keep ${id} out?`)) await attempt(() => ask("POST", "/v1/blocks", order), outcome) && again();
    };
    buttons.push(blockFor, element("button", { type: "button", class: "danger", onclick: block }, "Block"));
  }
  return [section("Commands", form, element("div", { class: "row" }, buttons), outcome)];
}

function showEvent(place, event) {
  const what = {
    connected: () => `from ${event.peer ?? "?"} through ${event.listener}`,
    disconnected: () => [event.cause, event.detail].filter(Boolean).join(": "),
    message: () => `${event.topic}: ${event.payload ?? `${event.payload_base64} (base64)`}`.slice(0, 400),
    missed: () => (event.count === null ? "the gateway was started anew" : `${event.count} events are gone`),
    lagged: () => `${event.count} events came too fast for this page`,
  }[event.kind];
  const device = event.device === undefined ? null : element("a", { href: `#/device/${encodeURIComponent(event.device)}` }, event.device);
  place.prepend(element("div", {}, element("span", { class: "quiet" }, event.at ?? ""), ` ${event.kind} `, device, ` ${what ? what() : ""}`));
  while (place.childElementCount > EVENTS_SHOWN) place.lastElementChild.remove();
}

function eventsView() {
  const live = element("div", { class: "events", "aria-live": "off" });
  const kinds = element("select", { "aria-label": "Kinds" }, [["connected,disconnected", "who comes and goes"], ["disconnected", "who goes"], ["message", "what devices say"], ["connected,disconnected,message", "everything"]]
    .map(([value, text]) => element("option", { value }, text)));
  let ended = null;
  // In a storm thousands come in a second: the latest are shown, a few times a second.
  let waiting = [];
  const flush = setInterval(() => { waiting.splice(0).slice(-EVENTS_SHOWN).forEach((event) => showEvent(live, event)); }, 250);
  const begin = () => {
    ended?.abort();
    ended = new AbortController();
    live.replaceChildren();
    waiting = [];
    follow(new URLSearchParams({ kind: kinds.value }), ended.signal, (event) => { if (waiting.push(event) > 2 * EVENTS_SHOWN) waiting = waiting.slice(-EVENTS_SHOWN); });
  };
  kinds.addEventListener("change", begin);
  view().replaceChildren(section("As it happens", element("div", { class: "row" }, kinds), live));
  begin();
  return { end: () => { clearInterval(flush); ended.abort(); } };
}

function listenersView() {
  const rows = element("div");
  view().replaceChildren(section("Listeners and certificates", rows));
  const update = () => {
    if (known.overview === null) return;
    const chain = ({ names, not_after, days_left }) => element("div", { class: days_left < 0 ? "bad" : days_left < 14 ? "warn" : "" }, `${names.join(" ") || "(no name)"}: ${days_left < 0 ? "ended" : `${count(days_left)} days left`}, ${not_after}`);
    rows.replaceChildren(table([column("Listener", "name"), column("Protocol"), column("Transport"), column("Address"), column("Certificates", "name")],
      known.overview.listeners.map((listener) => [listener.name, listener.protocol, listener.path === null ? listener.transport : `${listener.transport} ${listener.path}`, listener.address, element("div", {}, listener.certificates.map(chain))]), "None."));
  };
  update();
  return { update };
}

function uplinkView() {
  const rows = element("div");
  const sinks = element("div");
  const outcome = element("p", { class: "outcome", role: "status" });
  view().replaceChildren(element("div", { class: "cards" }, wide(section("Consumers of the uplink", rows)), wide(section("Sinks", sinks, outcome))));
  const load = async () => {
    try {
      const told = await ask("GET", "/v1/uplink/consumers");
      rows.replaceChildren(
        table([column("Consumer", "name"), column("Cursor", "number"), column("Behind", "number"), column("Missed", "number"), column("Oldest waits", "number")],
          told.consumers.map((consumer) => [consumer.name, count(consumer.cursor), count(consumer.behind), element("span", { class: consumer.missed > 0 ? "bad" : "" }, count(consumer.missed)), span(consumer.lag_s)]), "There is no consumer yet: GET /v1/uplink makes one."),
        element("p", { class: "quiet" }, told.first === null ? "No event is held." : `Events ${count(told.first)} to ${count(told.last)} are held.`));
      sinks.replaceChildren(sinkTable((await ask("GET", "/v1/sinks")).sinks, load, outcome));
    } catch (error) {
      rows.replaceChildren(element("p", { class: "quiet" }, error.message));
    }
  };
  load();
  const timer = setInterval(() => { if (!document.hidden) load(); }, 3000);
  return { end: () => clearInterval(timer) };
}

function sinkTable(sinks, again, outcome) {
  const act = (sink) => {
    if (!may("admin")) return "";
    const way = sink.state === "paused" ? "resume" : "pause";
    return element("button", { type: "button", class: "plain", onclick: async () => { await attempt(() => ask("POST", `/v1/sinks/${encodeURIComponent(sink.name)}/${way}`, {}), outcome); again(); } }, way === "pause" ? "Pause" : "Resume");
  };
  const state = (sink) => element("div", { class: sink.state === "running" ? "good" : sink.state === "paused" ? "warn" : "bad" }, sink.error === null ? sink.state : `${sink.state}: ${sink.error}`);
  return table([column("Sink", "name"), column("Type"), column("Target", "name"), column("State", "name"), column("Behind", "number"), column("Missed", "number"), column("Oldest waits", "number"), column("Sent", "number"), column("Failed", "number"), column("")],
    sinks.map((sink) => [sink.name, sink.type, sink.target, state(sink), count(sink.behind), count(sink.missed), span(sink.lag_s), count(sink.sent), count(sink.failed), act(sink)]), "No sink is configured.");
}

function fleetView() {
  const here = element("div");
  const devices = element("div");
  const published = element("div");
  view().replaceChildren(element("div", { class: "cards" }, wide(section("This gateway in its fleet", here)), section("Devices", devices), section("What other gateways publish", published)));
  const marked = (number) => element("span", { class: number > 0 ? "bad" : "" }, count(number));
  const load = async () => {
    try {
      const told = await ask("GET", "/v1/fleet");
      here.replaceChildren(pairs([
        ["NATS", element("span", { class: told.state === "connected" ? "good" : "bad" }, `${told.state} for ${span(told.for_s)}`)],
        ["Why", told.error ?? "–"],
        ["Name, prefix", `${told.node}, ${told.prefix}`],
        ["Server", told.server ?? "–"],
        ["What is written", told.promise ?? "–"],
      ]));
      devices.replaceChildren(pairs([
        ["known to be here", count(told.devices.claimed)],
        ["to be told yet", count(told.devices.waiting)],
        ["taken over from others", count(told.takeovers.won)],
        ["taken over by others", count(told.takeovers.lost)],
        ["told to wait in a fight", count(told.takeovers.damped)],
      ]));
      published.replaceChildren(pairs([
        ["subjects read", count(told.publications.subjects)],
        ["given to subscribers", count(told.publications.taken)],
        ["behind", count(told.publications.behind)],
        ["missed", marked(told.publications.missed)],
        ["Why not", told.publications.error ?? "–"],
      ]));
    } catch (error) {
      here.replaceChildren(element("p", { class: "quiet" }, error.message));
    }
  };
  load();
  const timer = setInterval(() => { if (!document.hidden) load(); }, 3000);
  return { end: () => clearInterval(timer) };
}

// ---- Where one is -------------------------------------------------------------------------------------------------------------

let current = {};

function route() {
  if (known.role === null) return;
  const [, place, ...rest] = (location.hash || "#/").split("/");
  current.end?.();
  current = {};
  document.querySelectorAll("nav a").forEach((link) => {
    const target = link.getAttribute("href").split("/")[1];
    if (target === place || (target === "devices" && place === "device")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  let id = "";
  try {
    id = decodeURIComponent(rest.join("/"));
  } catch {
    id = rest.join("/");
  }
  const views = { "": overviewView, devices: devicesView, device: () => deviceView(id), events: eventsView, listeners: listenersView, uplink: uplinkView, fleet: fleetView };
  current = (views[place] ?? overviewView)() ?? {};
  current.update?.();
}

function signIn(why) {
  sessionStorage.removeItem(TOKEN);
  current.end?.();
  [current, known.role] = [{}, null];
  byId("sign-out").hidden = true;
  const token = element("input", { type: "password", autocomplete: "off", "aria-label": "Admin token", placeholder: "Admin token", required: true });
  const outcome = element("p", { class: "outcome bad", role: "alert" }, why ?? "");
  const enter = async (event) => {
    event.preventDefault();
    sessionStorage.setItem(TOKEN, token.value.trim());
    await begin();
  };
  view().replaceChildren(element("div", { class: "sign-in" }, section("Sign in", element("p", {}, "The gateway asks for a token (admin.token). It is kept in this tab alone, and forgotten with it."),
    element("form", { onsubmit: enter }, token, element("button", { type: "submit" }, "Sign in")), outcome)));
  say("not signed in");
  token.focus();
  return false;
}

async function begin() {
  try {
    known.role = (await ask("GET", "/v1/whoami")).role;
  } catch (error) {
    if (error.status === 401) return signIn(sessionStorage.getItem(TOKEN) === null ? "" : "This token is not right.");
    say(error.message, true);
    setTimeout(begin, 3000);
    return false;
  }
  byId("sign-out").hidden = sessionStorage.getItem(TOKEN) === null;
  route();
  look();
  return true;
}

addEventListener("hashchange", () => { route(); scrollTo(0, 0); view().focus({ preventScroll: true }); });
document.addEventListener("visibilitychange", look);
byId("sign-out").addEventListener("click", () => signIn("You are signed out."));
setInterval(look, LOOK_EVERY_MS);
begin();
