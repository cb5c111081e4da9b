// Does with the page what people do, in a real browser, and fails where it is not as it must be.
//
//   node page.mjs URL TOKEN_READ TOKEN_ADMIN HOSTILE_ID [DIRECTORY_FOR_IMAGES]
import { createRequire } from "node:module";
import { existsSync } from "node:fs";
import assert from "node:assert/strict";

const { chromium } = createRequire(process.env.NODE_PATH + "/")("playwright-core");
const [url, reader, admin, hostile, images] = process.argv.slice(2);
const executablePath = ["/usr/bin/chromium", "/usr/bin/chromium-browser"].find(existsSync);
assert(executablePath, "chromium is installed");
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"] });
const step = (what) => console.log(what);

async function open(options) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  // A refusal by the page's policy is an error on the console; a script of a stranger would open a dialog.
  page.on("console", (message) => { if (message.type() === "error" && !/ 40[134] /.test(message.text())) fail(`console: ${message.text()}`); });
  page.on("pageerror", (error) => fail(`script: ${error.stack}`));
  page.on("dialog", (dialog) => (dialog.type() === "confirm" ? dialog.accept() : fail(`dialog: ${dialog.message()}`)));
  page.on("request", (request) => { if (!request.url().startsWith(url)) fail(`it asks somebody else: ${request.url()}`); });
  await page.goto(url + "/");
  return page;
}

function fail(what) {
  console.log(what);
  process.exit(1);
}

async function signIn(page, token) {
  await page.getByLabel("Admin token").fill(token);
  await page.getByRole("button", { name: "Sign in" }).click();
}

const shot = (page, name) => (images ? page.screenshot({ path: `${images}/${name}.png`, fullPage: name !== "page-phone" }) : null);
const card = (page, title) => page.locator("section").filter({ has: page.getByRole("heading", { name: title, exact: true }) });

step("a wrong token is told so, a right one shows the overview");
let page = await open({ colorScheme: "light" });
await signIn(page, "a token that is not right");
await page.getByText("This token is not right.").waitFor();
await signIn(page, reader);
await page.getByText("read-only").waitFor();
assert.equal(await page.locator("#node").textContent(), "edge-7");
for (const title of ["New connections a second", "Handshakes", "Heartbeats and expiry late by (worst of 10 s)", "Memory of the process"]) {
  const canvas = card(page, title).locator("canvas");
  await canvas.waitFor();
  assert((await canvas.boundingBox()).width > 200, title);
}
await card(page, "Now").getByText("connections of ").waitFor();
assert.match(await card(page, "Workers").innerText(), /0\.\d ms|\d+\.\d ms/);

step("who may only look gets nothing to command with");
await page.getByRole("link", { name: "Devices" }).click();
await page.getByRole("link", { name: hostile, exact: true }).click();
await page.getByText("Your token may look only.").waitFor();
assert.equal(await page.getByRole("button", { name: "Disconnect" }).count(), 0);
assert.equal(await page.locator("h1").textContent(), hostile);
assert.equal(await page.locator("main img").count(), 0);
await card(page, "Connection").getByText("TLSv1.3").waitFor();
await page.getByRole("button", { name: "Sign out" }).click();
await page.getByText("You are signed out.").waitFor();

step("who may more commands devices");
await signIn(page, admin);
await page.getByLabel("Topic").fill("from/page");
await page.getByLabel("Payload").fill("<b>hello</b>");
await page.getByRole("button", { name: "Send" }).click();
await page.getByRole("status").filter({ hasText: "delivered" }).waitFor();
await page.getByRole("button", { name: "Disconnect" }).click();
await card(page, "Last ends").getByText("requested").waitFor();
await card(page, "As it happens").getByText("disconnected").waitFor();
await page.getByText("Not connected now.").waitFor();
await page.getByLabel("Block for").fill("1h");
await page.getByRole("button", { name: "Block" }).click();
await page.getByText("done").waitFor();
await page.getByRole("link", { name: "Devices" }).click();
await card(page, "Kept out").getByText(hostile).waitFor();
await card(page, "Kept out").getByRole("button", { name: "Let in again" }).click();
await card(page, "Kept out").getByText("Nobody is kept out.").waitFor();

step("a device that speaks MQTT: its session, a message that it acknowledges, what it says");
await page.getByLabel("Id begins with").fill("demo-mqtt");
await page.getByRole("button", { name: "Search" }).click();
await page.locator("tbody tr").nth(1).waitFor();
await page.waitForFunction(() => [...document.querySelectorAll("tbody td:first-child a")].every((link) => link.textContent.startsWith("demo-mqtt")));
await shot(page, "page-devices");
await page.getByRole("link", { name: "demo-mqtt-1", exact: true }).click();
await card(page, "MQTT session").getByText("devices/demo-mqtt-1/#").waitFor();
await page.getByLabel("Topic").fill("devices/demo-mqtt-1/set");
await page.getByLabel("Payload").fill("on");
await page.getByLabel("wait for its acknowledgement").check();
await page.getByRole("button", { name: "Send" }).click();
await page.getByRole("status").filter({ hasText: "acknowledged" }).waitFor();
await card(page, "As it happens").getByText("devices/demo-mqtt-1/power").first().waitFor();
await shot(page, "page-device");

step("events, listeners with the days of their certificates, the uplink");
await page.getByRole("link", { name: "Events" }).click();
await page.getByLabel("Kinds").selectOption("message");
await page.locator(".events a").first().waitFor();
await page.getByRole("link", { name: "Listeners" }).click();
await page.getByText(/localhost.*days left/).first().waitFor();
await page.getByRole("link", { name: "Uplink" }).click();
await page.getByText("There is no consumer yet").waitFor();
await page.getByText("No sink is configured.").waitFor();
assert(await page.getByRole("link", { name: "Fleet" }).isHidden(), "it is alone");
await page.getByRole("link", { name: "Overview" }).click();
await page.waitForTimeout(images ? 12_000 : 0);
await shot(page, "page-overview");

step("dark, and on a phone, where nothing is wider than the screen");
page = await open({ colorScheme: "dark", viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true });
await signIn(page, admin);
await card(page, "Now").getByText("devices", { exact: true }).waitFor();
for (const [hash, text] of [["#/", "Workers"], ["#/devices", "Kept out"], ["#/device/demo-mqtt-1", "Last ends"], ["#/listeners", "Listeners and certificates"]]) {
  await page.evaluate((to) => { location.hash = to; }, hash);
  await page.getByRole("heading", { name: text }).waitFor();
  await page.getByText(/demo-|localhost|Late by/).first().waitFor();
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  assert(width <= 390, `${hash} is ${width} wide`);
}
assert.match(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), /rgb\(16, 22, 28\)/);
await page.evaluate(() => { location.hash = "#/"; });
await page.waitForTimeout(images ? 8_000 : 0);
await shot(page, "page-phone");

await browser.close();
console.log("done");
