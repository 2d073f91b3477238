// Reading and writing recordings, and the figures the manifest states.

import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { gunzipSync, gzipSync } from 'node:zlib';

export const RECORDINGS_DIR = path.join(import.meta.dirname, '..', 'recordings');
export const MANIFEST_FILE = path.join(RECORDINGS_DIR, 'manifest.json');
export const LEAKS_DIR = path.join(RECORDINGS_DIR, 'leaks');
export const LEAKS_MANIFEST_FILE = path.join(LEAKS_DIR, 'manifest.json');
export const recordingFile = (name, folder = RECORDINGS_DIR) => path.join(folder, `${name}.ndjson.gz`);

export async function installedVersion(name) {
  const file = path.join(import.meta.dirname, 'node_modules', name, 'package.json');
  return JSON.parse(await readFile(file, 'utf8')).version;
}

export async function writeRecording(name, batches, folder) {
  const text = batches.map((batch) => `${JSON.stringify(batch)}\n`).join('');
  await writeFile(recordingFile(name, folder), gzipSync(text, { level: 9 }));
}

export async function readRecording(name, folder) {
  const compressed = await readFile(recordingFile(name, folder));
  const text = gunzipSync(compressed).toString('utf8');
  if (!text.endsWith('\n')) throw new Error(`${name}: the last line is not complete`);
  return {
    text,
    batches: text.trimEnd().split('\n').map((line) => JSON.parse(line)),
    compressedBytes: compressed.length,
  };
}

export async function readManifest() {
  return JSON.parse(await readFile(MANIFEST_FILE, 'utf8'));
}

export function summarise({ text, batches, compressedBytes }) {
  const events = batches.flatMap((batch) => batch.events);
  const byType = {};
  for (const { type } of events) byType[type] = (byType[type] ?? 0) + 1;
  const pages = events
    .filter((event) => event.type === 5 && event.data.tag === 'clairvio/page')
    .map((event) => event.data.payload.href);
  return {
    pages,
    streams: new Set(batches.map((batch) => batch.stream)).size,
    batches: batches.length,
    events: events.length,
    events_by_type: byType,
    raw_bytes: Buffer.byteLength(text),
    compressed_bytes: compressedBytes,
    duration_ms: Math.max(...batches.map((batch) => batch.offset_ms)),
  };
}

export function total(recordings) {
  const sum = (key) => recordings.reduce((all, recording) => all + recording[key], 0);
  const byType = {};
  for (const { events_by_type: counts } of recordings) {
    for (const [type, count] of Object.entries(counts)) byType[type] = (byType[type] ?? 0) + count;
  }
  return {
    recordings: recordings.length,
    streams: sum('streams'),
    batches: sum('batches'),
    events: sum('events'),
    events_by_type: byType,
    raw_bytes: sum('raw_bytes'),
    compressed_bytes: sum('compressed_bytes'),
    duration_ms: sum('duration_ms'),
  };
}
