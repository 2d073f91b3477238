// Plays recordings in rrweb's own player:
//   node replay.mjs <file>…
//   node replay.mjs --compare [--tolerance <px>] [--block <selector>]… <before> <after> [<before> <after>]…

import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { gunzipSync } from 'node:zlib';

import { CONTEXT, launchBrowser } from './browser.mjs';

const FULL_SNAPSHOT = 2;
const PLAYER_URL = 'http://replay.test/';
const SHOWN_DIFFERENCES = 5;
// A canvas is replayed by scripts in the player's frame, which the browser
// warns of.
const ALLOWED_SCRIPTS = /allow-scripts and allow-same-origin/;
// Masks in fields for numbers and dates are no fault of the replay.
const REFUSED_VALUE = /^The specified value /;

// The streams of a file. One event a line, or an array of events, is one
// stream: then the file does not say which event is whose.
async function readStreams(file) {
  const bytes = await readFile(file);
  const text = (bytes[0] === 0x1f && bytes[1] === 0x8b ? gunzipSync(bytes) : bytes).toString('utf8').trim();
  const lines = text.startsWith('[') ? JSON.parse(text) : text.split('\n').filter(Boolean).map((line) => JSON.parse(line));
  const streams = new Map();
  for (const line of lines) {
    const stream = line.stream ?? 'all';
    if (!streams.has(stream)) streams.set(stream, []);
    streams.get(stream).push(...(line.events ?? [line]));
  }
  return [...streams].map(([stream, events]) => ({ stream, events: events.toSorted((a, b) => a.timestamp - b.timestamp) }));
}

const oneStream = (streams) => [{
  stream: 'all',
  events: streams.flatMap(({ events }) => events).toSorted((a, b) => a.timestamp - b.timestamp),
}];

// The middle and the end, and the moments before a later full snapshot, which
// would hide what went wrong by then.
function moments(events) {
  const first = events[0].timestamp;
  const snapshots = events.filter(({ type }) => type === FULL_SNAPSHOT).slice(1);
  const times = [
    events[Math.floor(events.length / 2)].timestamp,
    ...snapshots.map(({ timestamp }) => timestamp - 1),
    events.at(-1).timestamp,
  ];
  return [...new Set(times)].toSorted((a, b) => a - b).filter((time) => time >= first);
}

async function openPlayer(browser) {
  const require = createRequire(import.meta.url);
  const bundle = require.resolve('rrweb').replace(/(\.umd)?\.cjs$/, '.umd.min.cjs');
  const scripts = [bundle, path.join(import.meta.dirname, 'replay', 'player.js')];
  const context = await browser.newContext(CONTEXT);
  await context.route('**/*', (route) => (route.request().url() === PLAYER_URL
    ? route.fulfill({ contentType: 'text/html', body: '<!doctype html><title>Replay</title><body></body>' })
    : route.fulfill({ status: 204 })));
  const page = await context.newPage();
  await page.goto(PLAYER_URL);
  for (const script of scripts) await page.addScriptTag({ path: script });
  return { context, page };
}

// Plays one stream in a page of its own. What the player throws is in `errors`.
async function playStream(browser, { events }, times, blockSelectors) {
  const errors = [];
  const messages = [];
  const { context, page } = await openPlayer(browser);
  page.on('pageerror', (error) => errors.push(String(error.message ?? error)));
  page.on('console', (message) => {
    if (['warning', 'error'].includes(message.type()) && !ALLOWED_SCRIPTS.test(message.text())) messages.push(message.text());
  });
  const views = [];
  let said = { warnings: [], absent: 0 };
  try {
    await page.evaluate((list) => window.player.load(list), events);
    const first = events[0].timestamp;
    const last = events.at(-1).timestamp;
    for (const time of times) {
      // Events at the very time are played only when it has passed.
      const offset = Math.min(time, last) - first + (time >= last ? 1 : 0);
      views.push(await page.evaluate(([at, selectors]) => window.player.look(at, selectors), [Math.max(offset, 0), blockSelectors]));
    }
    said = await page.evaluate(() => window.player.close());
  } catch (error) {
    errors.push(String(error.message ?? error).split('\n')[0]);
  } finally {
    await context.close();
  }
  if (views.some(({ filled }) => !filled)) errors.push('the document stays empty');
  return { views, errors, warnings: [...said.warnings, ...messages], absent: said.absent };
}

function sumUp(played) {
  const counts = {};
  for (const { views } of played) {
    for (const [key, value] of Object.entries(views.at(-1)?.counts ?? {})) counts[key] = (counts[key] ?? 0) + value;
  }
  return counts;
}

function report(file, played, problems, more = '') {
  const counts = Object.entries(sumUp(played)).map(([key, value]) => `${value} ${key.replaceAll('_', ' ')}`).join(', ');
  const warnings = played.flatMap((stream) => stream.warnings);
  const absent = played.reduce((all, stream) => all + stream.absent, 0);
  console.log(`${problems.length > 0 ? 'failed' : 'ok'} ${file}: ${played.length} streams, ${counts}, `
    + `${warnings.length} warnings, ${absent} events on absent nodes${more}`);
  for (const warning of [...new Set(warnings)].slice(0, SHOWN_DIFFERENCES)) console.log(`  warning: ${warning.slice(0, 200)}`);
  for (const problem of problems) console.log(`  ${problem}`);
}

