// Checks the committed recordings. Runs at the end of record.mjs and alone:
// node check.mjs

import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { pathToFileURL } from 'node:url';

import { RECORDINGS_DIR, readManifest, readRecording, summarise, total } from './recordings.mjs';
import { PRIVATE_TEXTS } from './typed.mjs';

const MAX_COMPRESSED_BYTES = 2 * 1024 * 1024;
const MAX_BATCH_BYTES = 64 * 1024;

const META = 4;
const FULL_SNAPSHOT = 2;
const MUST_OCCUR = [2, 3, 4, 5, 6];
// rrweb announces the page load (0 and 1) before it takes the snapshot, and
// the SDK may announce the page.
const MAY_COME_FIRST = [0, 1, 5];

function checkStream(label, batches) {
  batches.forEach((batch, i) => {
    assert.equal(batch.seq, i, `${label}: batch ${i} has seq ${batch.seq}`);
    assert.equal(batch.end, i === batches.length - 1, `${label}: end is wrong in batch ${i}`);
    assert.ok(Number.isInteger(batch.offset_ms) && batch.offset_ms >= 0, `${label}: offset_ms of batch ${i}`);
    const bytes = Buffer.byteLength(JSON.stringify(batch));
    assert.ok(bytes <= MAX_BATCH_BYTES || batch.events.length === 1, `${label}: batch ${i} has ${bytes} bytes`);
  });

  const events = batches.flatMap((batch) => batch.events);
  for (const event of events) {
    assert.deepEqual(Object.keys(event).toSorted(), ['data', 'timestamp', 'type'], `${label}: keys of an event`);
  }
  const start = events.map((event) => event.type).filter((type) => !MAY_COME_FIRST.includes(type));
  assert.deepEqual(start.slice(0, 2), [META, FULL_SNAPSHOT], `${label}: starts with ${start.slice(0, 2)}`);
  const pages = events.filter((event) => event.type === 5 && event.data.tag === 'clairvio/page');
  assert.equal(pages.length, 1, `${label}: ${pages.length} page events`);
  assert.ok(!/[?#]/.test(pages[0].data.payload.href), `${label}: page event with a query`);
}

function checkRecording(name, { text, batches }) {
  for (const secret of PRIVATE_TEXTS) {
    assert.ok(!text.includes(secret), `${name}: contains a private text (${secret.slice(0, 4)}…)`);
  }
  for (const stream of new Set(batches.map((batch) => batch.stream))) {
    const own = batches.filter((batch) => batch.stream === stream);
    assert.ok(Number.isInteger(stream) && stream >= 0 && stream < 2 ** 31, `${name}: stream ${stream}`);
    checkStream(`${name}/${stream}`, own);
  }
  const offsets = batches.map((batch) => batch.offset_ms);
  assert.deepEqual(offsets, offsets.toSorted((a, b) => a - b), `${name}: lines are not in sending order`);
}

export async function check() {
  const manifest = await readManifest();
  const files = (await readdir(RECORDINGS_DIR)).filter((file) => file.endsWith('.ndjson.gz'));
  const listed = manifest.recordings.map((recording) => `${recording.name}.ndjson.gz`);
  assert.deepEqual(files.toSorted(), listed.toSorted(), 'manifest and files differ');

  for (const { name, description, rrweb, chromium, ...stated } of manifest.recordings) {
    const recording = await readRecording(name);
    checkRecording(name, recording);
    assert.deepEqual(stated, summarise(recording), `${name}: the manifest states other figures`);
  }

  const sums = total(manifest.recordings);
  assert.deepEqual(manifest.total, sums, 'the totals of the manifest are wrong');
  assert.ok(sums.compressed_bytes <= MAX_COMPRESSED_BYTES, `${sums.compressed_bytes} bytes are too many`);
  for (const type of MUST_OCCUR) assert.ok(sums.events_by_type[type] > 0, `no event of type ${type}`);
  return sums;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  console.log('recordings are sound:', await check());
}
