// Records the leak corpus, or the cases named on the command line, into
// bench/recordings/leaks: node leaks.mjs [name…]

import { existsSync } from 'node:fs';
import { mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';

import { CONTEXT, launchBrowser } from './browser.mjs';
import { CASES } from './leaks/cases.mjs';
import { checkLeaks, figures, occurs } from './leaks/check.mjs';
import { Visit } from './leaks/visit.mjs';
import { LEAKS_DIR, LEAKS_MANIFEST_FILE, installedVersion, writeRecording } from './recordings.mjs';
import { buildSdk } from './server.mjs';

const AT_ONCE = 3;

async function recordCase(browser, leak, recorder) {
  const context = await browser.newContext(CONTEXT);
  const visit = new Visit(context, leak.name, recorder);
  try {
    const started = Date.now();
    await visit.prepare();
    // A page that breaks leaks less than its case says. Errors that a case
    // makes on purpose carry a secret.
    visit.page.on('pageerror', (error) => {
      const meant = [...visit.secrets].some((secret) => String(error.stack ?? error).includes(secret));
      if (!meant) throw new Error(`${leak.name}: ${error.stack ?? error}`);
    });
    await leak.run(visit);
    await visit.end();
    const lines = visit.batches.map(({ stream, seq, end, sent_at: sentAt, events }) => ({
      stream, seq, end, offset_ms: sentAt - started, events,
    }));
    const text = JSON.stringify(lines);
    const missing = [...visit.secrets, ...visit.kept].filter((marker) => !occurs(marker, text));
    if (missing.length > 0) throw new Error(`not in the recording: ${missing.join(', ')}`);

    await writeRecording(leak.name, lines, LEAKS_DIR);
    return {
      name: leak.name,
      class: leak.class,
      description: leak.description,
      rules: leak.rules,
      secrets: [...visit.secrets],
      kept: [...visit.kept],
      ...figures(lines),
    };
  } finally {
    await context.close();
  }
}

async function recordAll(leaks) {
  const recorder = await buildSdk(path.join(import.meta.dirname, 'leaks', 'recorder.js'));
  const browser = await launchBrowser();
  const entries = [];
  const failed = [];
  try {
    const waiting = [...leaks];
    const work = async () => {
      for (let leak = waiting.shift(); leak; leak = waiting.shift()) {
        try {
          entries.push(await recordCase(browser, leak, recorder));
        } catch (error) {
          failed.push(leak.name);
          console.error(`${leak.name}: ${error.stack}`);
        }
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    return { entries, failed, chromium: browser.version() };
  } finally {
    await browser.close();
  }
}

async function readEntries() {
  if (!existsSync(LEAKS_MANIFEST_FILE)) return [];
  return JSON.parse(await readFile(LEAKS_MANIFEST_FILE, 'utf8')).cases;
}

async function writeManifest(recorded, versions) {
  const entries = new Map([...await readEntries(), ...recorded].map((entry) => [entry.name, entry]));
  const cases = CASES.map(({ name }) => entries.get(name)).filter(Boolean);
  await writeFile(LEAKS_MANIFEST_FILE, `${JSON.stringify({ ...versions, cases }, null, 1)}\n`);
}

// Recordings of cases that are no more.
async function removeStrangers() {
  const files = (await readdir(LEAKS_DIR)).filter((file) => file.endsWith('.ndjson.gz'));
  const strangers = files.filter((file) => !CASES.some(({ name }) => file === `${name}.ndjson.gz`));
  await Promise.all(strangers.map((file) => rm(path.join(LEAKS_DIR, file))));
}

const wanted = process.argv.slice(2);
const unknown = wanted.filter((name) => !CASES.some((leak) => leak.name === name));
if (unknown.length > 0) throw new Error(`no such case: ${unknown.join(', ')}`);

await mkdir(LEAKS_DIR, { recursive: true });
const { entries, failed, chromium } = await recordAll(
  CASES.filter(({ name }) => wanted.length === 0 || wanted.includes(name)),
);
await writeManifest(entries, { rrweb: await installedVersion('rrweb'), chromium });
await removeStrangers();
if (failed.length > 0) throw new Error(`failed: ${failed.join(', ')}`);
console.log('leaks are sound:', await checkLeaks());
