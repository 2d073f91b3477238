// One case in the browser: its pages, what happens on them, and its batches.

import { Markers } from './markers.mjs';

export const ORIGIN = 'http://harbor-oak.test';
export const OTHER_ORIGIN = 'http://elsewhere.test';

const SETTLE_MS = 40;
const PIXEL = Buffer.from('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=', 'base64');

const page = (title, head, body, attributes = '') => `<!doctype html>
<html lang="en"${attributes}>
<head>
  <meta charset="utf-8">
  <title>${title}</title>
  <style>body { font: 16px sans-serif; margin: 24px; } label, p { display: block; margin: 8px 0; }</style>
  ${head}
</head>
<body>
${body}
</body>
</html>
`;

export class Visit extends Markers {
  #context;
  #page;
  #recorder;
  #answers = new Map();
  #batches = [];

  constructor(context, name, recorder) {
    super(name);
    this.#context = context;
    this.#recorder = recorder;
  }

  get page() {
    return this.#page;
  }

  get batches() {
    return this.#batches;
  }

  async prepare() {
    await this.#context.route('**/*', (route) => this.#answer(route));
    this.#page = await this.#context.newPage();
  }

  #answer(route) {
    const { origin, pathname } = new URL(route.request().url());
    if (pathname === '/recorder.js') {
      return route.fulfill({ contentType: 'text/javascript', body: this.#recorder });
    }
    const answer = this.#answers.get(pathname);
    if (answer) return route.fulfill(answer);
    if (/\.png$/.test(pathname)) return route.fulfill({ contentType: 'image/png', body: PIXEL });
    if (origin === OTHER_ORIGIN) return route.fulfill({ contentType: 'text/html', body: 'elsewhere' });
    return route.fulfill({ status: 404, contentType: 'text/plain', body: 'Not found' });
  }

  // What the site answers on a path, whatever the query.
  serve(path, answer) {
    this.#answers.set(path, typeof answer === 'string'
      ? { contentType: 'text/html; charset=utf-8', body: answer }
      : answer);
  }

  // A page to embed.
  serveFrame(path, body) {
    this.serve(path, page('Frame', '', body));
  }

  // Loads the case's page; recording begins later.
  async load(body, { head = '', suffix = '', path = `/${this.name}`, html = '', at = ORIGIN } = {}) {
    this.serve(path, page('Harbor &amp; Oak', `<script src="/recorder.js"></script>\n  ${head}`, body, html));
    await this.#page.goto(`${at}${path}${suffix}`);
    await this.settle();
  }

  async start() {
    await this.#page.evaluate(() => window.leaks.start());
    await this.settle();
  }

  async open(body, options) {
    await this.load(body, options);
    await this.start();
  }

  // What the page's scripts do. `work` runs in the page.
  async run(work, argument) {
    const result = await this.#page.evaluate(work, argument);
    await this.settle();
    return result;
  }

  async type(selector, text) {
    await this.#page.locator(selector).click();
    await this.#page.keyboard.type(text);
    await this.settle();
  }

  async clear(selector) {
    await this.#page.locator(selector).click();
    await this.#page.keyboard.press('Control+A');
    await this.#page.keyboard.press('Delete');
  }

  // Mutations, animation frames and the load of frames have arrived.
  async settle() {
    await this.#page.evaluate((ms) => new Promise((done) => {
      requestAnimationFrame(() => setTimeout(done, ms));
    }), SETTLE_MS);
  }

  // Ends a batch here, so that what follows is in another one.
  async flush() {
    await this.settle();
    await this.#page.evaluate(() => window.leaks.flush());
  }

  async snapshot() {
    await this.settle();
    await this.#page.evaluate(() => window.leaks.snapshot());
    await this.settle();
  }

  // A later full snapshot with a batch of its own, and an ordinary text in it.
  async snapshotWith(label = 'after') {
    await this.flush();
    await this.run((text) => {
      const paragraph = document.createElement('p');
      paragraph.textContent = text;
      document.body.append(paragraph);
    }, this.keep(label));
    await this.snapshot();
    await this.flush();
  }

  // Ends the stream of the page that is open. `load` and `start` begin another.
  async end() {
    await this.settle();
    await this.#page.evaluate(() => window.leaks.end());
    const taken = await this.#page.evaluate(() => window.leaks.take());
    this.#batches.push(...taken.map((line) => JSON.parse(line)));
  }
}
