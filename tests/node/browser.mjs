// Debian's Chromium, or the one that CHROMIUM names, which reaches no machine but this one.

import { chromium } from "playwright-core";

const ARGUMENTS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-background-networking",
  "--disable-sync",
  "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
];

// An empty page, and lists that fill up with what it asks for and with what goes wrong on it.
export async function openPage() {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  const browser = await chromium.launch({ executablePath, args: ARGUMENTS });
  const page = await browser.newPage();
  const problems = [];
  const requests = [];
  // At once on stderr, too, as a step that waits in vain for something prints nothing else.
  const note = (problem) => {
    problems.push(problem);
    console.error(problem);
  };
  page.on("console", (message) => note(message.text()));
  page.on("pageerror", (error) => note(String(error)));
  page.on("request", (request) => requests.push(request.url()));
  page.on("requestfailed", (request) => note(`failed: ${request.url()}`));
  page.on("response", (response) => {
    if (response.status() >= 400) note(`${response.status()}: ${response.url()}`);
  });
  return { browser, page, problems, requests };
}
