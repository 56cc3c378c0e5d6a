// The page / of the service at argv[2], whose key is argv[3], in a real browser with the keyboard
// alone: prints what a person reads there, and what went wrong. A picture of the page at each of
// two widths goes into the folder argv[4].

import { openPage } from "./browser.mjs";

const [, , url, key, folder] = process.argv;
const { browser, page, problems, requests } = await openPage();
page.setDefaultTimeout(30_000);

// Tab to the control with this id, as somebody without a mouse does.
async function tabTo(id) {
  for (let presses = 0; presses < 40; presses++) {
    await page.keyboard.press("Tab");
    if ((await page.evaluate(() => document.activeElement.id)) === id) return;
  }
  throw new Error(`no way to ${id} with the Tab key`);
}
const textOf = (id) => page.locator(`#${id}`).innerText();
const says = (id, pattern) =>
  page.waitForFunction(
    ([id, source]) => new RegExp(source).test(document.getElementById(id).textContent),
    [id, pattern],
  );
const overflow = () =>
  page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);

await page.setViewportSize({ width: 360, height: 740 });
await page.goto(url);
await page.locator("#key-section").waitFor();
const before = await textOf("models-error");
await tabTo("key");
await page.keyboard.type("wrong");
await page.keyboard.press("Enter");
await says("key-error", "API key");
const refused = await textOf("key-error");
await tabTo("key");
await page.keyboard.type(key);
await page.keyboard.press("Enter");
await page.locator("#chat-section").waitFor();

await tabTo("max-tokens");
await page.keyboard.type("12");
await tabTo("message");
await page.keyboard.type("hello");
await page.keyboard.press("Control+Enter");
await says("chat-status", "tokens in");
const first = await textOf("turns");
await page.keyboard.type("and now?");
await tabTo("send");
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.querySelectorAll(".turn").length === 4);
await says("chat-status", "tokens in");
const status = await textOf("chat-status");

await tabTo("first");
await page.keyboard.type("hello");
await tabTo("second");
await page.keyboard.type("hello");
await page.keyboard.press("Tab");
await page.keyboard.press("Enter");
await says("similarity", "similarity");
const narrow = await overflow();
await page.screenshot({ path: `${folder}/narrow.png`, fullPage: true });

// An answer that is stopped keeps what has come; a new conversation begins with nothing.
await tabTo("max-tokens");
await page.keyboard.type("400");
await tabTo("message");
await page.keyboard.type("go on");
await page.keyboard.press("Control+Enter");
await page.waitForFunction(() => !document.getElementById("stop").disabled);
await tabTo("stop");
await page.keyboard.press("Enter");
await says("chat-status", "Stopped");
await page.setViewportSize({ width: 1200, height: 900 });
await page.waitForFunction(() => /Loaded/.test(document.getElementById("models").textContent));
const wide = await overflow();
await page.screenshot({ path: `${folder}/wide.png`, fullPage: true });
const models = await textOf("models");
const links = await page.locator("nav a").evaluateAll((all) => all.map((each) => each.href));
await tabTo("clear");
await page.keyboard.press("Enter");
const turns = await page.locator(".turn").count();
const said = { before, refused, first, status, models, links, turns };
const similarity = await textOf("similarity");
console.log(JSON.stringify({ problems, requests, overflow: [narrow, wide], similarity, ...said }));
await browser.close();
