// Looks at a gateway of a fleet in a real browser: it is connected; then, when a line comes on standard input, that NATS is away.
//
//   node page.mjs URL
import { createRequire } from "node:module";
import { existsSync } from "node:fs";
import { once } from "node:events";

const { chromium } = createRequire(process.env.NODE_PATH + "/")("playwright-core");
const executablePath = ["/usr/bin/chromium", "/usr/bin/chromium-browser"].find(existsSync);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"] });
const page = await (await browser.newContext()).newPage();
page.setDefaultTimeout(60_000);
page.on("pageerror", (error) => { console.log(error.stack); process.exit(1); });
await page.goto(process.argv[2] + "/");
await page.getByRole("link", { name: "Fleet" }).click();
await page.getByText(/^connected for /).waitFor();
const known = page.locator("dt", { hasText: "known to be here" }).locator("+ dd");
await known.filter({ hasText: /^1$/ }).waitFor();
console.log("connected");
// The test has ended before it said anything: it failed.
process.stdin.on("end", () => process.exit(1));
await once(process.stdin, "data");
await page.getByText(/^away for /).waitFor();
console.log("away");
await browser.close();
process.exit(0);
