// The page /docs of the service at argv[2], whose key is argv[3], in a real browser: prints the
// operations that a person sees there, what trying one of them shows, and what went wrong.

import { openPage } from "./browser.mjs";

const { browser, page, problems, requests } = await openPage();
page.setDefaultTimeout(20_000);
await page.goto(`${process.argv[2]}/docs`);

const rows = page.locator(".opblock-summary:visible");
await rows.first().waitFor();
const operations = await rows.evaluateAll((found) =>
  found.map((row) => [
    row.querySelector(".opblock-summary-method").innerText,
    row.querySelector(".opblock-summary-path").dataset.path,
  ]),
);

await page.locator(".btn.authorize").first().click();
await page.locator(".auth-container input").fill(process.argv[3]);
await page.locator(".auth-container button[type=submit]").click();
await page.locator(".btn-done").click();

const models = page.locator(".opblock", { has: page.locator('[data-path="/v1/models"]') });
await models.locator(".opblock-summary").click();
await models.locator(".try-out__btn").click();
await models.locator("button.execute").click();
const answer = models.locator(".live-responses-table .response");
const tried = {
  status: await answer.locator(".response-col_status").first().innerText(),
  text: await answer.locator(".response-col_description").first().innerText(),
};
console.log(JSON.stringify({ problems, requests, operations, tried }));
await browser.close();
