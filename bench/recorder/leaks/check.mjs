// Checks the leak corpus. Runs at the end of leaks.mjs and alone:
// node leaks/check.mjs

import assert from 'node:assert/strict';
import { readFile, readdir } from 'node:fs/promises';
import { pathToFileURL } from 'node:url';

import { LEAKS_DIR, LEAKS_MANIFEST_FILE, readRecording } from '../recordings.mjs';

const MAX_CORPUS_BYTES = 400 * 1000;
const MANY_BATCHES = 6;
const MIN_LONG_CASES = 6;

const META = 4;
const FULL_SNAPSHOT = 2;

// A text as it can stand in a recording: as it is, as JSON writes it (once, or
// twice where JSON stands in a string), and percent-encoded.
function formsOf(text) {
  const json = (value) => JSON.stringify(value).slice(1, -1);
  return [...new Set([text, json(text), json(json(text)), encodeURIComponent(text), encodeURI(text)])];
}

export const occurs = (text, recording) => formsOf(text).some((form) => recording.includes(form));

export function figures(batches) {
  const events = batches.flatMap((batch) => batch.events);
  return {
    streams: new Set(batches.map((batch) => batch.stream)).size,
    batches: batches.length,
    events: events.length,
    full_snapshots: events.filter((event) => event.type === FULL_SNAPSHOT).length,
  };
}

function checkStream(label, batches) {
  batches.forEach((batch, i) => {
    assert.equal(batch.seq, i, `${label}: batch ${i} has seq ${batch.seq}`);
    assert.equal(batch.end, i === batches.length - 1, `${label}: end is wrong in batch ${i}`);
    assert.ok(Number.isInteger(batch.offset_ms) && batch.offset_ms >= 0, `${label}: offset_ms of batch ${i}`);
  });
  const start = batches.flatMap((batch) => batch.events).slice(0, 2).map((event) => event.type);
  assert.deepEqual(start, [META, FULL_SNAPSHOT], `${label}: starts with ${start}`);
}

function checkCase({ name, secrets, kept, ...entry }, { text, batches }) {
  for (const stream of new Set(batches.map((batch) => batch.stream))) {
    checkStream(`${name}/${stream}`, batches.filter((batch) => batch.stream === stream));
  }
  const stated = Object.fromEntries(Object.keys(figures([])).map((key) => [key, entry[key]]));
  assert.deepEqual(stated, figures(batches), `${name}: the manifest states other figures`);

  assert.ok(secrets.length > 0, `${name}: no secret`);
  assert.ok(kept.length > 0, `${name}: nothing that is kept`);
  for (const secret of secrets) assert.ok(occurs(secret, text), `${name}: does not leak ${secret}`);
  for (const marker of kept) assert.ok(occurs(marker, text), `${name}: does not have ${marker}`);
  // What is kept says nothing if a secret is part of it.
  for (const marker of kept) assert.ok(!secrets.some((secret) => marker.includes(secret)), `${name}: ${marker}`);
}

export async function checkLeaks() {
  const { cases } = JSON.parse(await readFile(LEAKS_MANIFEST_FILE, 'utf8'));
  const files = (await readdir(LEAKS_DIR)).filter((file) => file.endsWith('.ndjson.gz'));
  const listed = cases.map(({ name }) => `${name}.ndjson.gz`);
  assert.deepEqual(files.toSorted(), listed.toSorted(), 'manifest and files differ');

  const recordings = new Map();
  for (const { name } of cases) recordings.set(name, await readRecording(name, LEAKS_DIR));
  for (const entry of cases) checkCase(entry, recordings.get(entry.name));

  for (const { name, secrets, kept } of cases) {
    for (const [other, { text }] of recordings) {
      if (other === name) continue;
      const strange = [...secrets, ...kept].find((marker) => occurs(marker, text));
      assert.equal(strange, undefined, `${other}: has a text of ${name}`);
    }
  }

  const long = cases.filter((entry) => entry.batches >= MANY_BATCHES && entry.full_snapshots > 1);
  assert.ok(long.length >= MIN_LONG_CASES, `only ${long.length} cases have many batches and a later snapshot`);
  const sum = (key) => cases.reduce((all, entry) => all + entry[key], 0);
  const bytes = [...recordings.values()].reduce((all, { compressedBytes }) => all + compressedBytes, 0)
    + (await readFile(LEAKS_MANIFEST_FILE)).length;
  assert.ok(bytes <= MAX_CORPUS_BYTES, `${bytes} bytes are too many`);
  return {
    cases: cases.length,
    long_cases: long.length,
    secrets: cases.reduce((all, { secrets }) => all + secrets.length, 0),
    kept: cases.reduce((all, { kept }) => all + kept.length, 0),
    batches: sum('batches'),
    events: sum('events'),
    bytes,
  };
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  console.log('leaks are sound:', await checkLeaks());
}
