/**
 * screenshot.ts - the picture of a page that has been open for a while, its first screen:
 *
 *     node --import tsx tests/screenshot.ts URL FILE.png [SECONDS]
 */
import { writeFile } from "node:fs/promises";
import { findChromium, openTab } from "./chromium.ts";
import { cleanUp } from "./helpers.ts";

const [WIDTH, HEIGHT] = [1280, 870];
const CLIP = { x: 0, y: 0, width: WIDTH, height: HEIGHT, scale: 0.75 };
const [url, file, seconds = "60"] = process.argv.slice(2);
const chromium = findChromium();
if (url === undefined || file === undefined || chromium === undefined) {
  console.error("How to Use: node --import tsx tests/screenshot.ts URL FILE.png [SECONDS]");
  console.error("It needs a Chromium.");
  process.exit(2);
}

const tab = await openTab(chromium, url);
await tab.resize(WIDTH, HEIGHT);
await tab.send("Emulation.setScrollbarsHidden", { hidden: true });
await new Promise((resolve) => setTimeout(resolve, Number(seconds) * 1000));
const { data } = await tab.send("Page.captureScreenshot", { format: "png", clip: CLIP });
await writeFile(file, Buffer.from(String(data), "base64"));
await cleanUp();
