// A device in a browser: MQTT 5 over WebSocket with mqtt.js. It comes back by itself, with its session.
"use strict";

const byId = (id) => document.getElementById(id);
let client = null;

function connect(url, id, username, password) {
  client?.end(true);
  client = mqtt.connect(url, {
    protocolVersion: 5,
    clientId: id,
    username: username || undefined,
    password: password || undefined,
    keepalive: 30,
    // The session outlives a connection, so that nothing is missed while the page has none.
    clean: false,
    properties: { sessionExpiryInterval: 3600 },
    reconnectPeriod: 2000,
  });
  client.on("connect", () => {
    byId("state").textContent = `connected as ${id}`;
    client.subscribe(`devices/${id}/#`, { qos: 1 });
  });
  client.on("close", () => { byId("state").textContent = "not connected"; });
  client.on("error", (error) => { byId("state").textContent = error.message; });
  client.on("message", (topic, payload) => {
    const item = document.createElement("li");
    item.textContent = `${topic}: ${payload}`;
    byId("heard").prepend(item);
  });
}

byId("connect").addEventListener("submit", (event) => {
  event.preventDefault();
  const { url, id, username, password } = event.target.elements;
  connect(url.value, id.value, username.value, password.value);
});

byId("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const { topic, payload } = event.target.elements;
  client?.publish(topic.value, payload.value, { qos: 1 }, (error) => {
    byId("state").textContent = error ? error.message : "the gateway has it";
  });
});
