// The web site under recording, its API and the batch intake, on 127.0.0.1.

import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { makeCatalogue, makeOrders } from './catalogue.mjs';
import { EMAIL, PASSWORD } from './typed.mjs';

const here = import.meta.dirname;
const resolve = createRequire(import.meta.url).resolve;

const CONTENT_TYPES = {
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
};

export const SESSION_COOKIE = 'recording';

// The script of a recorded page: rrweb, its console plugin, and behind them what starts them.
export async function buildSdk(recorder = path.join(here, 'sdk', 'recorder.js')) {
  // The published bundles for <script> tags sit next to each package's main file.
  const bundles = ['rrweb', '@rrweb/rrweb-plugin-console-record'].map((name) =>
    resolve(name).replace(/(\.umd)?\.cjs$/, '.umd.min.cjs'));
  const parts = [...bundles, recorder];
  const sources = await Promise.all(parts.map((file) => readFile(file, 'utf8')));
  return sources.join('\n;\n');
}

async function readBody(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString('utf8');
}

function sendJson(response, status, value) {
  response.writeHead(status, { 'content-type': 'application/json', 'cache-control': 'no-store' });
  response.end(JSON.stringify(value));
}

function sessionOf(request) {
  const match = new RegExp(`${SESSION_COOKIE}=([a-z0-9-]+)`).exec(request.headers.cookie ?? '');
  return match?.[1];
}

// `onBatch(session, batch)` gets every batch the recorded pages send. The
// cookie tells the sessions of one browser apart.
export async function startServer(onBatch) {
  const sdk = await buildSdk();
  const catalogue = makeCatalogue();
  const orders = makeOrders(catalogue);

  // The delays are those of a server a short distance away, so that loading
  // states show up in the recordings.
  const api = {
    'POST /api/login': async (request, response) => {
      const { email, password } = JSON.parse(await readBody(request));
      await sleep(350);
      if (email === EMAIL && password === PASSWORD) return sendJson(response, 200, { next: '/account' });
      return sendJson(response, 401, { message: 'E-mail or password is not right.' });
    },
    'GET /api/products': async (request, response, url) => {
      await sleep(180);
      const query = url.searchParams;
      const offset = Number(query.get('offset') ?? 0);
      const limit = Number(query.get('limit') ?? 24);
      const found = catalogue.search(query);
      sendJson(response, 200, { total: found.length, items: found.slice(offset, offset + limit) });
    },
    'GET /api/product': async (request, response, url) => {
      await sleep(120);
      const product = catalogue.byId(Number(url.searchParams.get('id')));
      if (!product) return sendJson(response, 404, { message: 'No such product.' });
      return sendJson(response, 200, { product, related: catalogue.related(product) });
    },
    'GET /api/stock': async (request, response) => sendJson(response, 200, catalogue.stockTick()),
    'POST /api/cart': async (request, response) => {
      await readBody(request);
      await sleep(90);
      sendJson(response, 200, { ok: true });
    },
    'POST /api/tickets': async (request, response) => {
      await readBody(request);
      await sleep(700);
      sendJson(response, 201, { id: 'T-20817' });
    },
    'GET /api/notifications': async (request, response) => sendJson(response, 200, { unread: 2 }),
    'GET /api/orders': async (request, response) => sendJson(response, 200, orders.recent()),
    'GET /api/orders/tick': async (request, response) => sendJson(response, 200, orders.tick()),
    'GET /api/import/template': async (request, response) => {
      await sleep(60);
      sendJson(response, 200, { columns: ['sku', 'title', 'price', 'stock'], rows: 118 });
    },
    'POST /api/import/validate': async (request, response) => {
      await readBody(request);
      await sleep(2600);
      sendJson(response, 200, { checked: 118, invalid: [14, 52, 97] });
    },
    'POST /api/import/commit': async (request, response) => {
      await readBody(request);
      await sleep(450);
      sendJson(response, 500, { message: 'write conflict on shelf 12' });
    },
    'GET /api/import/report': async (request, response) => {
      // Long enough for the person to lose patience and cancel.
      await sleep(8000);
      sendJson(response, 200, {});
    },
  };

  async function handle(request, response) {
    const url = new URL(request.url, 'http://localhost');

    if (url.pathname === '/clairvio/sdk.js') {
      response.writeHead(200, { 'content-type': CONTENT_TYPES['.js'] });
      return response.end(sdk);
    }
    if (url.pathname === '/clairvio/batch') {
      onBatch(sessionOf(request), JSON.parse(await readBody(request)));
      response.writeHead(204);
      return response.end();
    }
    if (url.pathname.startsWith('/api/')) {
      const endpoint = api[`${request.method} ${url.pathname}`];
      if (!endpoint) return sendJson(response, 404, { message: 'Not found.' });
      return endpoint(request, response, url);
    }

    const name = path.basename(url.pathname);
    const file = path.extname(name) ? name : `${name || 'shop'}.html`;
    const type = CONTENT_TYPES[path.extname(file)];
    const content = type && await readFile(path.join(here, 'pages', file)).catch(() => null);
    response.writeHead(content ? 200 : 404, { 'content-type': type ?? 'text/plain' });
    return response.end(content ?? 'Not found');
  }

  const server = createServer((request, response) => {
    handle(request, response).catch((error) => {
      console.error(`${request.method} ${request.url}:`, error);
      response.destroy();
    });
  });
  await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
  return {
    port: server.address().port,
    close() {
      server.closeAllConnections();
      server.close();
    },
  };
}