async function playFile(browser, file) {
  const streams = (await readStreams(file)).filter(({ events }) => events.length > 1);
  const played = [];
  for (const stream of streams) played.push(await playStream(browser, stream, moments(stream.events), []));
  const problems = played.flatMap(({ errors }) => errors);
  if (streams.length === 0) problems.push('there is nothing to play');
  report(file, played, problems);
  return problems.length === 0;
}

// What a view shows apart from the insides of blocked elements. Whether one is
// blocked is taken from the recording before masking.
function visible({ elements }, blockedIds) {
  const hidden = new Set();
  return elements.filter(({ id, parent }, i) => {
    if (parent !== null && (hidden.has(parent) || blockedIds.has(elements[parent].id))) {
      hidden.add(i);
      return false;
    }
    return true;
  });
}

// Boxes whose size masking has no say in: nothing in them was masked, and no
// element that is sized by its content and holds something masked is around.
function steadyBoxes(before, after) {
  const afterById = new Map(after.elements.map((element) => [element.id, element]));
  const { elements } = before;
  const holdsMasked = new Set();
  elements.forEach((element, i) => {
    const other = afterById.get(element.id);
    if (element.id < 1 || (other?.text === element.text && !element.blocked)) return;
    for (let at = i; at !== null && !holdsMasked.has(at); at = elements[at].parent) holdsMasked.add(at);
  });
  const boxes = [];
  elements.forEach((element, i) => {
    // What the player puts into the page itself has no number.
    if (holdsMasked.has(i) || element.id < 1) return;
    for (let at = element.parent; at !== null; at = elements[at].parent) {
      if (elements[at].blocked || (elements[at].sized_by_content && holdsMasked.has(at))) return;
    }
    boxes.push([element, afterById.get(element.id)]);
  });
  return boxes;
}

function compareViews(label, before, after, tolerance) {
  const problems = [];
  const blockedIds = new Set(before.elements.filter(({ blocked }) => blocked).map(({ id }) => id));
  const was = visible(before, blockedIds);
  const is = visible(after, blockedIds);
  if (was.length !== is.length) problems.push(`${label}: ${was.length} elements before, ${is.length} after`);
  const at = was.findIndex(({ tag }, i) => tag !== is[i]?.tag);
  if (at >= 0) problems.push(`${label}: element ${at} was <${was[at].tag}> (id ${was[at].id}), is <${is[at]?.tag}> (id ${is[at]?.id})`);

  const boxes = steadyBoxes(before, after);
  const off = boxes.filter(([a, b]) => Math.abs(a.width - b.width) > tolerance || Math.abs(a.height - b.height) > tolerance);
  for (const [a, b] of off.slice(0, SHOWN_DIFFERENCES)) {
    problems.push(`${label}: <${a.tag}> (id ${a.id}) was ${a.width}×${a.height}, is ${b.width}×${b.height}`);
  }
  return { problems, boxes: boxes.length };
}

async function compare(browser, beforeFile, afterFile, { tolerance, block }) {
  let [before, after] = await Promise.all([readStreams(beforeFile), readStreams(afterFile)]);
  if ([before, after].some((streams) => streams.some(({ stream }) => stream === 'all'))) {
    before = oneStream(before);
    after = oneStream(after);
  }
  const problems = [];
  const playedAfter = [];
  let boxes = 0;
  for (const { stream, events } of before) {
    const masked = after.find((other) => other.stream === stream);
    if (!masked) {
      problems.push(`stream ${stream} is missing`);
      continue;
    }
    const times = moments(events);
    const was = await playStream(browser, { events }, times, block);
    const is = await playStream(browser, masked, times, block);
    playedAfter.push(is);
    problems.push(...was.errors.map((error) => `before masking: ${error}`), ...is.errors);
    const [less, more] = [was, is].map(({ warnings }) => warnings.filter((warning) => !REFUSED_VALUE.test(warning)).length);
    if (more > less) problems.push(`stream ${stream}: ${less} warnings before, ${more} after`);
    was.views.forEach((view, i) => {
      if (!is.views[i]) return;
      const found = compareViews(`stream ${stream} at ${times[i] - events[0].timestamp} ms`, view, is.views[i], tolerance);
      problems.push(...found.problems);
      boxes += found.boxes;
    });
  }
  report(afterFile, playedAfter, problems, `, ${boxes} boxes compared`);
  return problems.length === 0;
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    compare: { type: 'boolean', default: false },
    tolerance: { type: 'string', default: '2' },
    block: { type: 'string', multiple: true, default: [] },
  },
});
if (positionals.length === 0 || (values.compare && positionals.length % 2 !== 0)) {
  throw new Error('usage: replay.mjs <file>… | replay.mjs --compare [--tolerance <px>] [--block <selector>]… <before> <after>…');
}

const browser = await launchBrowser();
let sound = true;
try {
  if (values.compare) {
    const options = { tolerance: Number(values.tolerance), block: values.block };
    for (let i = 0; i < positionals.length; i += 2) {
      sound = await compare(browser, positionals[i], positionals[i + 1], options) && sound;
    }
  } else {
    for (const file of positionals) sound = await playFile(browser, file) && sound;
  }
} finally {
  await browser.close();
}
process.exitCode = sound ? 0 : 1;
