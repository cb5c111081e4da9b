// The example page examples/browser in a real browser: served by a web server of its own, a device at the gateway by mqtt.js.
//
//   node browser.mjs URL_OF_THE_LISTENER PORT_OF_THE_WEB_SERVER
import { createRequire } from "node:module";
import { createServer } from "node:http";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import assert from "node:assert/strict";

const require = createRequire(process.env.NODE_PATH + "/");
const { chromium } = require("playwright-core");
const [gateway, port] = process.argv.slice(2);
const files = {
  "/": [join(process.env.EXAMPLES, "browser/index.html"), "text/html"],
  "/device.js": [join(process.env.EXAMPLES, "browser/device.js"), "text/javascript"],
  "/mqtt.min.js": [join(process.env.NODE_PATH, "mqtt/dist/mqtt.min.js"), "text/javascript"],
};
const server = createServer((request, answer) => {
  const [path, kind] = files[request.url] ?? [];
  answer.writeHead(path ? 200 : 404, { "content-type": kind ?? "text/plain" }).end(path ? readFileSync(path) : "");
});
await new Promise((resolve) => server.listen(Number(port), "127.0.0.1", resolve));

const executablePath = ["/usr/bin/chromium", "/usr/bin/chromium-browser"].find(existsSync);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"] });
// The gateway's certificate is one for development.
const context = await browser.newContext({ ignoreHTTPSErrors: true });

async function open(host) {
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  await page.goto(`http://${host}:${port}/`);
  await page.getByLabel("Gateway").fill(gateway);
  await page.getByRole("button", { name: "Connect" }).click();
  return page;
}

const page = await open("localhost");
await page.getByText("connected as browser-1").waitFor();
await page.getByRole("button", { name: "Publish" }).click();
await page.getByText("the gateway has it").waitFor();
// It has subscribed to what is its own, so it hears itself; and what the gateway is told to say.
await page.getByText("devices/browser-1/power: 230").waitFor();
console.log("published");
await page.getByText("devices/browser-1/set: on").waitFor();
// A page of another origin is not let in.
const stranger = await open("127.0.0.1");
await stranger.waitForTimeout(3_000);
assert.equal(await stranger.locator("#state").textContent().then((text) => text.startsWith("connected")), false);
await browser.close();
server.close();
console.log("done");
