// Records all sessions, or those named on the command line, into
// bench/recordings: node record.mjs [name…]

import { existsSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

import { CONTEXT, launchBrowser } from './browser.mjs';
import { check } from './check.mjs';
import {
  MANIFEST_FILE, RECORDINGS_DIR, installedVersion, readManifest, readRecording, summarise, total, writeRecording,
} from './recordings.mjs';
import { SESSION_COOKIE, startServer } from './server.mjs';
import { ORIGIN, SESSIONS } from './sessions.mjs';

const AT_ONCE = 3;
const LAST_BATCH_TIMEOUT_MS = 5000;

// Leaving for an empty page fires pagehide, closing the page at once would not.
async function leavePages(context) {
  for (const page of context.pages()) {
    if (page.url() !== 'about:blank') await page.goto('about:blank');
  }
}

// The beacons of pages left behind arrive in their own time.
async function untilEnded(batches) {
  const giveUp = Date.now() + LAST_BATCH_TIMEOUT_MS;
  for (;;) {
    const ended = new Set(batches.filter((batch) => batch.end).map((batch) => batch.stream));
    const open = batches.find((batch) => !ended.has(batch.stream));
    if (batches.length > 0 && !open) return;
    if (Date.now() > giveUp) throw new Error(`stream ${open?.stream} never ended`);
    await sleep(50);
  }
}

async function recordSession(browser, session, batches) {
  const context = await browser.newContext(CONTEXT);
  await context.addCookies([{ name: SESSION_COOKIE, value: session.name, url: ORIGIN, httpOnly: true }]);
  const started = Date.now();
  await session.run(context);
  await leavePages(context);
  await untilEnded(batches);
  await context.close();

  const lines = batches
    .toSorted((a, b) => a.sent_at - b.sent_at)
    .map(({ stream, seq, end, sent_at: sentAt, events }) => ({
      stream, seq, end, offset_ms: sentAt - started, events,
    }));
  await writeRecording(session.name, lines);
  console.log(`${session.name}: ${lines.length} batches in ${Math.round((Date.now() - started) / 1000)} s`);
}

async function recordAll(sessions) {
  const received = new Map(sessions.map(({ name }) => [name, []]));
  const server = await startServer((name, batch) => received.get(name).push(batch));
  const browser = await launchBrowser([
    `--host-resolver-rules=MAP ${new URL(ORIGIN).hostname} 127.0.0.1:${server.port}`,
  ]);
  try {
    const waiting = [...sessions];
    const work = async () => {
      for (let session = waiting.shift(); session; session = waiting.shift()) {
        await recordSession(browser, session, received.get(session.name));
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    return browser.version();
  } finally {
    await browser.close();
    server.close();
  }
}

async function writeManifest(sessions, versions) {
  const kept = existsSync(MANIFEST_FILE) ? (await readManifest()).recordings : [];
  const entries = new Map(kept.map((recording) => [recording.name, recording]));
  for (const { name, description } of sessions) {
    entries.set(name, { name, description, ...summarise(await readRecording(name)), ...versions });
  }
  const recordings = SESSIONS.map(({ name }) => entries.get(name)).filter(Boolean);
  await writeFile(MANIFEST_FILE, `${JSON.stringify({ total: total(recordings), recordings }, null, 2)}\n`);
}

const wanted = process.argv.slice(2);
const unknown = wanted.filter((name) => !SESSIONS.some((session) => session.name === name));
if (unknown.length > 0) throw new Error(`no such session: ${unknown.join(', ')}`);
const sessions = SESSIONS.filter(({ name }) => wanted.length === 0 || wanted.includes(name));

await mkdir(RECORDINGS_DIR, { recursive: true });
const chromiumVersion = await recordAll(sessions);
await writeManifest(sessions, { rrweb: await installedVersion('rrweb'), chromium: chromiumVersion });
console.log('recordings are sound:', await check());
