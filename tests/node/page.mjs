// The page at argv[2] in a real browser: prints what a person sees there, and what went wrong.

import { pathToFileURL } from "node:url";
import { openPage } from "./browser.mjs";

const { browser, page, problems, requests } = await openPage();
await page.goto(pathToFileURL(process.argv[2]).href);

const rows = await page.locator("tbody tr").evaluateAll((found) =>
  found.map((row) => [...row.children].map((cell) => cell.innerText.trim())),
);
const details = page.locator("details").first();
const list = details.locator("ul");
const before = (await list.isVisible()) ? await list.innerText() : "";
await details.locator("summary").click();
const after = await list.innerText();
const title = await page.title();
await page.setViewportSize({ width: 400, height: 800 });
const phone = await page.evaluate(() => ({
  page: document.documentElement.scrollWidth,
  window: window.innerWidth,
}));
if (process.argv[3]) await page.screenshot({ path: process.argv[3], fullPage: true });
console.log(JSON.stringify({ problems, requests, title, rows, before, after, phone }));
await browser.close();
